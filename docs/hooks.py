"""How do files that lie beside docs/ become part of the site?

A page holds one of these, with a sentence between them for those who read the file itself::

    <!-- include: SECURITY.md -->
    <!-- end of include -->

What is between them is replaced by the file, from the top of the repository: Markdown without its
first heading and with its links led back into docs/, anything else as a block of code. Links from
pages to the files that lie beside docs/ lead to the pages that include them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

_TOP: Final = Path(__file__).parent.parent

# Which page of the site shows a file (or the folder) that lies beside docs/.
_PAGES: Final = {
    "SECURITY.md": "explanation/security.md",
    "CHANGELOG.md": "reference/changelog.md",
    "README.md": "index.md",
    "examples": "reference/examples.md",
}

# What the theme loads where a page cannot start a worker, and what we have for that.
_SHIM: Final = "https://unpkg.com/iframe-worker/shim"
_OURS: Final = "assets/frame-worker.js"

_PLACE: Final = re.compile(r"<!-- include: (\S+) -->\n.*?<!-- end of include -->", re.DOTALL)
_LINK: Final = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in what a page includes, and lead links that leave docs/ to the site's own pages."""
    here = posixpath.dirname(page.file.src_uri)

    def included(place: re.Match[str]) -> str:
        path = place[1]
        text = (_TOP / path).read_text(encoding="utf-8").strip()
        if not path.endswith(".md"):
            return f"```{path.rpartition('.')[2]}\n{text}\n```"
        text = re.sub(r"\A# .*\n", "", text)
        return _LINK.sub(lambda link: f"]({_from_top(link[1], here)})", text)

    def led(link: re.Match[str]) -> str:
        target, mark, anchor = link[1].partition("#")
        full = posixpath.normpath(posixpath.join("docs", here, target))
        if full.startswith("docs"):
            return link[0]
        return f"]({_from_top(full + mark + anchor, here)})"

    return _LINK.sub(led, _PLACE.sub(included, markdown))


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Let the search of pages that are read from files need nothing from elsewhere."""
    return output.replace(
        _SHIM, posixpath.relpath(_OURS, posixpath.dirname(page.file.dest_uri) or ".")
    )


def on_post_template(output: str, **_: Any) -> str:
    """Do the same for the page that is shown where there is none."""
    return output.replace(_SHIM, _OURS)


def _from_top(target: str, here: str) -> str:
    """Return the link from a page in a folder of docs/ to what a link from the top leads to."""
    path, mark, anchor = target.partition("#")
    found = path.removeprefix("docs/")
    if found == path:  # beside docs/
        found = _PAGES.get(path) or _PAGES[path.partition("/")[0]]
        if path.startswith("examples/"):
            mark, anchor = "#", Path(path).stem
    return posixpath.relpath(found, here or ".") + mark + anchor

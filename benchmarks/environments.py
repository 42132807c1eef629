"""Where are the peers installed that cannot share an environment with shmstore, or need not?

``python -m benchmarks.environments`` makes an environment for each adapter module that requires
packages and installs those; what the index does not have is said at the end, and left out of the
measurements. ``make bench-peers`` calls it. Names of modules choose.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv

from benchmarks import peers
from benchmarks.peers import Found, Peer, environment_of

# What the samples are made of, and what the adapters need.
ALWAYS = ("numpy", "pandas", "psutil", "pyarrow")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def main() -> int:
    """Install; return how many could not be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments")
    parser.add_argument("names", nargs="*", metavar="MODULE", help="all by default")
    wanted = parser.parse_args().names
    failed = 0
    kinds = {environment_of(each).name: each for each in peers.every() if each.requires}
    for name, kind in kinds.items():
        if not wanted or name in wanted:
            here = Found(kind, sys.executable).has(kind.package)
            said = "" if here else _install(kind)
            failed += bool(said)
            sys.stdout.write(f"{name:<16}{said or ('here already' if here else 'installed')}\n")
            sys.stdout.flush()
    return failed


def _install(kind: type[Peer]) -> str:
    """Install what a peer requires; return why that is not possible."""
    folder = environment_of(kind)
    if not folder.exists():
        venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    packages = {each for each in ALWAYS if not _names(kind.requires, each)} | set(kind.requires)
    ran = subprocess.run(
        [python, *PIP, "install", *sorted(packages)], capture_output=True, check=False, text=True
    )
    if ran.returncode == 0:
        return ""
    lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
    return lines[-1] if lines else f"pip ended with status {ran.returncode}"


def _names(requirements: tuple[str, ...], package: str) -> bool:
    return any(each.startswith(package) for each in requirements)


if __name__ == "__main__":
    sys.exit(main())

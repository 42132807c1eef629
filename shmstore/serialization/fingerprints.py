"""Which text stands for the arguments of a call, the same in every process?

The arguments are pickled and digested: buffers out of band, so that arrays are not copied; sets in
an order of their own, since theirs differs from process to process.
"""

from __future__ import annotations

import pickle
from hashlib import blake2b
from types import CodeType
from typing import Any, Final

from shmstore.errors import SerializationError

_DIGEST_NBYTES: Final = 16


def fingerprint(value: Any) -> str:
    """Return 32 hexadecimal digits that are the same for values that pickle to the same bytes.

    Raises
    ------
    SerializationError
        It cannot be pickled.

    Examples
    --------
    >>> fingerprint({"b", "a"}) == fingerprint({"a", "b"})
    True
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(_ordered(value), 5, buffer_callback=buffers.append)
    except Exception as error:
        raise SerializationError(
            f"the arguments cannot be pickled ({error}), so nothing tells whether a call with them "
            "was made before. Give `key=`, a function that makes a text of them."
        ) from error
    digest = blake2b(stream, digest_size=_DIGEST_NBYTES)
    for buffer in buffers:
        raw = buffer.raw()
        digest.update(raw.nbytes.to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def fingerprint_of_code(code: CodeType) -> str:
    """Return digits that are the same for the same code of the same version of Python."""
    digest = blake2b(code.co_code, digest_size=4)
    for part in code.co_consts:
        inner = fingerprint_of_code(part) if isinstance(part, CodeType) else repr(_ordered(part))
        digest.update(inner.encode("utf-8", "surrogatepass"))
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    return digest.hexdigest()


def _ordered(value: Any) -> Any:
    """Return plain containers with their sets in an order that is the same everywhere."""
    kind = type(value)
    if kind in (tuple, list):
        return kind(map(_ordered, value))
    if kind is dict:
        return {key: _ordered(part) for key, part in value.items()}
    if kind in (set, frozenset):
        return (kind.__name__, sorted(pickle.dumps(_ordered(part), 5) for part in value))
    return value

"""How does an object come out of a store without running code that somebody pickled?

Objects of the type registry (arrays, Arrow tables) are rebuilt without pickle. A pickle is read
with a list of names that it may ask for: those with which the standard library, NumPy, pandas and
pyarrow make values. Whatever else it names is refused, unless the user says that it is trusted.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, Final, NoReturn

import shmstore
from shmstore.cli._errors import CommandError

_WITHOUT_PICKLE: Final = ("custom", "msgpack")

# Which names of a package, or of a module in it, only make values.
_VALUES: Final = {
    "builtins": r"complex|range|slice|set|frozenset|bytearray",
    "collections": r"OrderedDict|deque",
    "datetime": r"date|datetime|time|timedelta|timezone",
    "decimal": r"Decimal",
    "fractions": r"Fraction",
    "pathlib": r"(Pure)?(Posix|Windows)?Path",
    "uuid": r"UUID",
    "numpy": r"dtype|ndarray|_reconstruct|scalar|_frombuffer",
    "pandas": (
        r"DataFrame|Series|NA|NaT|Timestamp|Timedelta|Period|Interval|Categorical|\w+Dtype|\w+Array"
        r"|\w*Index|(Single)?BlockManager|_new_\w*Index|_unpickle_block|__pyx_unpickle_\w+"
        r"|_unpickle_timestamp|_timedelta_unpickle|_nat_unpickle|BaseOffset|Day|Hour|Minute|Second"
        r"|Milli|Micro|Nano|MonthEnd|MonthBegin|BusinessDay|Week"
    ),
    "pyarrow": r"_restore_array|py_buffer|type_for_alias|schema|field|Schema|Field",
    "shmstore": r"deserialize_beside",
}


class UnsafeError(CommandError):
    """The object can only be had by running code that it brings along."""


class _Values(pickle.Unpickler):
    """Reads pickles of values; whatever else one asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes a value, or refuse to import."""
        allowed = _VALUES.get(module.partition(".")[0])
        if allowed is None or not re.fullmatch(allowed, name):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, _: Any) -> NoReturn:
        """Refuse to look elsewhere."""
        raise pickle.UnpicklingError("it names an object elsewhere")


def load(store: shmstore.Store, target: Any, *, unsafe: bool) -> Any:
    """Return an object; its buffers are read-only.

    Raises
    ------
    UnsafeError
        Its pickle names something that does more than make a value, and `unsafe` is false.
    """
    if unsafe:
        return store.get(target, mode="readonly")
    try:
        return store.get(target, mode="readonly", deserializers=_WITHOUT_PICKLE)
    except (shmstore.FamilyRefusedError, shmstore.ModuleRefusedError) as refused:
        return _load_values(store, target, refused)


def _load_values(store: shmstore.Store, target: Any, refused: Exception) -> Any:
    found = store.get(target, mode="readonly", decode=False)
    if found.header.get("serializer") != "pickle":
        raise _refusal(str(refused)) from refused
    try:
        return _Values(io.BytesIO(found.frames[0]), buffers=found.frames[1:]).load()
    except Exception as error:  # a stream that is no pickle raises anything
        raise _refusal(str(error)) from error


def _refusal(why: str) -> UnsafeError:
    return UnsafeError(
        f"the object is pickled, and reading that may run code ({why}). If you trust whoever put "
        "it, give --unsafe-pickle."
    )

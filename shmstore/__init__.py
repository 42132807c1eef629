"""A store of Python objects in shared memory.

One process puts an object, any other process on the machine gets it back without copying its data.
There is no server: the store is a folder of memory-mapped files, and every process works on it
directly.

>>> import numpy as np, shmstore
>>> with shmstore.Store.create(capacity="64MiB") as store:
...     ref = store.put(np.arange(1_000_000))
...     int(ref.get().sum())
499999500000
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# isort: split
# Before NumPy makes threads, see there.
import shmstore._sharing.barrier  # noqa: F401

# isort: split
# Here, and not deep in the imports of others: Python calls itself faster from here.
import numpy as np  # noqa: F401

# isort: split
from shmstore import _process
from shmstore._awaiting import Waited
from shmstore._options import Options
from shmstore._ref import ObjectRef
from shmstore._store import Store
from shmstore.errors import (
    ChangesLostError,
    CodecNotFoundError,
    CorruptHeaderError,
    CorruptStoreError,
    DeserializationError,
    FamilyRefusedError,
    FormatVersionError,
    KeyExistsError,
    LockTimeoutError,
    ModuleRefusedError,
    NotAStoreError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    ProcessLimitError,
    ReadOnlyStoreError,
    SerializationError,
    ShmStoreError,
    StoreClosedError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
    UnsafePathError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from shmstore._building import Allocation
    from shmstore._info import (
        ClientInfo,
        ClientUse,
        FileSystemUse,
        Finding,
        FullReport,
        ObjectInfo,
        ObjectsUse,
        PinInfo,
        Recovered,
        StoreStats,
    )
    from shmstore._listing import StoreSummary, stores
    from shmstore._lists import SharedList
    from shmstore._metrics import ClientMetrics, Metrics
    from shmstore._pooling import ProcessPoolExecutor
    from shmstore._pruning import prune, remove
    from shmstore._queue import Queue
    from shmstore._surveying import Survey
    from shmstore._traveling import dumps_by_reference
    from shmstore._watching import Change, Watch

__version__ = "0.1.0"

_process.install()

# Names of modules that most processes never need, and that take time to import (see PEP 562).
_LATER = {
    "Allocation": "_building",
    "Change": "_watching",
    "ClientInfo": "_info",
    "ClientMetrics": "_metrics",
    "ClientUse": "_info",
    "FileSystemUse": "_info",
    "Finding": "_info",
    "FullReport": "_info",
    "Metrics": "_metrics",
    "ObjectInfo": "_info",
    "ObjectsUse": "_info",
    "PinInfo": "_info",
    "Queue": "_queue",
    "ProcessPoolExecutor": "_pooling",
    "Recovered": "_info",
    "SharedList": "_lists",
    "StoreStats": "_info",
    "StoreSummary": "_listing",
    "Survey": "_surveying",
    "Watch": "_watching",
    "dumps_by_reference": "_traveling",
    "prune": "_pruning",
    "remove": "_pruning",
    "stores": "_listing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "Allocation",
    "Change",
    "ChangesLostError",
    "ClientInfo",
    "ClientMetrics",
    "ClientUse",
    "CodecNotFoundError",
    "CorruptHeaderError",
    "CorruptStoreError",
    "DeserializationError",
    "FamilyRefusedError",
    "FileSystemUse",
    "Finding",
    "FormatVersionError",
    "FullReport",
    "KeyExistsError",
    "LockTimeoutError",
    "Metrics",
    "ModuleRefusedError",
    "NotAStoreError",
    "ObjectInfo",
    "ObjectNotFoundError",
    "ObjectRef",
    "ObjectTooLargeError",
    "ObjectsUse",
    "Options",
    "PinInfo",
    "ProcessLimitError",
    "ProcessPoolExecutor",
    "Queue",
    "ReadOnlyStoreError",
    "Recovered",
    "SerializationError",
    "SharedList",
    "ShmStoreError",
    "Store",
    "StoreClosedError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreStats",
    "StoreSummary",
    "Survey",
    "UnsafePathError",
    "WaitTimeoutError",
    "Waited",
    "Watch",
    "__version__",
    "dumps_by_reference",
    "prune",
    "remove",
    "stores",
]

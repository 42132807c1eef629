"""Which errors can a user meet, and what does each of them tell?

Every error of shmstore derives from `ShmStoreError` and from the standard class that an ordinary
``except`` clause expects. The facts are attributes, the message says what to do, and each error
survives pickling with its facts (process pools send errors home).
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ChangesLostError",
    "CodecNotFoundError",
    "CorruptHeaderError",
    "CorruptStoreError",
    "DeserializationError",
    "FamilyRefusedError",
    "FormatVersionError",
    "KeyExistsError",
    "LockTimeoutError",
    "ModuleRefusedError",
    "NotAStoreError",
    "ObjectNotFoundError",
    "ObjectTooLargeError",
    "ProcessLimitError",
    "ReadOnlyStoreError",
    "SerializationError",
    "ShmStoreError",
    "StoreClosedError",
    "StoreExistsError",
    "StoreFullError",
    "StoreNotFoundError",
    "UnsafePathError",
    "WaitTimeoutError",
]


def _restore(cls: type[ShmStoreError], message: str, facts: dict[str, Any]) -> ShmStoreError:
    return cls(message, **facts)


class ShmStoreError(Exception):
    """Base of all errors of shmstore.

    Parameters
    ----------
    message
        What was wrong, with which value, and what to do.
    **facts
        The facts behind the message; each becomes an attribute.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        notes = {name: value for name, value in self.__dict__.items() if name == "__notes__"}
        return _restore, (type(self), self.message, self.facts), notes or None


# --- met when a store is created, attached or opened -------------------------------------------


class StoreNotFoundError(ShmStoreError, FileNotFoundError):
    """There is no store of this name (or it has been destroyed)."""


class StoreExistsError(ShmStoreError, FileExistsError):
    """The name is taken by a store that is alive."""


class NotAStoreError(ShmStoreError, ValueError):
    """The path exists but holds something else than a store."""


class FormatVersionError(ShmStoreError, ValueError):
    """The store was written in a format that this version or machine does not read."""


class UnsafePathError(ShmStoreError, PermissionError):
    """A path is a symlink, belongs to somebody else, or is open to others."""


# --- met when an object is put -----------------------------------------------------------------


class StoreFullError(ShmStoreError, MemoryError):
    """No room: the message and the attributes say how much was asked, free and pinned."""


class ObjectTooLargeError(ShmStoreError, ValueError):
    """The object could not fit even into the empty store."""


class KeyExistsError(ShmStoreError, KeyError):
    """The key is taken and ``overwrite=False`` was asked for."""


class SerializationError(ShmStoreError, TypeError):
    """The object cannot be turned into bytes."""


# --- met when an object is got -----------------------------------------------------------------


class ObjectNotFoundError(ShmStoreError, KeyError):
    """No object has this key, or the object of this reference has been deleted."""


class DeserializationError(ShmStoreError, ValueError):
    """The bytes of the object could not be turned back into an object."""


class CorruptHeaderError(DeserializationError):
    """A header or frames were cut, extended or forged: which key or count is wrong."""


class FamilyRefusedError(DeserializationError, TypeError):
    """The object needs a family of serializers that the reader did not accept."""


class ModuleRefusedError(DeserializationError, RuntimeError):
    """Reading would import a module that is not among the allowed ones."""


# --- met at any time ---------------------------------------------------------------------------


class CodecNotFoundError(ShmStoreError, KeyError, ValueError):
    """The codec of a compression is unknown, or the package that it needs is not installed."""


class WaitTimeoutError(ShmStoreError, TimeoutError):
    """What was waited for did not come in time; `key` or `keys` name it."""


class ChangesLostError(ShmStoreError, BufferError):
    """A watcher was too slow: changes were made that it was not told. It may go on."""


class LockTimeoutError(ShmStoreError, TimeoutError):
    """The store lock was not free in time; the message names the holder."""


class ProcessLimitError(ShmStoreError, OSError):
    """No file descriptors or no addresses are left to this process, or to the system."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.errno = facts.get("errno")


class StoreClosedError(ShmStoreError, ValueError):
    """The handle is closed, or the store has been destroyed."""


class ReadOnlyStoreError(ShmStoreError, PermissionError):
    """A change was asked of a handle that was attached with ``readonly=True``."""


class CorruptStoreError(ShmStoreError, RuntimeError):
    """The shared files break an invariant of the format; the message says which and where."""

"""Through which doors do forged headers and bytes come in, and what must each of them do?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_corpus
from fuzz_corpus import Encoded
from fuzz_mutants import Noise, forge, places
from fuzz_use import use
from mutations import WAYS

from shmstore import Store, _writing
from shmstore._packing import lay_out
from shmstore.errors import (
    CorruptStoreError,
    DeserializationError,
    FormatVersionError,
    SerializationError,
    ShmStoreError,
)
from shmstore.serialization import Serialized, deserialize, headers, messages, typename
from shmstore.serialization.bytestrings import deserialize_bytes, serialize_bytes
from shmstore.serialization.compression import decompress
from shmstore.serialization.msgpacking import packb
from shmstore.serialization.splitting import merge_and_deserialize

SAFE = ("custom", "msgpack")
READING = (DeserializationError, FormatVersionError)
STORED = (*READING, CorruptStoreError)
MODES = ("shared", "readonly", "private", "copy")
EXTENT = 1 << 16

KINDS = ("headers", "strings", "stored", "put", "messages", "values")


class Targets:
    """The doors, by the kinds of their cases; each returns whether it refused the forgery.

    Parameters
    ----------
    folder
        For files.
    """

    def __init__(self, folder: Path) -> None:
        self.verbose = False
        self.seeds = list(fuzz_corpus.corpus(folder).items())
        self.streams = frozenset(itertools.chain(*map(_streams, dict(self.seeds).values())))
        self.kinds: dict[str, Callable[[Noise], bool]] = {
            kind: getattr(self, f"try_{kind}") for kind in KINDS
        }
        for _, (header, frames) in self.seeds:  # whatever libraries import late is imported now
            try:
                use(self._decode(header, frames, None), thorough=True)
            except SerializationError:
                continue
        self.strings = [serialize_bytes(Serialized(*seed)) for _, seed in self.seeds]
        self.short = [seed for _, seed in self.seeds if sum(map(len, seed[1])) < EXTENT // 2]
        self.store = Store.create(capacity="16MiB")
        self.value = packb(fuzz_corpus.values())
        marked = {"a": fuzz_corpus.Serialize([1, b"x" * 99]), "b": [Serialized(*self.short[0])]}
        self.message = [bytes(frame) for frame in messages.dumps(marked, SAFE)]

    def _pick(self, noise: Noise) -> tuple[Any, list[bytes]]:
        (name, seed), (_, other) = noise.choice(self.seeds), noise.choice(self.seeds)
        header, frames = forge(seed, other, noise)
        if self.verbose:
            print(name, _shown(header), [len(frame) for frame in frames], sep="\n")
        return header, frames

    def _decode(self, header: Any, frames: Any, accepted: Any) -> Any:
        return merge_and_deserialize(header, decompress(header, frames), accepted)

    # --- each door -------------------------------------------------------------------------------

    def try_headers(self, noise: Noise) -> bool:
        """Forged headers and frames, as they come from a transport."""
        header, frames = self._pick(noise)
        accepted = noise.choice((SAFE, SAFE, None))
        views = [memoryview(noise.choice((bytes, bytearray))(frame)) for frame in frames]
        try:
            if isinstance(header, dict):
                x = self._decode(header, views, accepted)
            else:
                x = deserialize(header, views, accepted)
        except READING:
            return True
        except SerializationError:
            if any(part[key] == "error" for part, key in places([header])):
                return True
            raise
        _check_type(header, x)
        use(x, thorough=accepted is not None)
        return False

    def try_strings(self, noise: Noise) -> bool:
        """Damaged byte strings: none of them is ever an object."""
        text, other = noise.choice(self.strings), noise.choice(self.strings)
        changed = bytes(noise.choice(WAYS)(bytearray(text), other, noise))
        if changed in (text, other):
            return False
        try:
            x = deserialize_bytes(changed, noise.choice((SAFE, None)))
        except READING:
            return True
        raise AssertionError(f"a damaged string gave {x!r:.200}")

    def try_stored(self, noise: Noise) -> bool:
        """Forged headers and frame tables as they lie in the index."""
        header, frames = forge(noise.choice(self.short), noise.choice(self.short), noise)
        if isinstance(header, dict) and noise.random() < 0.9:
            header.pop("frame-nbytes", None)
            header.pop("writeable", None)
        table, placed, end = [], [], 0
        for frame in frames:
            codec = noise.choice((None,) * 40 + (["zlib", 5], ["lz4", 1 << 40], 5, "zlib", [[], 1]))
            size = len(frame) + noise.choice((0,) * 40 + (1, -1, 1 << 40))
            offset = end + noise.choice((0,) * 40 + (1, -1, 64, 1 << 63))
            table.append([offset, size, noise.choice((True, False) * 20 + (None, "x")), codec])
            placed.append((end, memoryview(frame)))
            end += -(-len(frame) // 64) * 64
        end = max(end, 64)
        table = noise.choice((table,) * 12 + (table[:-1], [*table, [0, 8, True, None]], [5], None))
        try:
            packed = packb(
                [noise.choice((headers.HEADER_VERSION,) * 60 + (1, 99, "x")), header, table]
            )
        except (TypeError, ValueError, OverflowError, RecursionError):
            return False
        if noise.random() < 0.4:
            packed = bytes(noise.choice(WAYS)(bytearray(packed), b"other", noise))
        if self.verbose:
            print(_shown(header), table, [len(frame) for frame in frames], packed, sep="\n")
        package = lay_out(packed, placed, end, None)
        ref = _writing.put(self.store._session, package, overwrite=True)
        try:
            return self._get(ref, noise)
        finally:
            self.store.discard(ref)

    def _get(self, ref: Any, noise: Noise) -> bool:
        accepted = noise.choice((SAFE, SAFE, None))
        mode = noise.choice(MODES)
        try:
            x = self.store.get(ref, mode=mode, deserializers=accepted)
        except STORED:
            return True
        except SerializationError:  # an error as payload
            return True
        use(x, thorough=accepted is not None)
        return False

    def try_put(self, noise: Noise) -> bool:
        """Forged `Serialized` given to put: refused there or when they are got."""
        header, frames = self._pick(noise)
        if self.verbose:
            print("put")
        before = self.store.stats().objects
        try:
            ref = self.store.put(
                Serialized(header, frames), compression=noise.choice((None, None, "zlib"))
            )
        except ShmStoreError:
            if self.store.stats().objects != before:
                raise AssertionError("put has left something behind") from None
            return True
        try:
            return self._get(ref, noise)
        finally:
            self.store.discard(ref)

    def try_messages(self, noise: Noise) -> bool:
        """Damaged frames of messages."""
        frames = list(self.message)
        for _ in range(noise.choice((1, 1, 2))):
            number = noise.randrange(len(frames))
            if frames[number]:
                frames[number] = bytes(
                    noise.choice(WAYS)(bytearray(frames[number]), self.value, noise)
                )
        if noise.random() < 0.1:
            noise.shuffle(frames)
        try:
            x = messages.loads(frames, noise.choice((True, False)), SAFE)
        except READING:
            return True
        except SerializationError:
            return True
        use(x, thorough=True)
        return False

    def try_values(self, noise: Noise) -> bool:
        """Damaged msgpack with extensions."""
        packed = self.value
        for _ in range(noise.choice((1, 1, 2, 4))):
            packed = bytes(noise.choice(WAYS)(bytearray(packed or b"\0"), b"\xc7\x05\x07", noise))
        try:
            x = deserialize({"serializer": "msgpack", "type": "dict"}, [packed], SAFE)
        except READING:
            return True
        use(x, thorough=True)
        return False


def _shown(header: Any) -> str:
    try:
        return ascii(header)[:3000]
    except (ValueError, RecursionError) as error:
        return f"a header that cannot be shown: {error}"


def _check_type(header: Any, x: Any) -> None:
    """Raise if an object is of another type than its header says."""
    if header.get("is-collection"):
        named, found = header["type-serialized"], type(x).__name__
    elif header.get("serializer") == "custom":
        named, found = header["type"], typename(type(x))
    else:
        return
    if named != found:
        raise AssertionError(f"the header names the type {named}, the object is {found}")


def _streams(seed: Encoded) -> list[bytes]:
    """Return the pickles of a seed, those of its parts too."""
    found: list[bytes] = []
    header, frames = seed
    waiting: list[tuple[Any, list[bytes]]] = [(header, frames)]
    while waiting:
        header, frames = waiting.pop()
        if isinstance(header, dict):
            found += [header["class"]] if isinstance(header.get("class"), bytes) else []
            if header.get("serializer") == "pickle":
                undone = decompress(header, frames) if frames else frames
                found += [bytes(frame) for frame in undone[:1]]
            waiting += [(value, frames) for value in header.values()]
            if "header" in header and type(header.get("start")) is int:
                waiting.append((header["header"], frames[header["start"] : header["stop"]]))
            if header.get("is-collection"):
                start = 0
                for sub, n in zip(header["sub-headers"], header["frame-lengths"], strict=True):
                    waiting.append((sub, frames[start : start + n]))
                    start += n
        elif isinstance(header, (list, tuple)):
            waiting += [(value, frames) for value in header]
    return found

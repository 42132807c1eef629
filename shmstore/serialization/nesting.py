"""What does a message look like when each of its markers is replaced by what it stands for?"""

from __future__ import annotations

from typing import Any

from shmstore.serialization.family import deserialize
from shmstore.serialization.markers import Pickled, Serialize, Serialized, ToPickle
from shmstore.serialization.splitting import restore


def nested_deserialize(x: Any) -> Any:
    """Return a copy of a message with its markers replaced by what they stand for.

    Parameters
    ----------
    x
        Dicts, lists and tuples (the exact types) are entered, to any depth, and copied.
        `Serialize` and `ToPickle` become their data, `Serialized` and `Pickled` the object.
    """
    kind = type(x)
    if kind in (Serialize, ToPickle):
        return x.data
    if kind in (Serialized, Pickled):
        return deserialize(*restore(x.header, x.frames))
    if kind is dict:
        return {key: nested_deserialize(value) for key, value in x.items()}
    if kind in (list, tuple):
        return kind([nested_deserialize(value) for value in x])
    return x

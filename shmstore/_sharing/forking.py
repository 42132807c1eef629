"""Where do pins go while a child is about to be born?

Concurrency: threads write while another one forks.
"""

from __future__ import annotations

import os
from typing import Any


class InFork:
    """The words of the own seat, and with them the same ones of a child that is about to be born.

    The child writes to its own seat alone: before it goes on with it, finalizers run there of what
    threads had that it has not, and hooks of others.
    """

    def __init__(self, own: Any, *of_child: Any) -> None:
        self._words, self._of_child, self._pid = own, of_child, os.getpid()

    def __setitem__(self, cell: int, value: float) -> None:
        if os.getpid() == self._pid:
            self._words[cell] = value
        for words in self._of_child:
            words[cell] = value

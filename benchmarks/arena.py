"""Who is set up while a sample is measured, and is everything gone afterwards?"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.clock import Plan
from benchmarks.machine import touch_memory
from benchmarks.peers import Peer
from benchmarks.reader import Reader, attach, detach
from benchmarks.samples import Sample
from benchmarks.scratch import uninterrupted

# How often a sample lies in memory at once, at most: the object itself and what the peers make of
# it (two copies where they overwrite; LMDB three, and one more on its way into it).
COPIES = 14


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything that a workload needs.

    Attributes
    ----------
    folder : Path
        On tmpfs.
    reader : Reader
        The other process.
    plan : Plan
        How long to measure.
    kinds : list of type
        The peers that can run here.
    samples : list of Sample
        The objects to measure with.
    """

    folder: Path
    reader: Reader
    plan: Plan
    kinds: list[type[Peer]]
    samples: list[Sample]

    @contextmanager
    def peers(self, kinds: list[type[Peer]], nbytes: int) -> Iterator[dict[str, Peer]]:
        """Create one of each kind, with the reader attached; take all of them down afterwards.

        Parameters
        ----------
        kinds : list of type
            Those to create.
        nbytes : int
            Size of the objects that will be in each.

        Yields
        ------
        dict
            The owners' ends by label.
        """
        touch_memory(2 * nbytes)
        with ExitStack() as teardown:
            created = {kind.label: self._create(kind, nbytes, teardown) for kind in kinds}
            try:
                self.reader.call(attach, [(type(peer), peer.address) for peer in created.values()])
                yield created
                self.reader.call(detach)
            except BaseException:
                self.reader.kill()  # in the middle of anything: it must stop before the rest goes
                raise

    def _create(self, kind: type[Peer], nbytes: int, teardown: ExitStack) -> Peer:
        folder = Path(mkdtemp(dir=self.folder))
        teardown.callback(_uninterrupted, shutil.rmtree, folder)
        peer = kind.create(folder, nbytes)
        teardown.callback(_uninterrupted, peer.close)
        return peer


def _uninterrupted(function: Callable[..., object], *args: object) -> None:
    with uninterrupted():
        function(*args)

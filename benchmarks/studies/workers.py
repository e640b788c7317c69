"""Who trains the packs of a study: this process, or what else has the one method that `Workers` names.

Whoever it is, a pack has a run directory with a checkpoint after every epoch, so that one whose worker is gone goes
on from there to the same numbers. Results come back to one writer, in the order of the packs.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from benchmarks.studies.pack import Pack, Watch, train_pack
from training.errors import RunError
from training.stopping import Stopping

Lines = list[dict[str, Any]]
"""What is written of each training of a pack."""
Trained = Generator[Lines, None, None]
"""The lines of one pack after another."""


class Workers(Protocol):
    """Who trains packs."""

    @property
    def at_once(self) -> int:
        """How many packs share the memory of this machine."""
        ...

    def train(self, packs: Sequence[Pack], out: Path, watch: Watch, stopping: Stopping) -> Trained:
        """Train what is left of each pack, and yield the lines of every one that is done, in the order of `packs`.

        Ends early once `stopping.requested`; what was trained until then is kept in the run directories. Closing it
        ends whatever it has begun.

        Args:
            packs: of one study, that may be trained at the same time.
            out: the directory of the study.
            watch: called as each pack begins, with the number of packs that are not done, where that is known here.

        Raises:
            RunError: a pack that cannot be trained, or whose workers die again and again.
        """
        ...


class Here:
    """This process, one pack after another."""

    at_once = 1

    def train(self, packs: Sequence[Pack], out: Path, watch: Watch, stopping: Stopping) -> Trained:
        for index, pack in enumerate(packs):
            lines = train_pack(pack, watch(pack, len(packs) - index), stopping)
            if lines:
                yield lines
            if stopping.requested is not None:
                return


def in_order(done: Generator[tuple[int, Lines], None, None]) -> Trained:
    """Lines of packs that are done at any time, in the order of their numbers, from 0 on without a gap."""
    held: dict[int, Lines] = {}
    following = 0
    with closing(done):
        for number, lines in done:
            held[number] = lines
            while following in held:
                yield held.pop(following)
                following += 1


def name_of(pack: Pack) -> str:
    """A pack in few words: the difficulty's folder and the run's."""
    return f"{pack.path.parent.name}/{pack.path.name}"


def lines_of(answer: Mapping[str, Any]) -> Lines:
    """The lines of a worker's answer; RunError with the sentence of one that has failed."""
    if "error" in answer:
        raise RunError(str(answer["error"]))
    return answer["lines"]


DONE = ": done in "
"""In what is told of a pack that is done, and of nothing else."""


def done_with(pack: Pack, lines: Lines, left: int) -> str:
    """What is told of a pack that is done."""
    diverged = sum(line["diverged"] is not None for line in lines)
    note = f", {diverged} diverged" if diverged else ""
    return f"{name_of(pack)}{DONE}{lines[0]['seconds']:.0f} s{note}; {left} {'pack' if left == 1 else 'packs'} left"

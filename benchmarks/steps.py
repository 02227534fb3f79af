"""What is worth doing while a GPU is at hand: a step is data, and stands in the suite file of its paper.

`gpu` takes the steps in order: tests of the device first, then speed, then training by worth a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.rows import Experiment

if TYPE_CHECKING:
    from benchmarks.runner import Job

KINDS = ("tests", "speed", "training")
COMPILES = 120.0  # seconds of a part whose kernels must be compiled first
Kind = Literal["tests", "speed", "training"]


@dataclass(frozen=True)
class Package:
    """A package that travels with the step that needs it, by the name that imports it.

    module: what must be importable of it where there is nothing else. without: parts of it that the step never reads.
    is_compiled: its wheel for the machine with the GPU is fetched when the stretch is packed.
    """

    name: str
    module: str
    without: tuple[str, ...] = ()
    is_compiled: bool = False


@dataclass(frozen=True)
class Step:
    """One process with a deadline. It brings back an outcome, figures, or run folders, by its kind.

    words: test files, parts of `speed/<paper>.py`, or the settings that stand for those of the experiment in a dry run.
    seconds: after them it is killed with its children. worth: the rows that it decides. experiment: of a training, what
    is trained; it goes on where an earlier stretch stopped. shares: stages that its run has from the one it takes, so
    that they need not travel twice. needs: packages beyond those that every part of the suite imports; those in plain
    Python travel. brings: packages that travel in part, or although they are compiled. also: further experiments that
    the same process trains; then `words` has one for each of them, the first included, and `together` gives the words
    behind `python -m` for their runs. recorded_by: the words behind `python -m` that write the folder which the run's
    setting `data` names; they run when the stretch is packed, and the folder travels. is_tested: the run is tested
    there too and only its record comes back, for a checkpoint that is too large to travel. test_seconds: of `seconds`
    those that are kept for this test; training that has not ended by then is killed, and the run is tested with
    `--unfinished`. 0: the test has what training leaves, and a run that is not finished is not tested.
    """

    paper: str
    name: str
    kind: Kind
    words: tuple[str, ...]
    seconds: float
    worth: float = 1.0
    experiment: Experiment | None = None
    seed: int = 0
    shares: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    also: tuple[Experiment, ...] = ()
    together: Callable[[Sequence[Job]], list[str]] | None = None
    recorded_by: Callable[[Job], list[str]] | None = None
    is_tested: bool = False
    test_seconds: float = 0.0
    brings: tuple[Package, ...] = ()

    @property
    def label(self) -> str:
        """Paper and name, unique among all steps."""
        return f"{self.paper} {self.name}"


def device_tests(paper: str, *files: str, needs: tuple[str, ...] = (), seconds: float = 40) -> Step:
    """The fast forms against the readable ones on the device, in files below the folder of the paper."""
    return Step(paper, "tests", "tests", tuple(f"{paper}/{file}" for file in files), seconds, needs=needs)


def speed(paper: str, *parts: str, needs: tuple[str, ...] = (), seconds: float = 40) -> tuple[Step, ...]:
    """Parts of `speed/<paper>.py`, each a process of its own."""
    return tuple(Step(paper, part, "speed", (f"{paper}/{part}",), seconds, needs=needs) for part in parts)


def in_order(steps: Iterable[Step]) -> list[Step]:
    """By kind, and within training by worth a second. Raises ValueError if two steps have one label."""
    found = list(steps)
    labels = [step.label for step in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"two steps are called {twice[0]}")
    return sorted(found, key=lambda step: (KINDS.index(step.kind), -step.worth / step.seconds))

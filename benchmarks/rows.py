"""What a suite is made of: experiments, and rows that compare what came of them.

Each kind of row is a class of its own; its verdict rule stands in `compare.py`. The floor of a row is the same quantity
for something that has learnt nothing: 0 on the common scale, where the published number is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks.compare import Result
    from benchmarks.content import Table
    from benchmarks.plots import Plot
    from benchmarks.published import Published
    from benchmarks.steps import Step

PAPERS = ("ha2018", "dreamerv3", "muzero", "diamond", "ijepa", "vjepa")
CALIBRATION = "calibration"


@dataclass(frozen=True)
class Experiment:
    """Runs with one claim word: what to train, on which seeds, and how to test it.

    suite: the preset of the runs and the folder of their records. settings: field=value words of the train command that
    make these runs others than those of the preset. takes: an option of the train command and the experiment whose run
    of the same seed it names, where these runs share a part with that one. evaluate: further words for the evaluate
    command; is_trained is False if there is nothing to train. minutes: the expected time of one seed. only_bench:
    `reproduce` leaves it out, since it is a control that takes long. needs: fields, or field=value words, that the user
    has to set for these runs to be made; then those of the same preset and task that need less are not.
    """

    suite: str
    task: str
    claim: str
    seeds: tuple[int, ...]
    minutes: float
    settings: tuple[str, ...] = ()
    takes: tuple[str, Experiment] | None = None
    evaluate: tuple[str, ...] = ()
    is_trained: bool = True
    needs_gpu: bool = False
    only_bench: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """One number of an experiment's records: "value", "controls/NAME", "measurements/NAME", or the name of a curve."""

    of: Experiment
    name: str = "value"


@dataclass(frozen=True)
class Number:
    """Ours against the published number of the same quantity, on the scale from the floor to the published number.

    is_official: the weights are the authors' own, so no budget of ours is compared with theirs. floor_protocol: that of
    the floor where it is another: what does not learn has the same score while others train and afterwards.
    """

    id: str
    title: str
    ours: Quantity
    floor: Quantity
    published: str
    is_official: bool = False
    floor_protocol: str = ""


@dataclass(frozen=True)
class Curve:
    """Ours against a published learning curve at equal steps.

    floor: the score of something that has learnt nothing; where the published curve has not left it there is nothing to
    compare. reduced: in what our model is smaller than the published one ("" if it is not); stands beside the verdict.
    """

    id: str
    title: str
    ours: Quantity
    published: str
    floor: Quantity
    reduced: str = ""


@dataclass(frozen=True)
class Claim:
    """Ours is greater than a control or a rival of ours, or smaller if `is_less`; with several quantities, their mean.

    asserted_by: "paper" for a claim of the paper, "us" for a check of ours. against: the control in words. is_paired:
    value by value both sides are of the same test item. equal: a size of the budget that both sides must have spent
    alike.
    """

    id: str
    title: str
    ours: tuple[Quantity, ...]
    control: tuple[Quantity, ...]
    against: str
    asserted_by: Literal["paper", "us"] = "paper"
    is_paired: bool = False
    is_less: bool = False
    equal: str = ""


@dataclass(frozen=True)
class Calibration:
    """Something untrained against its published value: whether world and protocol are those of the paper."""

    id: str
    title: str
    ours: Quantity
    published: str


@dataclass(frozen=True)
class Beside:
    """Ours beside a published number that no verdict can join it to; why: "another method's", or another reason."""

    id: str
    title: str
    ours: Quantity
    published: str
    why: str = "another method's"


Row = Number | Curve | Claim | Calibration | Beside


@dataclass(frozen=True)
class Suite:
    """All that the shared code knows of one paper.

    tasks: those that `smoke` tours. headline: the id of the row that stands for the paper, and a few words for its
    scale. budget: the sizes that published budgets of this paper are given in, each with its words. tables and plots:
    the paper's own forms, of its results by id, shown at the head of its section. speed: parts of `speed/<paper>.py`,
    each measured in a process of its own. films: the claim words of the experiment whose film the report shows. steps:
    what is done where a GPU is at hand for minutes.
    """

    paper: str
    title: str
    citation: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    headline: str
    scale: str
    budget: Mapping[str, str]
    tables: Callable[[Mapping[str, Result], Published], Sequence[Table]] = lambda results, published: ()
    plots: Callable[[Mapping[str, Result], Published], Sequence[Plot]] = lambda results, published: ()
    speed: tuple[str, ...] = ()
    film: tuple[str, str, str] = ("", "", "")
    steps: tuple[Step, ...] = ()


def experiments(row: Row) -> tuple[Experiment, ...]:
    """The experiments whose records a row needs, each once, ours first."""
    match row:
        case Number() | Curve():
            found = [row.ours, row.floor]
        case Claim():
            found = [*row.ours, *row.control]
        case _:
            found = [row.ours]
    return tuple(dict.fromkeys(quantity.of for quantity in found))


def first(row: Row) -> Experiment:
    """The experiment that a row is about."""
    return experiments(row)[0]

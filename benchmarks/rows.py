"""What a suite is made of: rows that name a measurement, its published number and its verdict rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PAPERS = ("ha2018", "dreamerv3", "muzero", "diamond", "ijepa", "vjepa")

# number: our value against a published one. calibration: the same for something untrained, without a budget.
# claim: our value against a control of the same record, or against another run. curve: ours against a published one.
# beside: our value against the published one of another method, which it cannot reproduce.
Kind = Literal["number", "calibration", "claim", "curve", "beside"]


@dataclass(frozen=True)
class Row:
    """One row of the verdict table.

    suite and claim select the records, by the words that stand in them; seeds are those that the suite runs.
    published is the key of a published number (of a published curve for kind "curve"); a claim may have none.
    quantity is "value", "controls/NAME", "measurements/NAME" or, for kind "curve", the name of a curve.
    control is the name of a control, for kind "claim" only.
    rival is, in place of a control, the claim word of other records of the same suite, task and seed: our value against
    theirs. rival_settings are to that run what settings are to ours.
    fraction_of is the budget column that gives the x of "reduced (x %)"; a rival must have spent the same of it.
    evaluate holds further words for the evaluate command; is_trained is False if there is nothing to train.
    minutes is the expected time of one seed on the hardware that the preset is for.
    settings are field=value words of the train command that make this run another one than that of the preset.
    shares_world: V and M of a run with settings come from the run of that preset and seed without them, which stands
    before.
    only_bench: `reproduce` leaves the row out, since it is a control that takes long.
    """

    id: str
    title: str
    kind: Kind
    suite: str
    task: str
    seeds: tuple[int, ...]
    claim: str
    published: str
    minutes: float
    quantity: str = "value"
    control: str = ""
    rival: str = ""
    rival_settings: tuple[str, ...] = ()
    fraction_of: str = "env_frames"
    evaluate: tuple[str, ...] = ()
    is_trained: bool = True
    settings: tuple[str, ...] = ()
    shares_world: bool = False
    only_bench: bool = False

    @property
    def needs_gpu(self) -> bool:
        """Whether `bench` leaves this row out on a machine without a GPU."""
        return self.suite in ("gpu", "paper")


@dataclass(frozen=True)
class Suite:
    """The rows of one paper. `tasks` are those that `smoke` tours."""

    paper: str
    title: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]

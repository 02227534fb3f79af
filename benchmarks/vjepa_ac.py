"""Rows of V-JEPA 2-AC and planning, for the suite of vjepa: goals reached in Two Rooms and Wall."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from benchmarks.rows import Claim, Experiment, Number, Quantity, Row

SUCCESS, SEEDS = "plan-success", (0, 1, 2)
RANDOM = "controls/random policy"
CPU = Experiment("cpu", "two-rooms", SUCCESS, SEEDS, minutes=8)
FULL = Experiment("gpu", "two-rooms", SUCCESS, SEEDS, minutes=30, needs_gpu=True)
FULL_RANDOM = replace(FULL, task="two-rooms-random")
WALL = Experiment("night", "wall", f"{SUCCESS}-ac", (0,), minutes=150)


def without(of: Experiment, word: str, *settings: str, minutes: float | None = None) -> Experiment:
    """The same with another setting, which its claim names."""
    spent = of.minutes if minutes is None else minutes
    return replace(of, claim=f"{of.claim}-{word}", settings=settings, minutes=spent, only_bench=True)


def reached(name: str, title: str, of: Experiment, rivals: dict[str, Quantity]) -> tuple[Row, ...]:
    """More goals than each rival."""
    return tuple(
        Claim(
            id=f"{name}-{word.replace(' ', '-')}",
            title=f"{title}: more goals reached than {word}",
            ours=(Quantity(of),),
            control=(rival,),
            against=word,
            asserted_by="us",
        )
        for word, rival in rivals.items()
    )


def ablation(of: Experiment, where: str, asserted_by: Literal["paper", "us"] = "paper") -> Claim:
    """Without inverse dynamics; printed for random walls, where it costs all: 97 to 1 %."""
    return Claim(
        id=f"{of.task}-{of.suite}-inverse-dynamics",
        title=f"{where}: more goals reached than without inverse dynamics",
        ours=(Quantity(of),),
        control=(Quantity(without(of, "no-inverse-dynamics", "inverse_dynamics=0.0")),),
        against="no inverse dynamics",
        asserted_by=asserted_by,
        equal="updates",
    )


ROWS: tuple[Row, ...] = (
    *reached(
        "two-rooms",
        "Two Rooms, small recipe",
        CPU,
        {
            "a random policy": Quantity(CPU, RANDOM),
            "an untrained model": Quantity(without(CPU, "untrained", "updates=0", minutes=4)),
        },
    ),
    ablation(CPU, "Two Rooms, small recipe, fixed wall", "us"),
    Number(
        id="two-rooms-fixed",
        title="Two Rooms, fixed wall: goals reached",
        ours=Quantity(FULL),
        floor=Quantity(FULL, RANDOM),
        published="two-rooms-fixed-wall",
    ),
    Number(
        id="two-rooms-random-walls",
        title="Two Rooms, random walls: goals reached",
        ours=Quantity(FULL_RANDOM),
        floor=Quantity(FULL_RANDOM, RANDOM),
        published="two-rooms-random-wall-mppi",
    ),
    ablation(FULL_RANDOM, "Two Rooms, random walls"),
    *reached(
        "wall",
        "Wall, V-JEPA 2-AC",
        WALL,
        {
            "a random policy": Quantity(WALL, RANDOM),
            "with an untrained encoder": Quantity(without(WALL, "untrained-encoder", "encoder_updates=0")),
            "without the rollout loss": Quantity(without(WALL, "no-rollout-loss", "rollout_steps=1")),
        },
    ),
)

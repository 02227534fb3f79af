"""Rows of MuZero (Schrittwieser et al., Nature 2020) with Reanalyze and Gumbel MuZero: boards, a pole, Atari 100k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.compare import Result
from benchmarks.plots import Plot, over_settings
from benchmarks.published import Published
from benchmarks.rows import Claim, Experiment, Number, Quantity, Row, Suite
from benchmarks.steps import Step, device_tests, speed

PLAYS = "plays"
SEEDS = (0, 1, 2)
CLASSES = ("begin-easy", "middle-easy", "end-easy", "begin-medium", "middle-medium", "begin-hard")
GRADED = (1, 10, 50, 200)
FEW = (2, 4, 16)  # simulations at which the Gumbel paper compares both policies
GAME = "pong"

CPU = Experiment("cpu", "tictactoe", PLAYS, SEEDS, minutes=8)
PERFECT = Experiment("night", "tictactoe", PLAYS, SEEDS, minutes=25)
NIGHT = Experiment("night", "connect4", PLAYS, (0,), minutes=150)
POLE = Experiment("night", "cartpole", PLAYS, SEEDS, minutes=15)
SHORT_POLE = replace(POLE, claim=f"{PLAYS}-n20", settings=("td_steps=20",), only_bench=True)
SMALL_POLE = Experiment("cpu", "cartpole", PLAYS, SEEDS, minutes=8, only_bench=True)
ATARI = Experiment("gpu", f"atari100k_{GAME}", PLAYS, (0,), minutes=25, needs_gpu=True)


def untrained(of: Experiment) -> Experiment:
    """The same network and search without an update."""
    return replace(of, claim=f"{of.claim}-untrained", settings=(*of.settings, "updates=0"), minutes=1)


def tictactoe() -> tuple[Row, ...]:
    """No reply may beat the agent."""
    title = "Tic-tac-toe: of all lines of play against the agent, the share not lost"
    rows: list[Row] = [
        Claim(
            id="tictactoe-perfect",
            title="Tic-tac-toe: of all lines of play against the agent, not one is lost",
            ours=(Quantity(PERFECT),),
            control=(Quantity(PERFECT, "controls/one line lost"),),
            against="one line lost",
            asserted_by="us",
        )
    ]
    for run, word in ((PERFECT, "-night"), (CPU, "")):
        rows += [
            Claim(
                id=f"tictactoe{word}",
                title=f"{title}, more than with an untrained network and the same search",
                ours=(Quantity(run),),
                control=(Quantity(untrained(run)),),
                against="an untrained network with the same search",
                asserted_by="us",
            ),
            Claim(
                id=f"tictactoe-random{word}",
                title=f"{title}, more than of uniform play",
                ours=(Quantity(run),),
                control=(Quantity(run, "controls/uniform random"),),
                against="uniform random play",
                asserted_by="us",
            ),
        ]
    return tuple(rows)


def graded(name: str, label: str) -> Quantity:
    """The share of mistakes in one class of positions."""
    return Quantity(NIGHT, f"measurements/{name}: mistakes, {label}")


def connect4() -> tuple[Row, ...]:
    """Games, and moves graded by exact values."""
    rows: list[Row] = [
        Claim(
            id="connect4-depth5",
            title="Connect four: more than half of the points against alpha-beta of five plies",
            ours=(Quantity(NIGHT),),
            control=(Quantity(NIGHT, "controls/even games"),),
            against="even games",
            asserted_by="us",
        ),
        Claim(
            id="connect4-random",
            title="Connect four: more points against alpha-beta of five plies than uniform play",
            ours=(Quantity(NIGHT),),
            control=(Quantity(NIGHT, "controls/uniform random"),),
            against="uniform random play",
            asserted_by="us",
        ),
    ]
    for name in CLASSES:
        rows.append(
            Claim(
                id=f"connect4-{name}",
                title=f"Connect four, {name}: 200 simulations err less often than alpha-beta of five plies",
                ours=(graded(name, "200 simulations"),),
                control=(graded(name, "alpha-beta of 5 plies"),),
                against="alpha-beta of five plies",
                asserted_by="us",
                is_paired=True,
                is_less=True,
            )
        )
    every = [tuple(graded(name, f"{count} simulations") for name in CLASSES) for count in GRADED]
    rows += [
        Claim(
            id="connect4-more-simulations",
            title="Connect four: the agent errs less often at 200 simulations than at 10 (planning makes it stronger)",
            ours=every[3],
            control=every[1],
            against="10 simulations",
            is_paired=True,
            is_less=True,
        ),
        Claim(
            id="connect4-true-rules",
            title="Connect four: planning with the learned model errs more often than with the true rules",
            ours=every[2],
            control=tuple(graded(name, "50 simulations with the true rules") for name in CLASSES),
            against="the true rules",
            asserted_by="us",
            is_paired=True,
        ),
    ]
    return tuple(rows)


def pole() -> tuple[Row, ...]:
    """CartPole: the bar, few simulations with both policies, and Reanalyze at equal steps."""
    rows: list[Row] = [
        Claim(
            id="cartpole",
            title="CartPole: return above 475 of 500, where the task counts as solved",
            ours=(Quantity(POLE),),
            control=(Quantity(POLE, "controls/solved, by gymnasium"),),
            against="475",
            asserted_by="us",
        ),
        Claim(
            id="cartpole-untrained",
            title="CartPole: more return than with an untrained network and the same search",
            ours=(Quantity(POLE),),
            control=(Quantity(untrained(POLE)),),
            against="an untrained network with the same search",
            asserted_by="us",
        ),
    ]
    rows.append(
        Claim(
            id="cartpole-n20",
            title="CartPole: targets of 50 steps get more return than targets of 20",
            ours=(Quantity(POLE),),
            control=(Quantity(SHORT_POLE),),
            against="targets of 20 steps",
            asserted_by="us",
            equal="updates",
        )
    )
    for count in FEW:
        # The preset's own number stands in no claim word.
        few = () if count == FEW[-1] else (f"simulations={count}",)
        word = "" if count == FEW[-1] else f"-sims{count}"
        plain = replace(SMALL_POLE, claim=f"{PLAYS}{word}", settings=few)
        halving = replace(SMALL_POLE, claim=f"{PLAYS}-gumbel{word}", settings=("policy=gumbel", *few))
        rows.append(
            Claim(
                id=f"cartpole-gumbel-{count}",
                title=f"CartPole: Gumbel MuZero gets more return than MuZero with {count} simulations a move",
                ours=(Quantity(halving),),
                control=(Quantity(plain),),
                against="MuZero's own policy",
                equal="env_steps",
            )
        )
    for share in ("0.5", "1"):
        fresh = replace(SMALL_POLE, claim=f"{PLAYS}-reanalyze{share}", settings=(f"reanalyze={float(share)}",))
        rows.append(
            Claim(
                id=f"cartpole-reanalyze-{share}",
                title=f"CartPole: Reanalyze on a share of {share} gets more return from as many steps of the world",
                ours=(Quantity(fresh),),
                control=(Quantity(SMALL_POLE),),
                against="no Reanalyze",
                equal="env_steps",
            )
        )
    penalty = replace(SMALL_POLE, claim=f"{PLAYS}-penalty", settings=("weight_decay=0.0001",))
    rows.append(
        Claim(
            id="cartpole-penalty",
            title="CartPole, trained by Adam: more return without the paper's penalty on weights than with it",
            ours=(Quantity(SMALL_POLE),),
            control=(Quantity(penalty),),
            against="the penalty",
            asserted_by="us",
            equal="env_steps",
        )
    )
    return tuple(rows)


def plots(results: Mapping[str, Result], published: Published) -> Sequence[Plot]:
    """Return with few simulations a move."""
    both = [(float(count), results[f"cartpole-gumbel-{count}"]) for count in FEW]
    series = {
        "Gumbel MuZero (ours)": both,
        "MuZero's own policy (ours)": [(count, replace(result, ours=result.other)) for count, result in both],
    }
    caption = "CartPole: return of both policies by the simulations of a move, in training and in the test (preset cpu)"
    return over_settings("muzero-simulations", caption, "simulations a move", "return", series)


NEEDS = ("numba",)
SPEED = ("measure", "measure_connect4")

SUITE = Suite(
    paper="muzero",
    title="MuZero",
    citation="Schrittwieser et al., Nature 588, 2020",
    tasks=("tictactoe", "cartpole"),
    headline="tictactoe-perfect",
    scale="tic-tac-toe from self-play of 40,000 updates, every reply of an opponent",
    budget={"env_frames": "environment frames", "env_steps": "moves of self-play", "updates": "updates"},
    rows=(
        *tictactoe(),
        *connect4(),
        *pole(),
        Number(
            id=f"gpu-score-{GAME}",
            title=f"Atari 100k, {GAME.capitalize()}: score (MuZero by other authors)",
            ours=Quantity(ATARI),
            floor=Quantity(ATARI, "controls/uniform random"),
            published=f"atari100k-{GAME}",
        ),
    ),
    speed=SPEED,
    plots=plots,
    film=("night", "connect4", PLAYS),
    steps=(
        device_tests("muzero", "tests/test_gpu.py", needs=NEEDS),
        *speed("muzero", *SPEED, needs=NEEDS),
        Step(
            "muzero",
            "connect4",
            "training",
            ("updates=4",),
            200,
            10,
            replace(NIGHT, settings=("device=cuda",)),
            needs=NEEDS,
        ),
    ),
)

"""Rows of DreamerV3 (Hafner et al., arXiv 2301.04104 v2 and Nature 2025). Every title names the edition."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rows import Claim, Curve, Experiment, Number, Quantity, Row, Suite
from benchmarks.steps import device_tests, speed

LEARNS = "learns"
SEEDS = (0, 1, 2)
CPU_TASK = "cartpole_balance"
NIGHT_TASKS = ("walker_walk", "cartpole_balance")
GPU_TASK = "walker_walk"
SMALLER = {
    "cpu": "size 1m in place of 12m, batch 8 x 32 in place of 16 x 64",
    "night": "size 1m in place of 12m",
    "gpu": "",
}
# What the paper says makes the agent robust, switched off.
WITHOUT = (
    ("free0", "without free bits", ("free_nats=0.0",)),
    ("no-symlog", "without symlog", ("use_symlog=False",)),
    ("no-two-hot", "with squared errors in place of two-hot", ("use_two_hot=False",)),
)
# Few steps, so that the highest ratio, of which an update costs the same, stays a matter of minutes.
FEW_FRAMES = "env_frames=5000"


def _words(name: str) -> str:
    return f"Control from vectors, {name.replace('_', ' ')}"


def proprio(suite: str, name: str, seeds: tuple[int, ...], minutes: float) -> tuple[Row, ...]:
    """Score and training curve of a task from vectors, beside the arXiv v2 run."""
    run = Experiment(suite, f"dmc_proprio_{name}", LEARNS, seeds, minutes, needs_gpu=suite == "gpu")
    return (
        Number(
            id=f"{suite}-score-{name}",
            title=f"{_words(name)}: return (arXiv v2)",
            ours=Quantity(run),
            floor=Quantity(run, "controls/uniform random"),
            published=f"dmc_proprio-{name}",
        ),
        Curve(
            id=f"{suite}-curve-{name}",
            title=f"{_words(name)}: training return at equal environment steps (arXiv v2)",
            ours=Quantity(run, "training return"),
            published=f"dmc_proprio-{name}",
            reduced=SMALLER[suite],
        ),
    )


CPU = Experiment("cpu", f"dmc_proprio_{CPU_TASK}", LEARNS, SEEDS, minutes=8)
CPU_ONE = replace(CPU, seeds=(0,), only_bench=True)


def better(id: str, title: str, ours: Experiment, control: Experiment, against: str) -> Claim:
    """A robustness claim of the paper at small scale: one run beats another after the same environment steps."""
    return Claim(
        id=f"cpu-{id}",
        title=f"{_words(CPU_TASK)}: {title} at equal environment steps (arXiv v2)",
        ours=(Quantity(ours),),
        control=(Quantity(control),),
        against=against,
        equal="env_frames",
    )


def without(word: str, words: str, off: tuple[str, ...]) -> Claim:
    """The agent of the preset against one that lacks a part."""
    control = replace(CPU_ONE, claim=f"{LEARNS}-{word}", settings=off)
    return better(word, f"the agent beats one {words}", CPU_ONE, control, f"an agent {words}")


def ratio(higher: int, lower: int) -> Claim:
    """A train ratio against a lower one."""
    runs = {
        number: replace(
            CPU_ONE,
            claim=f"{LEARNS}-frames5000-ratio{number}",
            settings=(FEW_FRAMES, f"train_ratio={number}.0"),
            minutes=minutes,
        )
        for number, minutes in ((512, 15), (128, 4), (32, 1))
    }
    title = f"train ratio {higher} beats {lower}"
    return better(f"ratio{higher}", title, runs[higher], runs[lower], f"train ratio {lower}")


BOXING = Experiment("gpu", "atari100k_boxing", LEARNS, (0,), minutes=25, needs_gpu=True)

NEEDS = ("PIL",)
SPEED = ("measure", "measure_12m", "measure_200m")

SUITE = Suite(
    paper="dreamerv3",
    title="DreamerV3",
    citation="Hafner et al., arXiv 2301.04104 v2 and Nature 2025",
    tasks=(f"dmc_proprio_{CPU_TASK}", "crafter"),
    headline="night-score-walker_walk",
    scale="walker walk from vectors, size 1m, 40,000 frames",
    budget={"env_frames": "environment frames", "updates": "updates"},
    rows=(
        *(row for name in NIGHT_TASKS for row in proprio("night", name, (0,), 110)),
        Claim(
            id="learns",
            title=f"{_words(CPU_TASK)}: more than twice the return of random play (arXiv v2)",
            ours=(Quantity(CPU),),
            control=(Quantity(CPU, "controls/twice uniform random"),),
            against="twice the return of random play",
            asserted_by="us",
        ),
        *proprio("cpu", CPU_TASK, SEEDS, 8),
        *(without(*part) for part in WITHOUT),
        ratio(512, 128),
        ratio(128, 32),
        *proprio("gpu", GPU_TASK, SEEDS, 25),
        Number(
            id="gpu-score-boxing",
            title="Atari 100k, Boxing: score (arXiv v2, preprocessing of its released configuration)",
            ours=Quantity(BOXING),
            floor=Quantity(BOXING, "controls/uniform random"),
            published="atari100k-boxing",
        ),
    ),
    speed=SPEED,
    film=("night", "dmc_proprio_walker_walk", LEARNS),
    # No run: it learns while it plays, so its simulator would travel, and at size 12m its checkpoint is too large to.
    steps=(device_tests("dreamerv3", "tests/test_gpu.py", needs=NEEDS), *speed("dreamerv3", *SPEED, needs=NEEDS)),
)

"""Rows of DreamerV3 (Hafner et al., arXiv 2301.04104 v2 and Nature 2025). Every title names the edition."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rows import Beside, Claim, Curve, Experiment, Number, Quantity, Row, Suite
from benchmarks.steps import COMPILES, Package, Step, device_tests, speed

LEARNS = "learns"
SCALED = "learns-lr-by-size"
SEEDS = (0, 1, 2)
CPU_TASK = "cartpole_balance"
NIGHT_TASKS = ("walker_walk", "cartpole_balance")
GPU_TASK = "walker_walk"
SMALLER = {
    "cpu": "size 1m in place of 12m, batch 8 x 32 in place of 16 x 64",
    "night": "size 1m in place of 12m",
    "gpu": "",
}
RULES = {"atari100k": ", preprocessing of its released configuration"}
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


def scores(run: Experiment, id: str, title: str, published: str) -> tuple[Row, ...]:
    """The score of the last training episodes as published, and beside it that of fresh episodes."""
    benchmark = published.split("-")[0]
    return (
        Number(
            id=id,
            title=f"{title} of the last training episodes (arXiv v2{RULES.get(benchmark, '')})",
            ours=Quantity(run, "measurements/last training episodes"),
            floor=Quantity(run, "controls/uniform random"),
            published=published,
            floor_protocol=f"{benchmark}-episodes",
        ),
        Beside(
            id=f"{id}-fresh",
            title=f"{title} of fresh episodes after training (arXiv v2{RULES.get(benchmark, '')})",
            ours=Quantity(run),
            published=published,
            why="of training episodes",
        ),
    )


def proprio(run: Experiment, name: str, word: str = "", words: str = "") -> tuple[Row, ...]:
    """Score and training curve of a task from vectors, beside the arXiv v2 run; word and words: in what it differs."""
    kind, said = "-".join(filter(None, (run.suite, word))), f"{words}, " if words else ""
    return (
        *scores(run, f"{kind}-score-{name}", f"{_words(name)}: {said}return", f"dmc_proprio-{name}"),
        Curve(
            id=f"{kind}-curve-{name}",
            title=f"{_words(name)}: {said}training return at equal environment steps (arXiv v2)",
            ours=Quantity(run, "training return"),
            published=f"dmc_proprio-{name}",
            floor=Quantity(run, "controls/uniform random"),
            reduced=SMALLER[run.suite],
        ),
    )


def night(name: str) -> tuple[Row, ...]:
    """A task with the learning rate of the authors' rule, and its control with that of the larger networks."""
    run = Experiment("night", f"dmc_proprio_{name}", SCALED, (0, 1), minutes=110)
    control = replace(run, claim=LEARNS, seeds=(0,), settings=("lr_by_size=False",), only_bench=True)
    return (
        *proprio(run, name),
        Claim(
            id=f"night-scaled-{name}",
            title=f"{_words(name)}: the learning rate scaled to the size beats that of larger networks (arXiv v2)",
            ours=(Quantity(run),),
            control=(Quantity(control),),
            against="learning rate unscaled",
            asserted_by="us",
            equal="env_frames",
        ),
        *proprio(control, name, "unscaled", "learning rate unscaled"),
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


GPU = Experiment("gpu", f"dmc_proprio_{GPU_TASK}", LEARNS, SEEDS, minutes=8, needs_gpu=True)
BOXING = Experiment("gpu", "atari100k_boxing", LEARNS, (0,), minutes=25, needs_gpu=True)

NEEDS = ("PIL",)
SPEED = ("measure", "measure_12m", "measure_200m")
# It learns while it plays, so the simulator travels: without its library of bodies, its other worlds and its viewer.
SIMULATOR = (
    Package(
        "dm_control",
        "dm_control.suite.walker",
        without=(
            *(f"dm_control/{part}/" for part in ("blender", "composer", "entities", "locomotion", "manipulation")),
            *(
                f"dm_control/{part}/"
                for part in ("mjcf", "mujoco/testing", "suite/dog_assets", "third_party", "viewer")
            ),
            "dm_control/suite/all_domains.png",
        ),
    ),
    Package(
        "mujoco",
        "mujoco",
        without=tuple(f"mujoco/{part}/" for part in ("include", "introspect", "mjx", "plugin", "testdata", "usd")),
        is_compiled=True,
    ),
)
SIMULATOR_NEEDS = ("absl", "dm_env", "lxml", "scipy")

SUITE = Suite(
    paper="dreamerv3",
    title="DreamerV3",
    citation="Hafner et al., arXiv 2301.04104 v2 and Nature 2025",
    tasks=(f"dmc_proprio_{CPU_TASK}", "crafter"),
    headline="night-score-cartpole_balance",
    scale="cartpole balance from vectors, size 1m, 40,000 frames",
    budget={"env_frames": "environment frames", "updates": "updates", "parameters": "parameters"},
    rows=(
        *(row for name in NIGHT_TASKS for row in night(name)),
        Claim(
            id="learns",
            title=f"{_words(CPU_TASK)}: more than twice the return of random play (arXiv v2)",
            ours=(Quantity(CPU),),
            control=(Quantity(CPU, "controls/twice uniform random"),),
            against="twice the return of random play",
            asserted_by="us",
        ),
        *proprio(CPU, CPU_TASK),
        *(without(*part) for part in WITHOUT),
        ratio(512, 128),
        ratio(128, 32),
        *proprio(GPU, GPU_TASK),
        *scores(BOXING, "gpu-score-boxing", "Atari 100k, Boxing: score", "atari100k-boxing"),
    ),
    speed=SPEED,
    film=("night", "dmc_proprio_cartpole_balance", SCALED),
    steps=(
        device_tests("dreamerv3", "tests/test_gpu.py", needs=NEEDS),
        *speed("dreamerv3", *SPEED, needs=NEEDS, seconds=COMPILES),
        # At size 12m a checkpoint, to which the replay belongs, is too large to travel.
        Step(
            "dreamerv3",
            GPU_TASK,
            "training",
            ("env_frames=100", "test_episodes=1", "checkpoint_seconds=60"),
            420,
            4,
            GPU,
            needs=(*NEEDS, *SIMULATOR_NEEDS),
            brings=SIMULATOR,
            is_tested=True,
            test_seconds=90,
        ),
    ),
)

"""Rows of DreamerV3 (Hafner et al., arXiv 2301.04104 v2 and Nature 2025). Every title names the edition."""

from __future__ import annotations

from typing import Any

from benchmarks.rows import Row, Suite

LEARNS = "learns"
SEEDS = (0, 1, 2)
CPU_TASK = "cartpole_balance"
NIGHT_TASKS = ("cartpole_balance", "walker_walk")
GPU_TASK = "walker_walk"
# What the paper says makes the agent robust, switched off.
WITHOUT = (
    ("free0", "without free bits", ("free_nats=0.0",)),
    ("no-symlog", "without symlog", ("use_symlog=False",)),
    ("no-two-hot", "with squared errors in place of two-hot", ("use_two_hot=False",)),
)
# Few steps, so that the highest ratio, of which an update costs the same, stays a matter of minutes.
FEW_FRAMES = "env_frames=5000"


def _proprio(suite: str, name: str, seeds: tuple[int, ...], minutes: float) -> tuple[Row, Row]:
    """Score and training curve of a task from vectors, beside the arXiv v2 run."""
    task, words = f"dmc_proprio_{name}", name.replace("_", " ")
    score = Row(
        id=f"score-{suite}-{name}",
        title=f"Control from vectors, {words}: return (arXiv v2)",
        kind="number",
        suite=suite,
        task=task,
        seeds=seeds,
        claim=LEARNS,
        published=f"dmc_proprio-{name}",
        fraction_of="updates",
        minutes=minutes,
    )
    curve = Row(
        id=f"curve-{suite}-{name}",
        title=f"Control from vectors, {words}: training return at the same environment step (arXiv v2)",
        kind="curve",
        suite=suite,
        task=task,
        seeds=seeds,
        claim=LEARNS,
        published=f"dmc_proprio-{name}",
        quantity="training return",
        minutes=minutes,
    )
    return score, curve


def _better(id: str, title: str, **runs: Any) -> Row:
    """A robustness claim of the paper at small scale: one run beats another after the same environment steps."""
    return Row(
        id=f"cpu-{id}",
        title=f"Control from vectors, {CPU_TASK.replace('_', ' ')}: {title} at equal environment steps (arXiv v2)",
        kind="claim",
        suite="cpu",
        task=f"dmc_proprio_{CPU_TASK}",
        seeds=(0,),
        published="",
        only_bench=True,
        **runs,
    )


def _without(word: str, words: str, off: tuple[str, ...]) -> Row:
    """The agent of the preset against one that lacks a part."""
    rival = {"rival": f"{LEARNS}-{word}", "rival_settings": off}
    return _better(word, f"the agent beats one {words}", claim=LEARNS, minutes=16, **rival)


def _ratio(higher: int, lower: int, minutes: float) -> Row:
    """A train ratio against a lower one."""
    (claim, settings), (rival, rival_settings) = (
        (f"{LEARNS}-frames5000-ratio{ratio}", (FEW_FRAMES, f"train_ratio={ratio}.0")) for ratio in (higher, lower)
    )
    runs = {"claim": claim, "settings": settings, "rival": rival, "rival_settings": rival_settings}
    return _better(f"ratio{higher}", f"train ratio {higher} beats {lower}", minutes=minutes, **runs)


SUITE = Suite(
    paper="dreamerv3",
    title="DreamerV3",
    tasks=(f"dmc_proprio_{CPU_TASK}", "crafter"),
    rows=(
        Row(
            id="learns",
            title=f"Control from vectors, {CPU_TASK.replace('_', ' ')}: more than twice the return of random play "
            "(arXiv v2)",
            kind="claim",
            suite="cpu",
            task=f"dmc_proprio_{CPU_TASK}",
            seeds=SEEDS,
            claim=LEARNS,
            published=f"dmc_proprio-{CPU_TASK}",
            control="twice uniform random",
            minutes=8,
        ),
        *_proprio("cpu", CPU_TASK, SEEDS, 8),
        *(row for name in NIGHT_TASKS for row in _proprio("night", name, (0,), 110)),
        *(_without(*part) for part in WITHOUT),
        _ratio(512, 128, minutes=15),
        _ratio(128, 32, minutes=4),
        *_proprio("gpu", GPU_TASK, SEEDS, 25),
        Row(
            id="score-gpu-boxing",
            title="Atari 100k, Boxing: score (arXiv v2, preprocessing of its released configuration)",
            kind="number",
            suite="gpu",
            task="atari100k_boxing",
            seeds=(0,),
            claim=LEARNS,
            published="atari100k-boxing",
            minutes=25,
        ),
    ),
)

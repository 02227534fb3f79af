"""Rows of DreamerV3 (Hafner et al., arXiv 2301.04104 v2 and Nature 2025). Every title names the edition."""

from __future__ import annotations

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
RATIO_128, RATIO_32 = ((f"{LEARNS}-ratio{ratio}", (f"train_ratio={ratio}.0",)) for ratio in (128, 32))


def _proprio(suite: str, name: str, minutes: float) -> tuple[Row, Row]:
    """Score and training curve of a task from vectors, beside the arXiv v2 run."""
    task, words = f"dmc_proprio_{name}", name.replace("_", " ")
    score = Row(
        id=f"score-{suite}-{name}",
        title=f"Control from vectors, {words}: return (arXiv v2)",
        kind="number",
        suite=suite,
        task=task,
        seeds=SEEDS,
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
        seeds=SEEDS,
        claim=LEARNS,
        published=f"dmc_proprio-{name}",
        quantity="training return",
        minutes=minutes,
    )
    return score, curve


def _better(
    id: str,
    title: str,
    rival: str,
    rival_settings: tuple[str, ...],
    claim: str = LEARNS,
    settings: tuple[str, ...] = (),
) -> Row:
    """A robustness claim of the paper at the night preset: one run beats another after the same environment steps."""
    return Row(
        id=f"night-{id}",
        title=f"Control from vectors, {CPU_TASK.replace('_', ' ')}: {title} at equal environment steps (arXiv v2)",
        kind="claim",
        suite="night",
        task=f"dmc_proprio_{CPU_TASK}",
        seeds=(0,),
        claim=claim,
        settings=settings,
        published="",
        rival=rival,
        rival_settings=rival_settings,
        minutes=150,
    )


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
        *_proprio("cpu", CPU_TASK, 8),
        *(row for name in NIGHT_TASKS for row in _proprio("night", name, 150)),
        *(_better(word, f"the agent beats one {words}", f"{LEARNS}-{word}", off) for word, words, off in WITHOUT),
        _better("ratio512", "train ratio 512 beats 128", *RATIO_128),
        _better("ratio128", "train ratio 128 beats 32", *RATIO_32, *RATIO_128),
        *_proprio("gpu", GPU_TASK, 25),
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

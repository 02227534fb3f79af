"""Rows of DIAMOND (Alonso et al., arXiv 2405.12399)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.rows import Claim, Experiment, Number, Quantity, Suite
from benchmarks.steps import COMPILES, Step, speed

if TYPE_CHECKING:
    from benchmarks.runner import Job

SEEDS = (0, 1, 2)

# Recorded play: the world model alone, beside its rival of the same size, data and updates.
EDM = Experiment("cpu", "video_pong", "video", SEEDS, minutes=8)
COIN = Experiment("cpu", "video_coin", "video", SEEDS, minutes=4, only_bench=True)
NIGHT_EDM = Experiment("night", "video_pong", "video", (0,), minutes=100)
GPU_EDM = Experiment("gpu", "video_pong", "video", (0,), minutes=8, needs_gpu=True)

# A small pixel game: the agent that learnt in its imagination, and what it must be better than.
CATCH = Experiment("night", "catch", "agent", SEEDS, minutes=50)
BLIND = replace(CATCH, claim="agent-world-untrained", settings=("denoiser_updates=0",), only_bench=True)
REAL = replace(
    CATCH,
    claim="agent-real",
    settings=("is_imagined=False", "denoiser_updates=0", "reward_end_updates=0"),  # it needs no model
    minutes=8,
    only_bench=True,
)

BOXING = Experiment("gpu", "atari100k_boxing", "agent", (0,), minutes=30, needs_gpu=True)

PONG = {
    "cpu": "Pong, 24 x 24 pixels, videos of 500 frames",
    "night": "Pong, 32 x 32 pixels, videos of 1,000 frames",
    "gpu": "Pong, 64 x 64 pixels, videos of 1,000 frames",
}

PLAY = "runs/diamond/play-pong"  # recorded play of the size that a GPU trains on

# Of each network, for a step that is tried out.
ONE_UPDATE = (
    "last_epochs=0", "env_steps=40", "collect_most=40", "horizon=1",
    "denoiser_first=1", "reward_end_first=1", "actor_critic_first=1",
)  # fmt: skip


def rivals(edm: Experiment) -> tuple[Experiment, Experiment, Experiment]:
    """DDPM of equal size, data and updates, and both without any training."""
    ddpm = replace(edm, claim="video-ddpm", settings=("diffusion=ddpm",), only_bench=True)
    untrained, untrained_ddpm = (
        replace(one, claim=f"{one.claim}-untrained", settings=(*one.settings, "denoiser_updates=0"), only_bench=True)
        for one in (edm, ddpm)
    )
    return ddpm, untrained, untrained_ddpm


def drift_rows(edm: Experiment) -> list[Claim]:
    """EDM against DDPM, for each number of denoising steps, and EDM against floors."""
    ddpm, untrained, untrained_ddpm = rivals(edm)
    rows = [_drifts(edm, ddpm, ours, theirs) for theirs, ours in ((3, 3), (1, 1), (10, 10), (10, 1))]
    for id, ours, control, words, against in (
        ("untrained", Quantity(edm), Quantity(untrained), "EDM drifts less from reality trained than untrained",
         "EDM, untrained"),
        ("untrained-ddpm", Quantity(untrained), Quantity(untrained_ddpm),
         "EDM drifts less than DDPM when neither has been trained", "DDPM, untrained"),
        ("copy", Quantity(edm), Quantity(edm, "controls/copy of the last frame"),
         "EDM drifts less than the last real frame for ever", "the last real frame for ever"),
        ("mean", Quantity(edm), Quantity(edm, "controls/mean frame"), "EDM is nearer to reality than the mean frame",
         "the mean frame"),
    ):  # fmt: skip
        rows.append(
            Claim(
                id=f"{edm.suite}-drift-{id}",
                title=f"{PONG[edm.suite]}, 3 steps a frame: {words}",
                ours=(ours,),
                control=(control,),
                against=against,
                asserted_by="us",
                is_paired=True,
                is_less=True,
            )
        )
    return rows


def _drifts(edm: Experiment, ddpm: Experiment, edm_steps: int, ddpm_steps: int) -> Claim:
    """Source: paper, section 5.1 and Appendix K: few denoising steps suffice for EDM; ten do not for DDPM."""
    words = {steps: f"{steps} step{'s' if steps > 1 else ''}" for steps in (edm_steps, ddpm_steps)}
    is_same = edm_steps == ddpm_steps
    return Claim(
        id=f"{edm.suite}-drift-{ddpm_steps}" + ("" if is_same else f"-{edm_steps}"),
        title=f"{PONG[edm.suite]}: EDM with {words[edm_steps]} a frame drifts less from reality than DDPM with "
        + ("as many" if is_same else words[ddpm_steps]),
        ours=(Quantity(edm, f"measurements/drift, {words[edm_steps]}"),),
        control=(Quantity(ddpm, f"measurements/drift, {words[ddpm_steps]}"),),
        against=f"DDPM, {words[ddpm_steps]}",
        is_paired=True,
        is_less=True,
        equal="updates",
    )


def drift_steps(edm: Experiment) -> list[Step]:
    """The drift at full size: all runs read one recorded play, and each is trained and tested in one stretch."""
    found = []
    for one, seconds, worth in zip((edm, *rivals(edm)), (420, 420, 180, 180), (4, 4, 1, 1), strict=True):
        own = [word for word in one.settings if word.startswith("diffusion")]
        words = (*own, f"data={PLAY}-smoke", "denoiser_updates=1", "denoiser_first=1", "test_length=2")
        found.append(
            Step(
                "diamond",
                one.claim,
                "training",
                words,
                seconds,
                worth,
                replace(one, settings=(*one.settings, f"data={PLAY}")),
                recorded_by=recorder,
                is_tested=True,
            )
        )
    return found


def recorder(job: Job) -> list[str]:
    """The program that records the play of a run."""
    return ["diamond.recorder", "--preset", job.preset, "--task", job.task, "--seed", str(job.seed)]


SUITE = Suite(
    paper="diamond",
    title="DIAMOND",
    citation="Alonso et al., arXiv 2405.12399",
    tasks=("atari100k_breakout", "video_coin"),
    headline="night-catch-untrained-world",
    scale="Catch: balls caught in the real game by an agent trained in imagination alone, in %",
    budget={"env_frames": "environment frames", "updates": "updates of the three networks"},
    rows=(
        Claim(
            id="night-catch-random",
            title="Catch: the agent trained in imagination alone catches more balls than random play",
            ours=(Quantity(CATCH),),
            control=(Quantity(CATCH, "controls/uniform random"),),
            against="uniform random play",
            asserted_by="us",
        ),
        Claim(
            id="night-catch-ninety",
            title="Catch: the agent trained in imagination alone catches more than nine balls of ten",
            ours=(Quantity(CATCH),),
            control=(Quantity(CATCH, "controls/nine of ten"),),
            against="90 %",
            asserted_by="us",
        ),
        Claim(
            id="night-catch-untrained-world",
            title="Catch: the agent beats one whose imagination is an untrained denoiser",
            ours=(Quantity(CATCH),),
            control=(Quantity(BLIND),),
            against="an untrained denoiser",
            asserted_by="us",
        ),
        Claim(
            id="night-catch-real",
            title="Catch: the same loss in the real game, given all the frames it asks for, catches more balls",
            ours=(Quantity(REAL),),
            control=(Quantity(CATCH),),
            against="the agent trained in imagination",
            asserted_by="us",
        ),
        *drift_rows(EDM),
        Claim(
            id="cpu-coin",
            title="Jumps by a fair coin: 3 denoising steps decide for a side more than 1 step does",
            ours=(Quantity(COIN, "measurements/decision, 3 steps"),),
            control=(Quantity(COIN, "measurements/decision, 1 step"),),
            against="1 denoising step",
            is_paired=True,  # the same networks
        ),
        Claim(
            id="cpu-coin-both",
            title="Jumps by a fair coin: with 3 denoising steps the rarer side is chosen more than once in four jumps",
            ours=(Quantity(COIN, "measurements/to the rarer side, 3 steps"),),
            control=(Quantity(COIN, "measurements/one in four"),),
            against="one in four",
            asserted_by="us",
        ),
        Claim(
            id="cpu-coin-noise",
            title="Jumps by a fair coin: the rarer side is chosen more often from noise as strong as its level says",
            ours=(Quantity(COIN, "measurements/to the rarer side, 3 steps, full noise"),),
            control=(Quantity(COIN, "measurements/to the rarer side, 3 steps"),),
            against="the method's noise of unit variance",
            asserted_by="us",
            is_paired=True,
        ),
        *drift_rows(NIGHT_EDM),
        *drift_rows(GPU_EDM),
        Number(
            id="gpu-score-boxing",
            title="Atari 100k, Boxing: score",
            ours=Quantity(BOXING),
            floor=Quantity(BOXING, "controls/uniform random"),
            published="atari100k-boxing",
        ),
    ),
    speed=("measure",),
    film=("cpu", "video_pong", "video"),
    steps=(
        *speed("diamond", "measure", seconds=COMPILES),
        Step("diamond", "catch", "training", ONE_UPDATE, 200, 4, replace(CATCH, settings=("device=cuda",))),
        *drift_steps(GPU_EDM),
    ),
)

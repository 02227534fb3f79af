"""Rows of DIAMOND (Alonso et al., arXiv 2405.12399)."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rows import Claim, Experiment, Number, Quantity, Suite
from benchmarks.steps import Step, speed

# Recorded play: the world model alone, beside its rival of the same size, data and updates.
EDM = Experiment("cpu", "video_pong", "video", (0,), minutes=8)
DDPM = replace(EDM, claim="video-ddpm", settings=("diffusion=ddpm",), only_bench=True)
COIN = Experiment("cpu", "video_coin", "video", (0,), minutes=6, only_bench=True)

# A small pixel game: the agent that learnt in its imagination, and what it must be better than.
CATCH = Experiment("night", "catch", "agent", (0,), minutes=120)
BLIND = replace(CATCH, claim="agent-world-untrained", settings=("denoiser_updates=0",), only_bench=True)
REAL = replace(CATCH, claim="agent-real", settings=("is_imagined=False",), minutes=60, only_bench=True)

BOXING = Experiment("gpu", "atari100k_boxing", "agent", (0,), minutes=30, needs_gpu=True)

PONG = "Pong, 24 x 24 pixels, recorded play"


def drifts(steps: int) -> Claim:
    """Source: paper, section 5.1: few denoising steps suffice for EDM, not for DDPM."""
    words = f"{steps} step{'s' if steps > 1 else ''}"
    return Claim(
        id=f"cpu-drift-{steps}",
        title=f"{PONG}: with a budget of {words} a frame DDPM drifts further from reality than EDM",
        ours=(Quantity(DDPM, f"measurements/drift, {words}"),),
        control=(Quantity(EDM, f"measurements/drift, {words}"),),
        against="EDM",
        is_paired=True,
        equal="updates",
    )


SUITE = Suite(
    paper="diamond",
    title="DIAMOND",
    citation="Alonso et al., arXiv 2405.12399",
    tasks=("atari100k_breakout", "video_coin"),
    headline="night-catch-untrained-world",
    scale="Catch, 16 x 16 pixels, 8,000 decisions",
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
        *(drifts(steps) for steps in (3, 1, 10)),
        Claim(
            id="cpu-drift-copy",
            title=f"{PONG}: the last real frame for ever drifts further than EDM with 3 denoising steps",
            ours=(Quantity(EDM, "controls/copy of the last frame"),),
            control=(Quantity(EDM),),
            against="EDM",
            asserted_by="us",
            is_paired=True,
        ),
        Claim(
            id="cpu-drift-mean",
            title=f"{PONG}: the mean frame is further from reality than EDM with 3 denoising steps",
            ours=(Quantity(EDM, "controls/mean frame"),),
            control=(Quantity(EDM),),
            against="EDM",
            asserted_by="us",
            is_paired=True,
        ),
        Claim(
            id="cpu-coin",
            title="Jumps by a fair coin: 3 denoising steps choose a side, 1 step shows the average",
            ours=(Quantity(COIN, "measurements/decision, 3 steps"),),
            control=(Quantity(COIN, "measurements/decision, 1 step"),),
            against="1 denoising step",
        ),
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
        *speed("diamond", "measure"),
        Step("diamond", "catch", "training", ("last_epochs=0",), 200, 4, replace(CATCH, settings=("device=cuda",))),
    ),
)

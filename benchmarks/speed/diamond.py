"""DIAMOND: one step of the imagination, one sampled frame, and one update of each network, at the paper's sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import compared, started
from benchmarks.speed.timing import figure, in_turns, peak_memory, timed
from common import dist
from diamond.agent import new_agent
from diamond.config import SMALL_NETS, Config
from diamond.imagination import Draws, Imagination
from diamond.imagination_fast import Inputs, Program
from diamond.replay import Replay, Step
from diamond.train import Trainer

ACTIONS = 4
SOURCE = "paper, Appendix I, Table 5: one RTX 4090"
# Milliseconds of the paper's profile.
PUBLISHED = {"denoiser": 88.0, "reward_end": 115.0, "actor_critic": 340.0}
STEP, FRAME = 20.4, 12.7
SEGMENTS = 64
FEW_STEPS = 3  # of the imagination, in an update of the policy on a CPU
CHANGES: dict[str, Any] = {}  # to the paper's configuration
SMOKE = {"FEW_STEPS": 2, "CHANGES": {**SMALL_NETS, "image_size": 16, "batch_size": 1, "horizon": 2}}


def measure(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU at batch 32; on a CPU at batch 1, with fewer imagined steps, beside no published number."""
    is_gpu = device.type == "cuda"
    with TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), device, 32 if is_gpu else 1)
        few = trainer
        if not is_gpu:
            few = Trainer(trainer.agent, trainer.replay, replace(trainer.config, horizon=FEW_STEPS), trainer.ranks)
        found = _imagination(few, device, is_gpu)
        for part in PUBLISHED:
            found.append(_update(few if part == "actor_critic" else trainer, part, device, is_gpu))
        return found


def measure_beside(checkouts: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """Steps of 32 imagined games under the policy, and updates of the denoiser, in turns with the authors' code.

    Their default compiles both imagined networks; on a CPU they are measured without it too.
    """
    kinds = [("step", True), ("step", False), ("update", False)]
    if device.type == "cuda":
        kinds.remove(("step", False))
    with TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), device, 32)
        return [_beside(trainer, name, path, *kind, device) for name, path in checkouts.items() for kind in kinds]


def _beside(
    trainer: Trainer, name: str, checkout: Path, asks: str, is_compiled: bool, device: torch.device
) -> dict[str, Any]:
    """One comparison; is_compiled: whether the peer compiles its networks."""
    is_gpu, batch = device.type == "cuda", trainer.config.batch_size
    ours = _step(trainer) if asks == "step" else partial(trainer.update, "denoiser", 1)
    order = {"device": device.type, "batch": batch, "actions": ACTIONS, "asks": asks, "compile": is_compiled}
    words, unit = ("a step of the imagination", "steps/s") if asks == "step" else ("denoiser updates", "updates/s")
    with started(name, checkout, order) as peer:
        calls = [lambda: timed(ours, device, repeats=1, warmup=0).median, peer.update]
        mine, theirs = in_turns(calls, repeats=15 if is_gpu else 3, warmup=5 if is_gpu else 1)
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if is_gpu else peak_memory()
        other = float(peer.ask({"asks": "memory"})) if is_gpu else None
        parameters = sum(trainer.agent.parameter_counts().values())
        row = f"{words}, batch {batch}{_form(trainer)}, beside the authors' code"
        row += " compiled" if is_compiled else ""
        return compared(row, unit, mine, theirs, peer, parameters, memory, batch if asks == "step" else 1, other)


def _trainer(folder: Path, device: torch.device, batch: int) -> Trainer:
    """All three networks at the paper's sizes, and a replay of noise."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    sizes = {"batch_size": batch, "initial_batches": 1, "env_steps": 10_000, "device": str(device)}
    config = replace(Config(), **{**sizes, **CHANGES})
    torch.manual_seed(0)
    agent = new_agent(config, ACTIONS).to(device)
    return Trainer(agent, _filled(folder, config), config, dist.Ranks(0, 1, 0, device))


def _begin(trainer: Trainer) -> Imagination:
    """The dream of a trainer with all its games begun."""
    dream, ranks = trainer.dream, trainer.ranks
    dream.draws = Draws(trainer.games, slice(0, trainer.games), ranks.device, 0, "speed")
    dream.reset(trainer.games)
    return dream


def _step(trainer: Trainer) -> Callable[[], object]:
    """A step of all imagined games under the policy, captured where training has it so."""
    program = trainer.program or Program(trainer.agent, trainer.config, trainer.ranks.device)
    dream, (policy_h, policy_c) = _begin(trainer), trainer.policy_state
    numbers = dream.numbers()
    given = Inputs(
        obs=dream.obs, action=dream.action, h=dream.h, c=dream.c, policy_h=policy_h, policy_c=policy_c,
        act=numbers.end, start=numbers.start, reward=numbers.reward, end=numbers.end,
    )  # fmt: skip
    return lambda: program(given)


def _form(trainer: Trainer) -> str:
    """What a GPU made of it."""
    if trainer.ranks.device.type == "cpu":
        return ""
    is_captured = trainer.program is not None and trainer.program.is_captured
    words = [word for word, is_so in (("compiled", trainer.is_compiled), ("captured", is_captured)) if is_so]
    return f", {' and '.join(words) or 'as written'}"


def _filled(folder: Path, config: Config) -> Replay:
    """A replay of noise."""
    replay, rng = Replay(folder, config.env_steps, config.image_size), np.random.default_rng(0)
    for _ in range(SEGMENTS):
        frame = rng.integers(256, size=(3, config.image_size, config.image_size), dtype=np.uint8)
        replay.add(Step(frame, int(rng.integers(ACTIONS)), 0.0, False, False))
    return replay


def _imagination(trainer: Trainer, device: torch.device, is_gpu: bool) -> list[dict[str, Any]]:
    dream, config, step = trainer.dream, trainer.config, _step(trainer)
    step()  # on a GPU this captures it
    start = torch.randn(dream.obs[:, 0].shape, device=device)

    def frame() -> None:
        trainer.agent.denoiser.next_frame(dream.obs, dream.action, start, config.sampler)

    size = f"batch {config.batch_size}"
    found = []
    for name, call, number in (
        (f"a frame in 3 denoising steps, {size}", frame, FRAME),
        (f"a step of the imagination under the policy, {size}{_form(trainer)}", step, STEP),
    ):
        found.append(figure(name, "ms", timed(call, device)) | (_published(number) if is_gpu else {}))
    return found


def _update(trainer: Trainer, part: str, device: torch.device, is_gpu: bool) -> dict[str, Any]:
    timing = timed(lambda: trainer.update(part, 1), device, repeats=5 if is_gpu else 3)
    steps = f" in {trainer.config.horizon} imagined steps" if part == "actor_critic" else ""
    name = f"an update of the {part.replace('_', ' ')}{steps}, batch {trainer.config.batch_size}"
    return figure(name, "ms", timing) | (_published(PUBLISHED[part]) if is_gpu else {})


def _published(value: float) -> dict[str, Any]:
    return {"published": value, "published_source": SOURCE}

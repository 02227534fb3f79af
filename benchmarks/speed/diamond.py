"""DIAMOND: one step of the imagination, one sampled frame, and one update of each network, at the paper's sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.speed.timing import figure, timed
from common import dist
from diamond.agent import new_agent
from diamond.config import Config
from diamond.replay import Replay, Step
from diamond.train import Trainer

ACTIONS = 4
SOURCE = "paper, Appendix I, Table 5: one RTX 4090"
# Milliseconds of the paper's profile.
PUBLISHED = {"denoiser": 88.0, "reward_end": 115.0, "actor_critic": 340.0}
STEP, FRAME = 20.4, 12.7
SEGMENTS = 64
FEW_STEPS = 3  # of the imagination, in an update of the policy on a CPU


def measure(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU at batch 32; on a CPU at batch 1, with fewer imagined steps, beside no published number."""
    is_gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    config = replace(Config(), batch_size=32 if is_gpu else 1, initial_batches=1, env_steps=10_000)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        replay = _filled(Path(folder), config)
        agent, ranks = new_agent(config, ACTIONS).to(device), dist.Ranks(0, 1, 0, device)
        trainer = Trainer(agent, replay, config, ranks)
        few = trainer if is_gpu else Trainer(agent, replay, replace(config, horizon=FEW_STEPS), ranks)
        found = _imagination(few, device, is_gpu)
        for part in PUBLISHED:
            found.append(_update(few if part == "actor_critic" else trainer, part, device, is_gpu))
        return found


def _filled(folder: Path, config: Config) -> Replay:
    """A replay of noise."""
    replay, rng = Replay(folder, config.env_steps, config.image_size), np.random.default_rng(0)
    for _ in range(SEGMENTS):
        frame = rng.integers(256, size=(3, config.image_size, config.image_size), dtype=np.uint8)
        replay.add(Step(frame, int(rng.integers(ACTIONS)), 0.0, False, False))
    return replay


def _imagination(trainer: Trainer, device: torch.device, is_gpu: bool) -> list[dict[str, Any]]:
    trainer.update("actor_critic", 0)  # begins the imagined games
    dream, config = trainer.dream, trainer.config
    action = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
    start = torch.randn(dream.obs[:, 0].shape, device=device)

    def frame() -> None:
        trainer.agent.denoiser.next_frame(dream.obs, dream.action, start, config.sampler)

    calls = (
        (f"a frame in 3 denoising steps, batch {config.batch_size}", frame, FRAME),
        (
            f"a step of the imagination without the policy, batch {config.batch_size}",
            lambda: dream.imagine(action),
            STEP,
        ),
    )
    return [
        figure(name, "ms", timed(call, device)) | (_published(number) if is_gpu else {}) for name, call, number in calls
    ]


def _update(trainer: Trainer, part: str, device: torch.device, is_gpu: bool) -> dict[str, Any]:
    timing = timed(lambda: trainer.update(part, 1), device, repeats=5 if is_gpu else 3)
    steps = f" in {trainer.config.horizon} imagined steps" if part == "actor_critic" else ""
    name = f"an update of the {part.replace('_', ' ')}{steps}, batch {trainer.config.batch_size}"
    return figure(name, "ms", timing) | (_published(PUBLISHED[part]) if is_gpu else {})


def _published(value: float) -> dict[str, Any]:
    return {"published": value, "published_source": SOURCE}

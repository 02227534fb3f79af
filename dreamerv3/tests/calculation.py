"""Updates of a small learner, alone or over the ranks of torchrun: python -m dreamerv3.tests.calculation FOLDER."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import safetensors.torch
import torch

from common import dist
from dreamerv3.agent import Noise
from dreamerv3.replay import Batch
from dreamerv3.tests.conftest import tiny_agent, tiny_batch
from dreamerv3.train import new_optimizer, train_step


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    cut = {field.name: getattr(batch, field.name)[rows] for field in fields(batch) if field.name != "obs"}
    return Batch(obs={name: value[rows] for name, value in batch.obs.items()}, **cut)


def calculate(folder: Path) -> None:
    """Two updates on a batch of four; the first rank writes what came of them."""
    ranks = dist.setup()
    agent = tiny_agent(lr=1e-3, warmup=0)
    optimizer = new_optimizer(agent, agent.config)
    full = tiny_batch(agent, 4, 6)
    mine, starts = dist.share(4, ranks), dist.share(24, ranks)
    for update in range(2):
        noise = agent.draw_noise(4, 6, torch.Generator().manual_seed(update))
        noise = Noise(noise.posterior[mine], noise.prior[:, starts], noise.action[:, starts])
        train_step(agent, optimizer, part(full, mine), noise, agent.config, ranks)
        full = replace(full, reward=full.reward + 1)
    if dist.is_main(ranks):
        gradients = {f"gradient/{name}": p.grad for name, p in agent.named_parameters() if p.grad is not None}
        scale = {"low": agent.return_norm.low, "high": agent.return_norm.high}
        safetensors.torch.save_file(gradients | scale, folder / "result.safetensors")
    dist.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    calculate(Path(sys.argv[1]))

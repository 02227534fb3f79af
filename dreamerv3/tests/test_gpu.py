"""On a GPU: the captured update against the readable one on the same device."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from common import dist
from dreamerv3.replay import Batch
from dreamerv3.tests.conftest import tiny_agent, tiny_batch
from dreamerv3.train import new_learner, new_optimizer

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@on_gpu
@pytest.mark.parametrize("is_discrete", [True, False])
def test_the_captured_update_is_the_readable_one(is_discrete):
    """Weights after eight updates in float32: three before the capture and five replays."""
    weights = []
    for use_fast in (True, False):
        agent = tiny_agent(is_discrete=is_discrete, use_fast=use_fast, device="cuda", lr=1e-3, warmup=0).cuda()
        ranks, batch = dist.setup("cuda"), tiny_batch(agent)
        batch = Batch(
            obs={name: value.cuda() for name, value in batch.obs.items()},
            **{f.name: getattr(batch, f.name).cuda() for f in dataclasses.fields(batch) if f.name != "obs"},
        )
        found = new_learner(agent, new_optimizer(agent, agent.config), agent.config, ranks)
        for update in range(8):
            generator = torch.Generator("cuda").manual_seed(update)
            found.update(replace(batch, reward=batch.reward + update), agent.draw_noise(3, 6, generator))
        assert (found.graph is not None) == use_fast
        weights.append(torch.cat([p.detach().flatten() for p in agent.trained_parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)

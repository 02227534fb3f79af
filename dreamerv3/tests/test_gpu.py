"""The captured update against the readable one: on a GPU, and on a CPU with a tape in the place of the graph."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from common import dist, eager, tape
from common.graph import WARM_UPS, Graph
from dreamerv3.replay import Batch
from dreamerv3.tests.conftest import tiny_agent, tiny_batch
from dreamerv3.train import Learner, new_learner, new_optimizer

RANKS = dist.setup()
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
            found(replace(batch, reward=batch.reward + update), agent.draw_noise(3, 6, generator))
        assert (found.graph is not None) == use_fast
        weights.append(torch.cat([p.detach().flatten() for p in agent.trained_parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)


def weights_after(updates: int, *, captures: bool, is_discrete: bool) -> tuple[torch.Tensor, Learner]:
    """Trained from the same weights on batches that differ; captured as on a GPU, or as they are."""
    agent = tiny_agent(is_discrete=is_discrete, use_fast=captures, lr=1e-3, warmup=0)
    batch, learner = tiny_batch(agent), new_learner(agent, new_optimizer(agent, agent.config), agent.config, RANKS)
    learner.captures = captures
    for update in range(updates):
        noise = agent.draw_noise(3, 6, torch.Generator().manual_seed(update))
        learner(replace(batch, reward=batch.reward + update), noise)
    return torch.cat([p.detach().flatten() for p in agent.trained_parameters()]), learner


@pytest.mark.parametrize("is_discrete", [True, False])
def test_a_replayed_update_is_the_update(monkeypatch, is_discrete):
    """Five replays behind the warm-up: what is not copied in, or was frozen by the capture, would show."""
    tape.put_in_place(monkeypatch)
    found, learner = weights_after(WARM_UPS + 5, captures=True, is_discrete=is_discrete)
    assert isinstance(learner.graph, tape.Tape)
    assert learner.graph.waits == []
    plain, _ = weights_after(WARM_UPS + 5, captures=False, is_discrete=is_discrete)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-4)


@pytest.mark.parametrize("is_discrete", [True, False])
def test_a_replayed_step_of_acting_is_the_step(monkeypatch, is_discrete):
    """With weights that change between the steps, as they do in a run."""
    tape.put_in_place(monkeypatch)
    agent = tiny_agent(is_discrete=is_discrete)
    batch = tiny_batch(agent)
    act = Graph("acting", agent.act, torch.device("cpu"), captures=True)
    act.captures = True
    state = plain = agent.world.rssm.initial_state(3)
    for t in range(WARM_UPS + 3):
        obs = {name: value[:, t % 6] for name, value in batch.obs.items()}
        noise = agent.draw_act_noise(3, torch.Generator().manual_seed(t))
        inputs = (batch.prev_action[:, t % 6].long() if is_discrete else batch.prev_action[:, t % 6], obs)
        state, action = act(state, *inputs, batch.is_first[:, t % 6], *noise)
        plain, wanted = agent.act(plain, *inputs, batch.is_first[:, t % 6], *noise)
        assert torch.equal(action, wanted)
        assert torch.equal(state.h, plain.h)
        assert torch.equal(state.z, plain.z)
        with torch.no_grad():
            agent.world.rssm.gates.weight.mul_(1.1)
    assert isinstance(act.graph, tape.Tape)
    assert act.graph.waits == []


def test_an_update_whose_capture_fails_goes_on_as_it_is(monkeypatch, capsys):
    tape.break_captures(monkeypatch)
    monkeypatch.setattr(eager, "_marks", [])
    found, learner = weights_after(WARM_UPS + 3, captures=True, is_discrete=True)
    assert (learner.graph, learner.captures) == (None, False)
    assert len(eager.marks()) == 1
    assert capsys.readouterr().err.count("\n") == 1
    plain, _ = weights_after(WARM_UPS + 3, captures=False, is_discrete=True)
    torch.testing.assert_close(found, plain, rtol=0, atol=2e-4)

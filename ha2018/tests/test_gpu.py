"""V, M and the dream as on a GPU against the readable forms: there, and on a CPU with a tape in place of a graph."""

from __future__ import annotations

import pytest
import torch

from common import dist, eager, graph, tape
from common.graph import WARM_UPS
from ha2018.config import Config
from ha2018.controller import doom_action
from ha2018.dream import Dream, FirstFrames
from ha2018.dream_fast import FastDream
from ha2018.encoding import Batch
from ha2018.memory import MDNRNN, sequence_losses
from ha2018.memory_fast import FastLosses
from ha2018.tests.test_dream import TAU, controllers, make, numbers
from ha2018.train import memory_lr, new_memory_learner, new_vision_learner, vision_step
from ha2018.vision import VAE

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@on_gpu
def test_the_recorded_graph_equals_the_eager_step():
    """On the same device with the same random numbers, through compactions and a second use of the graphs."""
    memory, bank = make(4, 12, 5, torch.float32)
    memory, bank = memory.cuda(), FirstFrames(bank.mu.cuda(), bank.logvar.cuda())
    params, batch = controllers(64, memory).cuda(), 64
    fast, dream = FastDream(memory), Dream(memory, TAU, 1000)
    for _ in range(2):
        z = bank.sample(torch.arange(batch).cuda() % 6, numbers(batch, 4, dtype=torch.float32).cuda())
        fast.begin(z, params, TAU)
        obs = dream.reset(z)
        for t in range(40):
            generator = torch.Generator("cuda").manual_seed(t)
            uniform = torch.rand(batch, 4, generator=generator, device="cuda")
            normal = torch.randn(batch, 4, generator=generator, device="cuda")
            with torch.no_grad():
                done = fast.advance(uniform, normal).clone()
                obs, _, finished = dream.step(doom_action(params, obs), uniform, normal)
            torch.testing.assert_close(fast.buffers.c, dream.state.c, rtol=0, atol=1e-4)
            torch.testing.assert_close(fast.buffers.inputs[:, :4], dream.z, rtol=0, atol=1e-3)
            assert torch.equal(done, finished)


@on_gpu
def test_the_fast_pass_of_m_has_the_losses_and_gradients_of_the_readable_one():
    torch.manual_seed(0)
    memory = MDNRNN(8, 1, 32, 5, predicts_restart=True).cuda()
    z, action = torch.randn(6, 20, 8, device="cuda"), torch.rand(6, 20, 1, device="cuda")
    restart = (torch.rand(6, 20, device="cuda") < 0.2).float()
    start = memory.initial_state(6)
    fast, _ = FastLosses(memory).losses_and_gradients(z, action, restart, start, 10.0)
    ours = {name: p.grad.clone() for name, p in memory.named_parameters() if p.grad is not None}
    memory.zero_grad()
    plain, _ = sequence_losses(memory, z, action, restart, start, 10.0)
    torch.stack(list(plain.values())).sum().backward()
    for name, loss in plain.items():
        torch.testing.assert_close(fast[name], loss.detach(), rtol=1e-4, atol=1e-5)
    for name, p in memory.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(ours[name], p.grad, rtol=0, atol=1e-4 * float(p.grad.abs().max()), msg=name)


@on_gpu
def test_updates_of_v_are_those_of_a_cpu():
    """In float32, three updates from the same weights on the same frames."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        vae = VAE(8).to(device)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            images, noise = torch.rand(4, 3, 64, 64, generator=generator), torch.randn(4, 8, generator=generator)
            losses = vision_step(vae, optimizer, images.to(device), noise.to(device), Config())
        found.append(losses["reconstruction"].cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def vision_updates(device: str, *, captures: bool) -> tuple[torch.Tensor, object]:
    """The weights and losses of V after updates before a capture and behind it, on frames that differ."""
    torch.manual_seed(0)
    place = torch.device(device)
    vae = VAE(8).to(place)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    learner = new_vision_learner(vae, optimizer, Config(), dist.Ranks(0, 1, 0, place))
    learner.captures = captures
    found = []
    for number in range(WARM_UPS + 3):
        generator = torch.Generator().manual_seed(number)
        images, noise = torch.rand(2, 3, 64, 64, generator=generator), torch.randn(2, 8, generator=generator)
        found += list(learner(images.to(place), noise.to(place)).values())
    weights = [p.detach().flatten() for p in vae.parameters()]
    return torch.cat([torch.stack(found), *weights]).cpu(), learner.graph


def memory_updates(device: str, *, captures: bool, rate: str = "number") -> tuple[torch.Tensor, object]:
    """The weights, losses and last state of M, which is carried, with a learning rate that falls fast."""
    torch.manual_seed(0)
    place, config = torch.device(device), Config(memory_lr_decay=0.5, gradient_clip=0.01)
    memory = MDNRNN(4, 1, 8, 5, predicts_restart=True).to(place)
    optimizer = torch.optim.Adam(memory.parameters(), lr=1e-3, fused=True)
    learner = new_memory_learner(memory, optimizer, config, dist.Ranks(0, 1, 0, place))
    learner.captures = captures
    if rate == "tensor":  # as on a GPU
        optimizer.param_groups[0] |= {"lr": torch.tensor(1e-3), "capturable": True}
    state, found = memory.initial_state(3), []
    for number in range(WARM_UPS + 3):
        generator = torch.Generator().manual_seed(number)
        z, action = torch.randn(3, 7, 4, generator=generator), torch.rand(3, 7, 1, generator=generator)
        restart = (torch.rand(3, 7, generator=generator) < 0.2).float()
        graph.set_rate(optimizer, memory_lr(number, config))
        losses, state = learner(Batch(z.to(place), action.to(place), restart.to(place)), state)
        found += list(losses.values())
    weights = [p.detach().flatten() for p in memory.parameters()]
    return torch.cat([torch.stack(found), state.c.flatten(), state.h.flatten(), *weights]).cpu(), learner.graph


@on_gpu
@pytest.mark.parametrize("updates", [vision_updates, memory_updates])
def test_captured_updates_are_the_updates(updates):
    """In float32, three before the capture and three replays."""
    found, captured = updates("cuda", captures=True)
    assert captured is not None
    torch.testing.assert_close(found, updates("cuda", captures=False)[0], rtol=1e-3, atol=1e-3)


def test_replayed_updates_of_v_are_the_updates(monkeypatch):
    tape.put_in_place(monkeypatch)
    found, captured = vision_updates("cpu", captures=True)
    assert isinstance(captured, tape.Tape)
    assert captured.waits == []
    torch.testing.assert_close(found, vision_updates("cpu", captures=False)[0], rtol=1e-5, atol=1e-6)


def test_replayed_updates_of_m_are_the_updates_as_its_learning_rate_falls(monkeypatch):
    tape.put_in_place(monkeypatch)
    found, captured = memory_updates("cpu", captures=True, rate="tensor")
    assert isinstance(captured, tape.Tape)
    assert captured.waits == []
    torch.testing.assert_close(found, memory_updates("cpu", captures=False)[0], rtol=1e-5, atol=1e-6)


def dreamt(fast: FastDream, memory: MDNRNN, bank: FirstFrames) -> None:
    """Two dreams of forty steps, each step beside the readable one."""
    params, batch = controllers(64, memory), 64
    dream = Dream(memory, TAU, 1000)
    for _ in range(2):
        z = bank.sample(torch.arange(batch) % 6, numbers(batch, 4, dtype=torch.float32))
        fast.begin(z, params, TAU)
        obs = dream.reset(z)
        for t in range(40):
            generator = torch.Generator().manual_seed(t)
            uniform, normal = torch.rand(batch, 4, generator=generator), torch.randn(batch, 4, generator=generator)
            with torch.no_grad():
                done = fast.advance(uniform, normal).clone()
                obs, _, finished = dream.step(doom_action(params, obs), uniform, normal)
            torch.testing.assert_close(fast.buffers.c, dream.state.c, rtol=0, atol=1e-4)
            torch.testing.assert_close(fast.buffers.inputs[:, :4], dream.z, rtol=0, atol=1e-3)
            assert torch.equal(done, finished)


def test_a_replayed_step_of_the_dream_is_the_step(monkeypatch):
    tape.put_in_place(monkeypatch)
    memory, bank = make(4, 12, 5, torch.float32)
    fast = FastDream(memory)
    fast.captures = True
    dreamt(fast, memory, bank)
    graph = fast.buffers.graph
    assert isinstance(graph, tape.Tape)
    assert graph.waits == []


def test_a_dream_whose_capture_fails_goes_on_as_it_is(monkeypatch, capsys):
    """From the state it was in: the steps that warm up for a capture do not count."""
    tape.break_captures(monkeypatch)
    monkeypatch.setattr(eager, "_marks", [])
    memory, bank = make(4, 12, 5, torch.float32)
    fast = FastDream(memory)
    fast.captures = True
    dreamt(fast, memory, bank)
    assert (fast.buffers.graph, fast.captures) == (None, False)
    assert capsys.readouterr().err.count("\n") == 1

"""One update: the fast form against the readable one, where gradients go, and that rows do not mix."""

from __future__ import annotations

import copy
import functools
import platform
import resource
from dataclasses import replace

import pytest
import torch

from common import dist
from common.graph import each, tensors_of
from dreamerv3 import imagination_fast, layers_fast, rssm_fast
from dreamerv3.actor_critic import imagine, lambda_return
from dreamerv3.config import Config
from dreamerv3.distributions import symexp_bins, two_hot_mean
from dreamerv3.learner import keep_memory
from dreamerv3.rssm import State
from dreamerv3.tests.conftest import tiny_agent, tiny_batch
from dreamerv3.train import loss_weights, new_optimizer, train_step, weighted_sum

RANKS = dist.setup()


def noise_for(agent, batch, seed=2):
    return agent.draw_noise(*batch.reward.shape, torch.Generator().manual_seed(seed))


def losses_and_gradients(agent, batch, noise):
    outcome = agent.losses(batch, noise, RANKS)
    weighted_sum(outcome.losses, loss_weights(agent.config)).backward()
    gradients = {name: p.grad for name, p in agent.named_parameters() if p.requires_grad}
    return outcome, gradients


@pytest.mark.parametrize("edition", ["arxiv_v2", "nature"])
@pytest.mark.parametrize("is_discrete", [True, False])
def test_the_fast_update_is_the_readable_one(edition, is_discrete):
    """Losses, latents and every gradient in float32; sums are taken in another order, and nothing else differs."""
    found = []
    for use_fast in (True, False):
        agent = tiny_agent(edition, is_discrete=is_discrete, use_fast=use_fast)
        batch = tiny_batch(agent)
        found.append(losses_and_gradients(agent, batch, noise_for(agent, batch)))
    (fast, fast_gradients), (plain, plain_gradients) = found
    for name, loss in plain.losses.items():
        torch.testing.assert_close(fast.losses[name], loss, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(fast.states.h, plain.states.h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.states.z, plain.states.z, rtol=0, atol=1e-6)
    for name, gradient in plain_gradients.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=0, atol=1e-4 * scale, msg=name)


def test_the_fast_scan_and_imagination_alone():
    agent = tiny_agent(is_discrete=False)
    model, batch = agent.world.rssm, tiny_batch(agent)
    inputs = (
        agent.world.start_state(batch),
        batch.prev_action,
        agent.world.encoder(batch.obs).detach(),
        batch.is_first,
        torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0)),
    )
    (ours, logits), (theirs, wanted) = rssm_fast.observe(model, *inputs), model.observe(*inputs)
    for a, b in ((ours.h, theirs.h), (ours.z, theirs.z), (logits, wanted)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    start = model.observe(*inputs)[0]
    start = State(start.h.detach().flatten(0, 1), start.z.detach().flatten(0, 1))
    noise = noise_for(agent, batch)
    readable = imagine(model, agent.actor, start, noise.action, noise.prior)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        fast = imagination_fast.imagine(model, agent.actor, start, noise.action, noise.prior, dtype)
        # In bfloat16 a draw can fall on the other side of a border, and its rollout is another from there on.
        steps = 5 if dtype == torch.float32 else 2
        difference = (fast.feature.float() - readable.feature)[:steps, :, :16].abs().amax((0, 2))
        assert float((difference < tolerance).float().mean()) > 0.9
        if dtype == torch.float32:
            assert float(difference.max()) < tolerance
            torch.testing.assert_close(fast.actions, readable.actions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_discrete", [True, False])
def test_an_update_in_float64_is_that_in_float32_and_both_forms_agree_to_its_digits(is_discrete):
    found = []
    for use_fast, is_double in ((True, False), (True, True), (False, True)):
        agent = tiny_agent(is_discrete=is_discrete, use_fast=use_fast, lr=1e-3, warmup=0)
        agent = agent.double() if is_double else agent
        batch = tiny_batch(agent)
        optimizer = new_optimizer(agent, agent.config)
        metrics, states = train_step(agent, optimizer, batch, noise_for(agent, batch), agent.config, RANKS)
        kind = torch.float64 if is_double else torch.float32
        assert {states.h.dtype, states.z.dtype, *(p.dtype for p in agent.parameters())} == {kind}
        assert all(p.grad.dtype == kind for p in agent.trained_parameters() if p.grad is not None)
        weights = torch.cat([p.detach().flatten() for p in agent.trained_parameters()])
        found.append((metrics["loss"], states.h, weights))
    for single, fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), fast, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_the_scan_in_bfloat16_is_close_and_keeps_its_state_in_float32(monkeypatch):
    """As on a GPU. With draws that are given: one that falls on the other side of a border would be another path."""
    monkeypatch.setattr(rssm_fast, "draw", lambda probs, index: index)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        agent = tiny_agent(is_discrete=False)
        batch = tiny_batch(agent)
        tokens = agent.world.encoder(batch.obs).detach().requires_grad_()
        index = torch.randint(4, (3, 6, 4), generator=torch.Generator().manual_seed(0))
        start = agent.world.start_state(batch)
        states, logits = rssm_fast.observe(
            agent.world.rssm, start, batch.prev_action, tokens, batch.is_first, index, dtype
        )
        weight = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1))
        ((states.feature * weight).sum() + logits.square().sum()).backward()
        gradients = {name: p.grad for name, p in agent.world.rssm.named_parameters() if p.grad is not None}
        found.append({"h": states.h, "logits": logits, "tokens": tokens.grad, **gradients})
    assert found[0].keys() == found[1].keys() > {"h", "gates.weight", "hidden.bias", "in_action.norm.scale"}
    for name in found[0]:
        exact, close = (part[name].detach() for part in found)
        assert close.dtype == torch.float32
        assert not torch.equal(close, exact), name
        assert float((close - exact).norm() / exact.norm()) < 0.03, name


def test_rows_of_a_batch_do_not_mix():
    """Another third row leaves the losses of the first two alone, apart from the shared return scale."""
    agent = tiny_agent(return_limit=1e6)
    batch = tiny_batch(agent)
    noise = noise_for(agent, batch)
    first = agent.losses(batch, noise, RANKS).losses
    reward = batch.reward.clone()
    reward[2] += 3
    obs = dict(batch.obs) | {"speed": batch.obs["speed"].clone()}
    obs["speed"][2] *= 2
    second = agent.losses(replace(batch, reward=reward, obs=obs), noise, RANKS).losses
    for name in first:
        torch.testing.assert_close(first[name][:2], second[name][:2], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(first["reward"][2], second["reward"][2])


def test_what_comes_before_an_episode_does_not_reach_into_it():
    agent = tiny_agent()
    batch = tiny_batch(agent)
    batch.is_first[:] = False
    batch.is_first[:, 3] = True
    noise = noise_for(agent, batch)
    states = agent.world.observe(batch, noise.posterior).states
    other = replace(batch, start_h=-batch.start_h, prev_action=(batch.prev_action + 1) % 4)
    other.prev_action[:, 4:] = batch.prev_action[:, 4:]
    again = agent.world.observe(other, noise.posterior).states
    assert torch.equal(states.h[:, 3:], again.h[:, 3:])
    assert not torch.equal(states.h[:, :3], again.h[:, :3])


@pytest.mark.parametrize("use_fast", [True, False])
def test_each_loss_reaches_what_it_should_and_nothing_else(use_fast):
    agent = tiny_agent(use_fast=use_fast)
    batch = tiny_batch(agent)
    losses = agent.losses(batch, noise_for(agent, batch), RANKS).losses
    reached = {}
    for name, loss in losses.items():
        for parameter in agent.parameters():
            parameter.grad = None
        loss.mean().backward(retain_graph=True)
        names = [n for n, p in agent.named_parameters() if p.grad is not None and p.grad.any()]
        reached[name] = {".".join(n.split(".")[: 2 if n.startswith("world") else 1]) for n in names}
    model = {"world.encoder", "world.rssm"}
    assert reached["actor"] == {"actor"}
    assert reached["critic"] == {"critic"}
    assert reached["replay_critic"] == {"critic"} | model
    assert reached["reward"] == {"world.reward"} | model
    assert reached["cont"] == {"world.cont"} | model
    assert reached["rec/image"] == {"world.decoder"} | model
    assert reached["rep"] <= model
    assert reached["dyn"] <= model


def test_a_start_at_the_end_of_an_episode_has_no_weight_in_the_arxiv_edition():
    agent = tiny_agent("arxiv_v2")
    batch = tiny_batch(agent)
    batch.is_terminal[:] = False
    batch.is_terminal[1, 2] = True
    losses = agent.losses(batch, noise_for(agent, batch), RANKS).losses
    assert losses["actor"][1, 2] == 0
    assert losses["critic"][1, 2] == 0
    assert (losses["critic"] != 0).sum() == losses["critic"].numel() - 1


def test_an_update_moves_everything_and_the_first_one_nothing():
    agent = tiny_agent(lr=1e-2, warmup=1)
    config, batch = agent.config, tiny_batch(agent)
    optimizer = new_optimizer(agent, config)
    before = copy.deepcopy(agent.state_dict())
    metrics, states = train_step(agent, optimizer, batch, noise_for(agent, batch), config, RANKS)
    after = agent.state_dict()
    trained = {name for name, p in agent.named_parameters() if p.requires_grad}
    assert all(torch.equal(before[name], after[name]) for name in trained)
    assert float(after["return_norm.high"]) != 0
    for name, slow in agent.slow_critic.named_parameters():  # the first update copies
        assert torch.equal(slow, dict(agent.critic.named_parameters())[name])
    train_step(agent, optimizer, batch, noise_for(agent, batch), config, RANKS)
    assert all(not torch.equal(before[name], agent.state_dict()[name]) for name in trained)
    assert states.h.shape == (3, 6, 16)
    assert not states.h.requires_grad
    assert all(torch.isfinite(value) for value in metrics.values())


def test_losses_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="do not match"):
        weighted_sum({"rec/x": torch.ones(1), "mystery": torch.ones(1)}, loss_weights(Config()))


def test_lambda_return_by_hand():
    """gamma 0.5, lambda 0: one-step targets; lambda 1: the discounted sum with the last value."""
    reward, value = torch.tensor([9.0, 1.0, 2.0])[:, None], torch.tensor([0.0, 10.0, 20.0])[:, None]
    cont, last = torch.full((3, 1), 0.5), torch.zeros(3, 1)
    assert lambda_return(reward, cont, last, value, 0.0).flatten().tolist() == [1 + 5, 2 + 10]
    assert lambda_return(reward, cont, last, value, 1.0).flatten().tolist() == [1 + 0.5 * 12, 12]
    with pytest.raises(ValueError, match="one shape"):
        lambda_return(reward, cont, last, value[1:], 1.0)


def test_three_sizes_in_one_process_are_all_compiled(monkeypatch):
    """torch.compile gives up on a function after eight shapes; a model of one size has six."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    layers_fast.for_device.cache_clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for deter in (512, 1024, 2048):
            norm = layers_fast.for_device(layers_fast.norm_silu, "cuda", deter)
            for rows in (16, 128):
                for shape in ((2, deter // 8), (deter,), (deter // 8,)):
                    x, scale = torch.randn(rows, *shape), torch.randn(shape)
                    torch.testing.assert_close(norm(x, scale), layers_fast.norm_silu(x, scale))
    layers_fast.for_device.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_and_not_taken_anew():
    """Pages that the system had to find, while 16 MB are taken and freed again and again."""
    keep_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(32):
        torch.ones(1 << 22)
    pages = (4 << 22) // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8 * pages


def test_the_inputs_of_an_update_are_all_copied():
    """What a CUDA graph would miss here, it would train on for ever."""
    agent = tiny_agent()
    batch = tiny_batch(agent)
    noise = noise_for(agent, batch)
    copies = each(torch.clone, (batch, noise))
    assert len(tensors_of((batch, noise))) == 3 + 7 + 3
    for ours, theirs in zip(tensors_of(copies), tensors_of((batch, noise)), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("control", [{"use_symlog": False}, {"use_two_hot": False}, {"free_nats": 0.0}])
def test_the_controls_change_what_they_should_and_nothing_else(control):
    """From the same weights: the losses that a control touches are others, the rest is the same."""
    agents = [
        tiny_agent(is_discrete=False, imagination_length=1),
        tiny_agent(is_discrete=False, imagination_length=1, **control),
    ]
    shared = agents[0].state_dict()
    names = {name for name, value in agents[1].state_dict().items() if value.shape == shared[name].shape}
    agents[1].load_state_dict({name: shared[name] for name in names}, strict=False)
    batch = tiny_batch(agents[0])
    found = [agent.losses(batch, noise_for(agent, batch), RANKS).losses for agent in agents]
    touched = {name for name in found[0] if not torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)}
    heads = {"reward", "actor", "critic", "replay_critic"}
    if "use_two_hot" in control:
        assert {"reward", "critic"} <= touched <= heads
    elif "free_nats" in control:
        assert touched <= {"dyn", "rep"}
        assert float(found[1]["dyn"].detach().min()) < 1
    else:
        assert "rec/speed" in touched
        tokens = [agent.world.encoder(batch.obs) for agent in agents]
        assert not torch.allclose(tokens[0], tokens[1])


def test_values_are_not_rounded_to_bfloat16():
    """Products of the networks may be; an expected value of 300 rounded to 8 bits is 2 off."""
    logits, bins = torch.randn(50, 255, generator=torch.Generator().manual_seed(0)), symexp_bins(255)
    logits[:, 143] += 30  # nearly all weight on one bin
    exact = two_hot_mean(logits.double(), bins.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(two_hot_mean(logits, bins).double(), exact, rtol=1e-4, atol=1e-3)

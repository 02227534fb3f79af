"""What the distributions promise at their borders, where no case of the authors' code lies."""

from __future__ import annotations

import itertools

import pytest
import torch

from dreamerv3 import distributions
from dreamerv3.actor_critic import Categorical
from dreamerv3.distributions import (
    kl_balance,
    mixed_probs,
    mixture,
    symexp_bins,
    two_hot,
    two_hot_loss,
    two_hot_losses,
    two_hot_mean,
)
from dreamerv3.tests.conftest import tiny_agent, tiny_batch
from dreamerv3.tests.test_update import losses_and_gradients, noise_for

SURE = [200.0, 0.0, 0.0]  # softmax rounds the others to zero


def test_a_sure_policy_without_a_uniform_share_has_finite_numbers():
    logits = torch.tensor(SURE, requires_grad=True)
    policy = Categorical(mixture(logits, 0.0))
    assert policy.log_prob(torch.tensor(0)).item() == 0
    assert policy.log_prob(torch.tensor(2)).item() == -200
    assert policy.entropy().item() == 0
    (policy.log_prob(torch.tensor(2)) + policy.entropy()).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [-1, 0, 1]


def test_sure_latents_without_a_uniform_share_have_a_finite_divergence():
    post, prior = (torch.tensor([[row]], requires_grad=True) for row in (SURE, SURE[::-1]))
    dyn, rep = kl_balance(mixture(post, 0.0), mixture(prior, 0.0), 1.0)
    (dyn + rep).sum().backward()
    assert dyn.item() == rep.item() == 200
    for leaf in (post, prior):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("use_fast", [True, False])
def test_an_agent_without_any_uniform_share_has_finite_losses_and_gradients(use_fast):
    agent = tiny_agent(unimix=0.0, actor_unimix=0.0, use_fast=use_fast)
    with torch.no_grad():
        for weight in (agent.actor.heads[0].weight, agent.world.rssm.posterior_out.weight):
            weight.mul_(1e4)
    batch = tiny_batch(agent)
    outcome, gradients = losses_and_gradients(agent, batch, noise_for(agent, batch))
    assert all(torch.isfinite(loss).all() for loss in outcome.losses.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("count", [40, 41, 255, 256])
def test_bins_are_symmetric_and_uniform_logits_are_zero(count):
    bins = symexp_bins(count)
    assert len(bins) == count
    assert torch.equal(bins, -bins.flip(0))
    assert torch.equal(bins, bins.sort().values)
    assert (bins == 0).sum() == 2 - count % 2
    assert two_hot_mean(torch.zeros(count), bins) == 0
    targets = torch.tensor([-3.0, -1e-3, 0.0, 0.5, 1000.0, float(bins[-2])])
    below, above, weight = two_hot(targets, bins)
    torch.testing.assert_close(bins[below] * (1 - weight) + bins[above] * weight, targets)
    loss = two_hot_loss(torch.zeros(len(targets), count), targets, bins)
    torch.testing.assert_close(loss, torch.full_like(loss, count).log())


def test_two_hot_takes_every_mixture_of_precisions():
    kinds = (torch.float32, torch.float64)
    logits, target, bins = torch.randn(5, 41), torch.tensor([-2.0, 0.0, 0.3, 7.0, 1e9]), symexp_bins(41)
    exact = two_hot_loss(logits.double(), target.double(), bins.double())
    for a, b, c in itertools.product(kinds, repeat=3):
        found = two_hot_loss(logits.to(a), target.to(b), bins.to(c))
        assert found.dtype == a
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_two_hot_losses_are_the_weighted_sum_of_single_ones_with_its_gradient():
    """Targets on a bin, between two, the same twice, and outside of the range."""
    generator, bins = torch.Generator().manual_seed(0), symexp_bins(41)
    start, upstream = torch.randn(4, 41, generator=generator), torch.randn(4, generator=generator)
    targets, shares = [torch.tensor([0.0, 0.3, -7.0, 1e9]), torch.tensor([0.1, 0.3, 2.0, -1e9])], [1.0, 0.5]
    found = []
    for is_fast in (True, False):
        logits = start.clone().requires_grad_()
        if is_fast:
            loss = two_hot_losses(logits, targets, shares, bins)
        else:
            loss = two_hot_loss(logits, targets[0], bins) + 0.5 * two_hot_loss(logits, targets[1], bins)
        loss.backward(upstream)
        found.append((loss.detach(), logits.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_uniform_share_goes_into_the_logarithm():
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    p = mixture(logits, 0.01)
    assert torch.equal(p.log_probs, mixed_probs(logits, 0.01).log())
    assert torch.equal(distributions.categorical_entropy(p), -(p.probs * p.probs.log()).sum(-1))

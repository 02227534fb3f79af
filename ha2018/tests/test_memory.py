"""Properties of M: restarts, independence of batch elements, carried state, and the fast training pass."""

import math
from functools import partial

import pytest
import torch

from ha2018 import memory_fast
from ha2018.memory import MDNRNN, Prediction, State, mdn_nll, restart_loss, sample_next_z, sequence_losses
from ha2018.memory_fast import FastLosses

B, T, Z, H, K = 3, 12, 4, 7, 5


@pytest.fixture
def memory() -> MDNRNN:
    torch.manual_seed(0)
    return MDNRNN(Z, 1, H, K, predicts_restart=True).double()


def stream(rows=B, steps=T):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows, steps, Z, generator=generator, dtype=torch.float64)
    action = torch.rand(rows, steps, 1, generator=generator, dtype=torch.float64)
    restart = (torch.rand(rows, steps, generator=generator) < 0.2).double()
    return z, action, restart


@pytest.mark.parametrize(
    ("arguments", "predicts_restart", "expected"),
    [((32, 3, 256, 5), False, 422_368), ((64, 1, 512, 5), True, 1_678_785)],
)
def test_parameter_counts_are_those_of_the_paper(arguments, predicts_restart, expected):
    model = MDNRNN(*arguments, predicts_restart=predicts_restart)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_a_restart_forgets_everything_before_it(memory):
    z, action, restart = stream()
    restart[:, 5] = 1
    fresh, _ = memory.unroll_teacher_forced(z[:, 5:], action[:, 5:], restart[:, 5:], memory.initial_state(B))
    old = State(torch.ones(B, H, dtype=torch.float64), torch.ones(B, H, dtype=torch.float64))
    h, _ = memory.unroll_teacher_forced(z, action, restart, old)
    torch.testing.assert_close(h[:, 5:], fresh)


def test_carrying_the_state_equals_one_long_stream(memory):
    z, action, restart = stream()
    whole, last = memory.unroll_teacher_forced(z, action, restart, memory.initial_state(B))
    first, state = memory.unroll_teacher_forced(z[:, :5], action[:, :5], restart[:, :5], memory.initial_state(B))
    second, end = memory.unroll_teacher_forced(z[:, 5:], action[:, 5:], restart[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end.c, last.c)


def test_steps_equal_the_unrolled_sequence(memory):
    z, action, restart = stream()
    whole, _ = memory.unroll_teacher_forced(z, action, restart, memory.initial_state(B))
    state = memory.initial_state(B)
    for t in range(T):
        state = memory.step(z[:, t], action[:, t], restart[:, t], state)
        torch.testing.assert_close(state.h, whole[:, t])


def test_a_restart_is_a_flag_above_one_half(memory):
    """The official comparison, in all three passes."""
    z, action, _ = stream()
    old = State(torch.ones(B, H).double(), torch.ones(B, H).double())
    for flag, is_fresh in ((0.5, False), (0.51, True)):
        restart = torch.full((B, 1), flag).double()
        start = memory.initial_state(B) if is_fresh else old
        expected = memory.cell(
            torch.cat([z[:, 0], action[:, 0], restart, start.h], 1) @ memory.kernel + memory.bias, start.c
        ).h
        slow, _ = memory.unroll_teacher_forced(z[:, :1], action[:, :1], restart, old)
        flags = torch.cat([restart, restart], 1)  # the last frame is only a target
        _, fast = FastLosses(memory).losses_and_gradients(z[:, :2], action[:, :2], flags, old, 10.0)
        for h in (memory.step(z[:, 0], action[:, 0], restart[:, 0], old).h, slow[:, 0], fast.h):
            torch.testing.assert_close(h, expected)


def test_restart_targets_may_be_of_any_dtype():
    logit = torch.tensor([0.3, -2.0, 1.5])
    restart = torch.tensor([1.0, 0.0, 1.0])
    for dtype in (torch.bool, torch.int64, torch.float64):
        assert restart_loss(logit, restart.to(dtype), 10.0) == restart_loss(logit, restart, 10.0)


def test_batch_elements_are_independent(memory):
    z, action, restart = stream()
    whole, _ = memory.unroll_teacher_forced(z, action, restart, memory.initial_state(B))
    z[1] += 5
    changed, _ = memory.unroll_teacher_forced(z, action, restart, memory.initial_state(B))
    torch.testing.assert_close(changed[[0, 2]], whole[[0, 2]])
    assert not torch.allclose(changed[1], whole[1])


def test_an_unused_latent_costs_the_entropy_of_a_normal():
    """One standard normal component: the NLL of standard normal targets is 1/2 log(2 pi e) = 1.419 nats."""
    target = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(200_000, 1, 1)
    nll = mdn_nll(Prediction(zero, zero, zero, None), target)
    assert abs(float(nll) - 0.5 * math.log(2 * math.pi * math.e)) < 0.01


def test_restart_loss_weighs_positives():
    logit = torch.zeros(2)
    assert restart_loss(logit, torch.tensor([0.0, 1.0]), 10.0).item() == pytest.approx(11 / 2 * math.log(2))


def test_temperature_scales_noise_and_sharpens_the_mixture():
    logits = torch.tensor([0.0, 1.0]).log_softmax(-1).expand(20_000, 1, 2)
    mean, logstd = torch.tensor([-50.0, 50.0]).expand(20_000, 1, 2), torch.zeros(20_000, 1, 2)
    generator = torch.Generator().manual_seed(0)
    for tau in (0.25, 1.0, 2.0):
        uniform = torch.rand(20_000, 1, generator=generator)
        normal = torch.randn(20_000, 1, generator=generator)
        z, index = sample_next_z(Prediction(logits, mean, logstd, None), tau, uniform, normal)
        share = 1 / (1 + math.exp(-1 / tau))
        assert abs(float(index.float().mean()) - share) < 0.015
        assert abs(float((z - mean.gather(-1, index[..., None])[..., 0]).std()) - math.sqrt(tau)) < 0.02


def test_extreme_logits_at_low_temperature_stay_finite():
    """One maximum over all rows underflows to 0 / 0 here."""
    logmix = torch.stack([torch.tensor([0.0, -400.0]), torch.tensor([-400.0, -401.0])])[None]
    prediction = Prediction(logmix, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), None)
    z, _ = sample_next_z(prediction, 0.1, torch.full((1, 2), 0.5), torch.ones(1, 2))
    assert torch.isfinite(z).all()


def test_inputs_of_a_wrong_size_are_named(memory):
    with pytest.raises(ValueError, match="expected 6 numbers a step, got 7"):
        memory.step(torch.zeros(1, Z), torch.zeros(1, 2), torch.zeros(1), memory.initial_state(1))
    with pytest.raises(ValueError, match="restart"):
        memory.step(torch.zeros(1, Z), torch.zeros(1, 1), None, memory.initial_state(1))


def readable(memory, z, action, restart, state):
    """Losses, last state, and gradients of the sum of the losses."""
    memory.zero_grad()
    losses, last = sequence_losses(memory, z, action, restart, state, 10.0)
    torch.stack([*losses.values()]).sum().backward()
    return losses, last, {name: p.grad.clone() for name, p in memory.named_parameters()}


@pytest.mark.parametrize("predicts_restart", [True, False])
@pytest.mark.parametrize(
    ("chunk", "dtype", "tolerance"), [(16, torch.float64, 1e-12), (5, torch.float64, 1e-12), (5, torch.float32, 1e-5)]
)
def test_the_fast_losses_and_gradients_are_those_of_the_readable_form(
    monkeypatch, predicts_restart, chunk, dtype, tolerance
):
    """Whole chunks and a rest, a state that is carried in, and buffers that are used again, for other sizes too."""
    monkeypatch.setattr(memory_fast, "CHUNK", chunk)
    torch.manual_seed(0)
    memory = MDNRNN(Z, 1, H, K, predicts_restart=predicts_restart).to(dtype)
    fast = FastLosses(memory)
    close = partial(torch.testing.assert_close, rtol=0, atol=tolerance)
    for rows, steps in ((B, T), (B, T), (2, 7)):
        z, action, restart = (part.to(dtype) for part in stream(rows, steps))
        generator = torch.Generator().manual_seed(steps)
        state = State(*(torch.randn(rows, H, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)))
        losses, last, gradients = readable(memory, z, action, restart, state)
        memory.zero_grad()
        fast_losses, fast_last = fast.losses_and_gradients(z, action, restart, state, 10.0)
        assert list(fast_losses) == list(losses)
        for name, loss in losses.items():
            close(fast_losses[name], loss.detach())
        close(fast_last.c, last.c.detach())
        close(fast_last.h, last.h.detach())
        for name, parameter in memory.named_parameters():
            close(parameter.grad, gradients[name])


def test_products_in_bfloat16_change_losses_and_gradients_by_their_rounding_alone():
    torch.manual_seed(0)
    memory = MDNRNN(Z, 1, 24, K, predicts_restart=True)
    z, action, restart = (part.float() for part in stream(8, 40))
    state = memory.initial_state(8)
    losses, _, gradients = readable(memory, z, action, restart, state)
    rounded, _ = FastLosses(memory, torch.bfloat16).losses_and_gradients(z, action, restart, state, 10.0)
    for name, loss in losses.items():
        assert 0 < abs(float(rounded[name] - loss.detach())) < 0.01
    for name, parameter in memory.named_parameters():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
        assert 0 < float(error) < 0.05, name


def test_m_learns_as_much_with_products_in_bfloat16():
    """Latents that follow their own past, and deaths: losses on streams not trained on, at equal updates."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(24, 60, Z, generator=generator)
    for t in range(1, 60):
        z[:, t] = 0.9 * z[:, t - 1] + 0.3 * z[:, t]
    action, restart = torch.rand(24, 60, 1, generator=generator), (z[..., 0] > 1).float()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        memory = MDNRNN(Z, 1, 16, K, predicts_restart=True)
        fast, optimizer = FastLosses(memory, dtype), torch.optim.Adam(memory.parameters(), lr=1e-2)
        for _ in range(60):
            fast.losses_and_gradients(z[:16], action[:16], restart[:16], memory.initial_state(16), 10.0)
            optimizer.step()
        with torch.no_grad():
            losses, _ = sequence_losses(memory, z[16:], action[16:], restart[16:], memory.initial_state(8), 10.0)
        found[dtype] = {name: float(loss) for name, loss in losses.items()}
    exact, rounded = found.values()
    assert exact["z_nll"] < 0.9  # 1.4 without training
    for name, loss in exact.items():
        assert rounded[name] == pytest.approx(loss, abs=0.02)

"""The dream for throughput against the readable one, common random numbers, and what ends a dream."""

import pytest
import torch

from ha2018.controller import Controller, doom_action
from ha2018.dream import NOISE_CHUNK, Dream, FirstFrames, Noise, dream_episode, open_loop_returns, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.memory import MDNRNN

TAU, CAP = 1.15, 70


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(z_size=3, hidden=5, mixtures=4, dtype=torch.float64):
    """M whose dreams end at all times before and at the cap, and a bank of beginnings."""
    torch.manual_seed(0)
    memory = MDNRNN(z_size, 1, hidden, mixtures, predicts_restart=True).to(dtype)
    with torch.no_grad():
        memory.kernel.mul_(2)
        memory.output_w[:, 0] = 6 * torch.linspace(-1, 1, hidden)
        memory.output_b[0] = -2 * (hidden / 5) ** 0.5
    bank = FirstFrames(numbers(6, z_size, seed=1, dtype=dtype), numbers(6, z_size, seed=2, dtype=dtype) / 4)
    return memory, bank


def controllers(count, memory, seed=3):
    return numbers(count, memory.z_size + 2 * memory.hidden_size, seed=seed).to(memory.bias)


def readable_returns(memory, bank, params, seeds, rollouts, temperature, cap):
    """`Dream` stepped to the end with nothing compacted away."""
    noise = Noise(seeds, rollouts, memory.z_size, memory.bias.device)
    dream, params = Dream(memory, temperature, cap), params.repeat_interleave(rollouts, 0)
    obs = dream.reset(noise.start(bank))
    returns, alive = torch.zeros(len(params)), torch.ones(len(params), dtype=torch.bool)
    while alive.any():
        if dream.steps % NOISE_CHUNK == 0:
            uniform, normal = noise.chunk()
        t = dream.steps % NOISE_CHUNK
        obs, reward, done = dream.step(doom_action(params, obs), uniform[t][noise.rows], normal[t][noise.rows])
        returns += alive * reward
        alive &= ~done
    return returns.reshape(len(seeds), rollouts)


@pytest.mark.parametrize(
    ("sizes", "members", "rollouts", "temperature"),
    [((3, 5, 4), 6, 4, TAU), ((2, 8, 1), 12, 1, 0.5), ((6, 16, 5), 20, 5, 1.3)],
)
def test_returns_equal_those_of_the_readable_dream(sizes, members, rollouts, temperature):
    memory, bank = make(*sizes)
    seeds = [7, 8, 9, 10] * members
    arguments = memory, bank, controllers(members, memory), seeds[:members], rollouts, temperature, CAP
    expected = readable_returns(*arguments)
    assert len(expected.unique()) > 5
    assert expected.max() > NOISE_CHUNK
    assert torch.equal(rollout_returns(*arguments), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_fast_step_equals_the_readable_one(dtype, tolerance):
    memory, bank = make(4, 12, 5, dtype)
    params, batch = controllers(9, memory), 9
    z = bank.sample(torch.arange(batch) % 6, numbers(batch, 4, dtype=dtype))
    fast, dream = FastDream(memory), Dream(memory, TAU, 1000)
    fast.begin(z, params, TAU)
    obs = dream.reset(z)
    for t in range(60):
        uniform = torch.rand(batch, 4, generator=torch.Generator().manual_seed(t), dtype=dtype)
        normal = numbers(batch, 4, seed=100 + t, dtype=dtype)
        with torch.no_grad():
            done = fast.advance(uniform, normal)
        obs, _, finished = dream.step(doom_action(params, obs), uniform, normal)
        torch.testing.assert_close(fast.buffers.inputs[:, :4], dream.z, rtol=0, atol=tolerance)
        torch.testing.assert_close(fast.buffers.c, dream.state.c, rtol=0, atol=tolerance)
        torch.testing.assert_close(fast.buffers.inputs[:, 6:], dream.state.h, rtol=0, atol=tolerance)
        assert torch.equal(done, finished)


def test_products_in_bfloat16_change_a_step_by_their_rounding_alone():
    memory, _ = make(4, 12, 5, torch.float32)
    z, params = numbers(64, 4, dtype=torch.float32), controllers(64, memory)
    exact, rounded = FastDream(memory), FastDream(memory, torch.bfloat16)
    uniform = torch.full((64, 4), 0.5)
    for dream in (exact, rounded):
        dream.begin(z, params, TAU)
        with torch.no_grad():
            dream.advance(uniform, torch.zeros(64, 4))
    # Two products of numbers that are rounded to 8 bits, and gates that do not amplify.
    error = (exact.buffers.inputs[:, 6:] - rounded.buffers.inputs[:, 6:]).abs().max()
    assert 0 < error < 2**-6


def test_compaction_changes_nothing():
    memory, bank = make()
    arguments = memory, bank, controllers(10, memory), list(range(10)), 9, TAU, CAP
    answers = {}
    for granularity in (1, 64, 10**6):
        dream = FastDream(memory)
        dream.granularity = granularity
        answers[granularity] = rollout_returns(*arguments, dream=dream)
    assert torch.equal(answers[1], answers[64])
    assert torch.equal(answers[1], answers[10**6])


def test_a_dream_used_again_answers_as_a_fresh_one():
    """Other controllers and another number of them, after a compaction that left smaller buffers behind."""
    memory, bank = make()
    used = FastDream(memory)
    for members, seed in ((10, 0), (6, 1), (10, 2)):
        arguments = memory, bank, controllers(members, memory, seed=seed), list(range(members)), 9, TAU, CAP
        assert torch.equal(rollout_returns(*arguments, dream=used), rollout_returns(*arguments))


def test_common_random_numbers():
    """The same controller meets the same dreams with the same seed, and others with another."""
    memory, bank = make()
    params = controllers(1, memory, seed=0).repeat(4, 1)
    returns = rollout_returns(memory, bank, params, [5, 9, 5, 4], 8, TAU, CAP)
    assert torch.equal(returns[0], returns[2])
    assert not torch.equal(returns[0], returns[1])
    assert not torch.equal(returns[1], returns[3])
    assert len(returns[0].unique()) > 1


def test_a_member_does_not_depend_on_its_neighbours():
    memory, bank = make()
    params, seeds = controllers(6, memory), [11, 3, 11, 7, 2, 3]
    together = rollout_returns(memory, bank, params, seeds, 4, TAU, CAP)
    for member in range(6):
        alone = rollout_returns(memory, bank, params[[member]], [seeds[member]], 4, TAU, CAP)
        assert torch.equal(alone[0], together[member])
    order = [4, 0, 5, 2, 1, 3]
    shuffled = rollout_returns(memory, bank, params[order], [seeds[i] for i in order], 4, TAU, CAP)
    assert torch.equal(shuffled, together[order])


def test_each_member_dreams_at_a_temperature_of_its_own():
    """As it does where all dream at that one, through compactions too."""
    memory, bank = make()
    params, seeds, temperatures = controllers(24, memory), list(range(8)) * 3, [0.1, 1.0, 1.3]
    each = [tau for tau in temperatures for _ in range(8)]
    together = rollout_returns(memory, bank, params, seeds, 9, each, CAP)
    for k, tau in enumerate(temperatures):
        rows = slice(8 * k, 8 * k + 8)
        alone = rollout_returns(memory, bank, params[rows], seeds[rows], 9, tau, CAP)
        assert torch.equal(together[rows], alone)
        assert not torch.equal(rollout_returns(memory, bank, params[rows], seeds[rows], 9, 0.5, CAP), alone)


def test_every_step_has_reward_one_and_the_last_counts():
    memory, bank = make()
    with torch.no_grad():
        memory.output_w[:, 0] = 0
        memory.output_b[0] = 1  # over at once
    arguments = memory, bank, controllers(3, memory), [0, 1, 2], 2, TAU
    assert torch.equal(rollout_returns(*arguments, CAP), torch.ones(3, 2))
    with torch.no_grad():
        memory.output_b[0] = 0  # a logit must be positive: never over
    for cap in (1, NOISE_CHUNK, NOISE_CHUNK + 1, CAP):
        assert torch.equal(rollout_returns(*arguments, cap), torch.full((3, 2), float(cap)))


def test_a_dream_does_not_keep_gradients_nor_touch_the_bank():
    memory, bank = make()
    before = bank.mu.clone(), bank.logvar.clone(), memory.bias.detach().clone()
    returns = rollout_returns(memory, bank, controllers(2, memory), [0, 1], 2, TAU, CAP)
    assert not returns.requires_grad
    for old, new in zip(before, (bank.mu, bank.logvar, memory.bias), strict=True):
        assert torch.equal(old, new)


def test_first_frames_are_truncated_toward_zero_at_four_decimals():
    bank = FirstFrames.of(torch.tensor([[0.12349, -0.12349]]), torch.tensor([[-2.00001, 1.00009]]))
    torch.testing.assert_close(bank.mu, torch.tensor([[0.1234, -0.1234]]))
    torch.testing.assert_close(bank.logvar, torch.tensor([[-2.0, 1.0]]))
    assert FirstFrames.of(torch.ones(1, 2).half(), torch.ones(1, 2).half()).mu.dtype == torch.float32


def test_temperature_scales_the_noise_of_the_dream():
    torch.manual_seed(0)
    memory = MDNRNN(2, 1, 3, 1, predicts_restart=True)
    z, normal, uniform = numbers(5, 2).float(), torch.ones(5, 2), torch.full((5, 2), 0.5)
    ends = {}
    for tau in (1.0, 4.0):
        for sign in (-1, 1):
            dream = Dream(memory, tau, 10)
            dream.reset(z)
            dream.step(torch.zeros(5), uniform, sign * normal)
            ends[tau, sign] = dream.z
    torch.testing.assert_close(ends[4.0, 1] - ends[4.0, -1], 2 * (ends[1.0, 1] - ends[1.0, -1]))


def test_given_actions_live_as_long_as_a_controller_that_takes_them():
    """Also through compactions and in a dream that was used with controllers before."""
    memory, bank = make()
    params, seeds = controllers(40, memory), list(range(40))
    expected = rollout_returns(memory, bank, params, seeds, 1, TAU, CAP)[:, 0]
    actions = torch.zeros(40, CAP, dtype=torch.float64)
    for row in range(40):
        _, taken = dream_episode(memory, bank, Controller("zch"), params[row], seeds[row], TAU, CAP)
        actions[row, : len(taken)] = taken[:, 0]
    assert torch.equal(open_loop_returns(memory, bank, actions, seeds, TAU), expected)
    assert not torch.equal(open_loop_returns(memory, bank, -actions, seeds, TAU), expected)
    assert len(expected.unique()) > 5


def test_seeds_and_controllers_must_be_equally_many():
    memory, bank = make()
    with pytest.raises(ValueError, match="3 controllers need as many seeds, got 2"):
        rollout_returns(memory, bank, controllers(3, memory), [0, 1], 2, TAU, CAP)
    with pytest.raises(ValueError, match="3 rows of actions need as many seeds, got 2"):
        open_loop_returns(memory, bank, torch.zeros(3, 5), [0, 1], TAU)


def test_the_episode_for_watching_is_the_one_that_is_scored():
    memory, bank = make()
    for seed in range(4):
        params = controllers(1, memory, seed=seed)
        z, actions = dream_episode(memory, bank, Controller("zch"), params[0], seed, TAU, CAP)
        assert len(z) == len(actions) + 1
        assert len(actions) == int(rollout_returns(memory, bank, params, [seed], 1, TAU, CAP))

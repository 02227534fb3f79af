"""Sizes of the paper's networks, and what the layers must and must not do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from diamond.actor_critic import lambda_returns
from diamond.agent import new_agent
from diamond.blocks import Attention
from diamond.config import SMALL_NETS, TASKS, Config
from diamond.ddpm import DDPM
from diamond.denoiser import Denoiser, InnerModel, NoiseLaw, Segments, draw_normals
from diamond.frames import quantise, to_bytes, to_float
from diamond.optimizer import new_optimizer
from diamond.reward_end import Play
from diamond.sampler import SamplerSettings, trajectory


@pytest.mark.parametrize(
    ("actions", "counts"),
    [
        (4, {"denoiser": 4_405_955, "reward_end": 5_900_864, "actor_critic": 3_229_637}),
        (18, {"denoiser": 4_406_851, "reward_end": 5_902_656, "actor_critic": 3_236_819}),
    ],
)
def test_the_networks_have_the_published_sizes(actions, counts):
    assert new_agent(Config(), actions).parameter_counts() == counts


def test_what_decays_is_counted_as_in_the_authors_code():
    agent = new_agent(Config(), 4)
    split = {"denoiser": (4_393_088, 12_867), "reward_end": (5_893_312, 7_552), "actor_critic": (3_224_928, 4_709)}
    for part, sizes in split.items():
        groups = new_optimizer(getattr(agent, part), 1e-4, 0.01).param_groups
        assert tuple(sum(p.numel() for p in group["params"]) for group in groups) == sizes


def test_the_layout_of_the_weights_changes_speed_and_nothing_else():
    """Channels behind, as every agent is built, against the plain order."""
    agent = new_agent(Config(**SMALL_NETS), 4)
    with torch.no_grad():
        for parameter in agent.parameters():  # some begin at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = copy.deepcopy(agent)
    for parameter in plain.parameters():
        parameter.data = parameter.data.contiguous()
    name = "denoiser.inner_model.conv_in.weight"
    assert [part.get_parameter(name).is_contiguous() for part in (agent, plain)] == [False, True]
    obs, start = torch.rand(2, 4, 3, 64, 64) * 2 - 1, torch.randn(2, 3, 64, 64)
    found = []
    for part in (agent, plain):
        assert isinstance(part.denoiser, Denoiser)
        found.append(part.denoiser.estimate(start, torch.tensor([5.0, 0.1]), obs, torch.zeros(2, 4, dtype=torch.int64)))
    assert found[0].std() > 0.1
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def tiny(diffusion=Denoiser, history=4):
    torch.manual_seed(0)
    inner = InnerModel(3, 16, [8, 8], [1, 1], [False, False], history)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Denoiser(inner, NoiseLaw(), history) if diffusion is Denoiser else DDPM(inner, history)


def batch_of(real: torch.Tensor, terms: int = 2) -> Segments:
    generator = torch.Generator().manual_seed(1)
    obs = quantise(torch.rand(len(real), 4 + terms, 3, 8, 8, generator=generator) * 2 - 1)
    return Segments(obs, torch.zeros(len(real), 4 + terms, dtype=torch.int64), real, real.sum(0).float())


def test_untrained_attention_is_a_group_norm():
    """What is added is the normalised input."""
    layer, x = Attention(16), torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(x), layer.norm(x))
    assert not torch.allclose(layer(x), x)


def test_the_quantiser_lowers_dark_levels_and_the_replay_must_not_use_it():
    levels = torch.arange(256, dtype=torch.uint8)
    assert (to_bytes(to_float(levels)).int() - levels.int()).min() == -1
    assert to_bytes(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("diffusion", [Denoiser, DDPM])
def test_padded_targets_do_not_count(diffusion):
    terms = 2 if diffusion is Denoiser else 1
    real = torch.ones(3, 4 + terms, dtype=torch.bool)
    real[0, 4:] = False
    batch, model = batch_of(real, terms), tiny(diffusion)
    normals = draw_normals(3, (3, 8, 8), terms, torch.Generator().manual_seed(0))
    before = model.loss(batch, normals)
    batch.obs[0] = 0.5
    assert torch.equal(model.loss(batch, normals), before)
    batch.obs[1] = 0.5
    assert not torch.equal(model.loss(batch, normals), before)


def test_a_term_without_a_real_frame_is_0():
    """A small batch may be of episodes with one step each."""
    real = torch.ones(2, 6, dtype=torch.bool)
    first, second = real.clone(), real.clone()
    first[:, 5], second[:, 4] = False, False
    model, normals = tiny(), draw_normals(2, (3, 8, 8), 2, torch.Generator().manual_seed(0))
    whole, *parts = (model.loss(batch_of(some), normals) for some in (real, first, second))
    torch.testing.assert_close(sum(parts), whole)


def test_a_batch_without_a_real_transition_teaches_r_nothing():
    batch = vars(batch_of(torch.arange(6).expand(2, 6) == 5))
    facts = dict.fromkeys(("reward", "end", "trunc"), torch.zeros(2, 6))
    model = new_agent(Config(image_size=8, **SMALL_NETS), 3).reward_end
    losses = model.losses(Play(**batch, **facts, final_obs=batch["obs"][:, 0], has_final=torch.zeros(2) == 1))
    assert {name: loss.item() for name, loss in losses.items()} == {"reward": 0, "end": 0}
    (losses["reward"] + losses["end"]).backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_start_noise_is_used_as_it_is():
    """Not multiplied by the highest noise level."""
    start = torch.randn(2, 3, 8, 8)
    path = trajectory(lambda x, sigma: x * 0, start, torch.tensor([5.0, 0.0]), SamplerSettings(steps=1))
    assert torch.equal(next(path), start)
    torch.testing.assert_close(next(path), start * 0, rtol=0, atol=1e-6)


def test_churn_raises_the_level_but_the_network_is_told_the_old_one():
    seen = []

    def denoise(x, sigma):
        seen.append((float(sigma[0]), x.clone()))
        return x * 0

    settings = SamplerSettings(steps=2, s_churn=10.0)
    start = torch.zeros(1, 3, 4, 4)
    list(trajectory(denoise, start, torch.tensor([5.0, 1.0, 0.0]), settings, torch.Generator().manual_seed(0)))
    assert [sigma for sigma, _ in seen] == [5.0, 1.0]
    assert seen[0][1].std() > 1


def test_churn_is_shared_by_the_levels_that_are_given():
    """0.2 for each of two: noise of sqrt(1.2^2 - 1) sigma, however many steps the settings name."""
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x

    settings, start = SamplerSettings(steps=5, s_churn=0.4), torch.zeros(1, 3, 64, 64)
    list(trajectory(denoise, start, torch.tensor([5.0, 1.0, 0.0]), settings, torch.Generator().manual_seed(0)))
    assert float(seen[0].std()) == pytest.approx(5 * math.sqrt(1.2**2 - 1), rel=0.03)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("diffusion", [Denoiser, DDPM])
def test_frames_lie_on_the_levels_of_a_byte(diffusion, steps):
    model = tiny(diffusion)
    batch = batch_of(torch.ones(2, 6, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 8, 8, generator=generator)
    frame = model.next_frame(batch.obs[:, :4], batch.action[:, :4], start, SamplerSettings(steps=steps), generator)
    levels = (frame + 1) / 2 * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert frame.abs().max() <= 1 + 1e-6


def test_an_end_has_no_future_and_a_cut_has_a_whole_one():
    reward, value = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[2.0, 2.0, 2.0]])
    none, first = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])
    ended = lambda_returns(reward, first, none, value, 0.9, 0.5)
    cut = lambda_returns(reward, none, first, value, 0.9, 0.5)
    np.testing.assert_allclose(ended[0, 0], 1.0)
    np.testing.assert_allclose(cut[0, 0], 1 + 0.9 * 2)
    np.testing.assert_allclose(ended[0, 2], 0.9 * 2, rtol=1e-6)


def test_every_task_builds_and_freeway_has_its_exception():
    for task, values in TASKS.items():
        assert Config(task=task, **values).game
    assert TASKS["atari100k_freeway"] == {"collect_temperature": 0.01}
    assert Config().collect_temperature == 1

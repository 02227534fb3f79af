"""The imagination as an environment: what is drawn, when games begin anew, and that they do not mix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from common import dist
from diamond import watch
from diamond.agent import new_agent
from diamond.beginnings import Pool
from diamond.config import SMALL_NETS, Config
from diamond.env import Coin
from diamond.frames import to_float
from diamond.imagination import Draws, Imagination, pick
from diamond.rollouts import coin_choices
from diamond.tests.test_replay import CPU, filled

CONFIG = Config(image_size=8, batch_size=3, horizon=3, initial_batches=2, **SMALL_NETS)
COIN = Config(task="video_coin", image_size=16, **SMALL_NETS)


def dream(tmp_path, batch=3):
    torch.manual_seed(0)
    agent = new_agent(CONFIG, 5)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        agent.reward_end.head.get_parameter("2.weight")[3:] = 0
    pool = Pool(filled(tmp_path), agent.reward_end, CONFIG, dist.Ranks(0, 1, 0, CPU))
    world = Imagination(agent, CONFIG, pool.take)
    world.reset(batch)
    return world, pool


def draws(update=0):
    return Draws(3, slice(0, 3), CPU, 0, "test", update)


def test_a_game_is_cut_at_the_horizon_and_begins_anew_at_once(tmp_path):
    world, pool = dream(tmp_path)
    with torch.no_grad():  # nothing ever ends by itself
        world.agent.reward_end.head.get_parameter("2.weight").zero_()
    world.agent.reward_end.head.register_forward_hook(
        lambda _, __, out: torch.cat([out[..., :4] + 99, out[..., 4:]], -1)
    )
    world.draws = draws()
    outcomes = [world.step(torch.tensor([0, 1, 2])) for _ in range(4)]
    assert [outcome.trunc.tolist() for outcome in outcomes] == [[0] * 3, [0] * 3, [1] * 3, [0] * 3]
    assert outcomes[2].dead.tolist() == [0, 1, 2]
    assert outcomes[2].burn_in.shape == (3, 3, 3, 8, 8)
    assert not torch.equal(outcomes[2].final_obs, outcomes[2].obs)
    assert world.length.tolist() == [1, 1, 1]


def test_a_game_does_not_depend_on_its_neighbours(tmp_path):
    """Frames, rewards and the state of R of one game, when others act otherwise."""
    found = []
    for others in (0, 4):
        world, _ = dream(tmp_path)
        world.draws = draws()
        frame, reward, end = world.imagine(torch.tensor([1, others, others]))
        found.append((frame, reward, end, world.h))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine[0], other[0], rtol=0, atol=0.01)
    assert not torch.equal(found[0][3][1], found[1][3][1])


def test_beginnings_are_used_once_and_then_drawn_anew(tmp_path):
    _, pool = dream(tmp_path)
    assert (pool.number, pool.used, pool.size) == (1, 3, 6)
    found = pool.take(5)
    assert (pool.number, pool.used) == (2, 2)
    assert found.obs.shape == (5, 4, 3, 8, 8)
    again = Pool(pool.replay, pool.model, CONFIG, dist.Ranks(0, 1, 0, CPU))
    again.restore(pool.state())
    assert torch.equal(again.take(3).obs, pool.take(3).obs)


def test_classes_are_drawn_and_not_the_likeliest_taken():
    logits = torch.tensor([[0.0, 1.0, 0.0]]).log_softmax(-1).expand(3000, 3)
    classes = pick(logits, torch.rand(3000, generator=torch.Generator().manual_seed(0)))
    share = np.bincount(classes.numpy(), minlength=3) / 3000
    np.testing.assert_allclose(share, logits[0].exp().numpy(), atol=0.03)


class Jumps:
    """A denoiser that always draws the same frame."""

    def __init__(self, frame):
        self.frame = frame

    def next_frame(self, obs, *_):
        return to_float(torch.from_numpy(self.frame)).expand(len(obs), -1, -1, -1)


def test_the_highest_level_of_noise_hides_the_side_of_the_coin():
    game = Coin(COIN.image_size)
    sides: dict[bytes, torch.Tensor] = {}
    game.reset(0)
    while len(sides) < 2:
        frame = torch.from_numpy(game.step(0).frame)
        game.step(0)
        sides[frame.numpy().tobytes()] = to_float(frame)
    left, right = sides.values()
    apart = (left - right).norm() / COIN.sampler.sigma_max  # standard deviations along the line between both
    assert 0 < apart < 2


def test_a_choice_of_the_coin_is_a_whole_square_at_one_side_only():
    """The average of both sides is none, and neither is an empty frame or a faint trace."""
    game = Coin(16)
    empty = np.full((3, 16, 16), 32, np.uint8)
    frames = [empty.copy() for _ in range(4)]
    frames[0][:, *game.square(2)] = 224
    frames[1][:, *game.square(0)] = frames[1][:, *game.square(2)] = 128
    frames[2][:, *game.square(0)] = 36
    agents: list[Any] = [SimpleNamespace(denoiser=Jumps(frame)) for frame in frames]
    found = np.stack([coin_choices(agent, 1, COIN, CPU, 2) for agent in agents])
    np.testing.assert_allclose(found, np.repeat([[1], [0], [-1 / 48], [0]], 2, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (set(), "NOOP"),
        ({"left", "up"}, "UPLEFT"),
        ({"fire", "right"}, "RIGHTFIRE"),
        ({"down"}, "NOOP"),
        ({"fire"}, "FIRE"),
    ],
)
def test_keys_are_the_joystick(keys, name):
    names = ("NOOP", "FIRE", "UPLEFT", "RIGHTFIRE")
    assert names[watch.action_of(keys, names)] == name

"""Every number of the worlds' sheets: geometry, pictures, the two dynamics, data, starts and goals, gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import vjepa.ac.worlds.registration as registration
from vjepa.ac import audit
from vjepa.ac.worlds import sweep
from vjepa.ac.worlds.catalogue import WORLDS, new_world
from vjepa.ac.worlds.pointmaze import PointMaze
from vjepa.ac.worlds.rooms import TWO_ROOMS, TWO_ROOMS_RANDOM, WALL, walk
from vjepa.ac.worlds.sampling import truncated_normal, von_mises
from vjepa.ac.worlds.tworoom import TwoRoom
from vjepa.ac.worlds.world import generator_of, new_episodes, seeds_of_test

FIXED = torch.tensor([[32.0, 18.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(*place: float) -> torch.Tensor:
    return torch.tensor([place])


# --- draws ------------------------------------------------------------------------------------------------------------


def test_angles_have_the_moments_of_the_von_mises_law():
    """E cos = I1(5) / I0(5) = 0.893383, E cos 2x = I2(5) / I0(5) = 0.642647, and no lean to one side."""
    angles = von_mises(5.0, (400_000,), generator()).double()
    assert float(angles.cos().mean()) == pytest.approx(0.893383, abs=5e-4)
    assert float((2 * angles).cos().mean()) == pytest.approx(0.642647, abs=1.5e-3)
    assert float(angles.sin().mean()) == pytest.approx(0.0, abs=2e-3)


def test_lengths_are_a_normal_cut_at_both_ends():
    lengths = truncated_normal(1.0, 0.4, 0.2, 1.8, (400_000,), generator()).double()
    assert 0.2 <= float(lengths.min()) < 0.21
    assert 1.79 < float(lengths.max()) <= 1.8
    assert float(lengths.mean()) == pytest.approx(1.0, abs=2e-3)
    # A standard normal cut at +-2 has the variance 1 - 4 phi(2) / (2 Phi(2) - 1) = 0.773741.
    assert float(lengths.std()) == pytest.approx(0.4 * 0.773741**0.5, abs=1e-3)


def test_a_walk_begins_where_it_is_told_and_turns_little():
    actions = walk(torch.full((20_000,), 2.0), 3, generator())
    angles = torch.atan2(actions[..., 1], actions[..., 0])
    assert torch.allclose(angles[:, 0], torch.tensor(2.0), atol=1e-5)
    assert float((angles[:, 2] - angles[:, 1]).cos().mean()) == pytest.approx(0.893, abs=4e-3)


# --- Two Rooms and Wall -----------------------------------------------------------------------------------------------


def test_two_rooms_picture():
    picture = TWO_ROOMS.render(at(20.0, 30.0), FIXED)[0]
    dot, walls = picture
    assert picture.dtype == torch.uint8
    assert tuple(picture.shape) == TWO_ROOMS.picture_shape == (2, 65, 65)
    assert int(dot[30, 20]) == 255, "x is the column, y the row"
    assert int(dot[30, 22]) == int(255 * np.exp(-4 / (2 * 1.3**2)))
    assert int(dot[32, 21]) == int(255 * np.exp(-5 / (2 * 1.3**2)))
    assert set(walls.unique().tolist()) == {0, 255}
    wall = walls == 255
    assert all(bool(wall[:, c].all()) and bool(wall[c].all()) for c in (4, 60))
    columns = [c for c in range(65) if c not in (4, 60) and bool(wall[45, c])]
    assert columns == [31, 32, 33]
    rows = [r for r in range(65) if not bool(wall[r, 32])]
    assert rows == list(range(14, 23)), "a door of nine rows"


def test_wall_picture():
    picture = WALL.render(at(20.0, 30.0), at(32.0, 10.0))[0]
    assert tuple(picture.shape) == WALL.picture_shape == (3, 65, 65)
    assert picture[:, 30, 20].tolist() == [255, 0, 0]
    assert picture[:, 30, 22].tolist() == [255, *[255 - int(255 * np.exp(-4 / (2 * 1.7**2)))] * 2]
    assert picture[:, 50, 10].tolist() == [255, 255, 255]
    assert [c for c in range(5, 60) if int(picture[0, 45, c]) == 0] == list(range(29, 36)), "seven columns"
    assert [r for r in range(5, 60) if int(picture[0, r, 32]) == 255] == list(range(6, 15))


def test_random_layouts_are_the_1125():
    layouts = TWO_ROOMS_RANDOM.layouts(40_000, generator())
    assert len(layouts.unique(dim=0)) == 1125
    assert layouts.amin(0).tolist() == [20, 10]
    assert layouts.amax(0).tolist() == [44, 54]


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((20.0, 30.0), (1.5, -1.0), (21.5, 29.0)),
        ((4.5, 30.0), (-0.5, 0.0), (4.5, 30.0)),  # touches a border
        ((59.5, 30.0), (1.0, 0.0), (59.5, 30.0)),
        ((20.0, 59.2), (0.3, 1.0), (20.0, 59.2)),
        ((30.5, 40.0), (1.0, 0.0), (30.5, 40.0)),  # the left face
        ((33.5, 40.0), (-1.0, 0.0), (33.5, 40.0)),  # the right face
        ((30.5, 22.5), (1.0, 0.0), (30.5, 22.5)),  # just beside the door
        ((30.5, 21.5), (1.0, 0.0), (31.5, 21.5)),  # in the door
        ((30.0, 18.0), (4.0, 0.0), (34.0, 18.0)),  # through both faces
        ((30.0, 21.0), (4.0, 3.0), (30.0, 21.0)),  # the first face in the door, the second beside it
        ((32.0, 21.5), (0.0, 1.0), (32.0, 21.5)),  # a jamb
        ((32.0, 14.5), (0.2, -1.0), (32.0, 14.5)),
        ((20.0, 21.5), (0.0, 1.0), (20.0, 22.5)),  # the same height far from the door
    ],
)
def test_where_data_are_made_a_step_into_a_wall_is_not_made(start, action, end):
    assert TWO_ROOMS.step_stopping(at(*start), at(*action), FIXED)[0].tolist() == pytest.approx(list(end))


@pytest.mark.parametrize(
    ("start", "action", "noise", "end"),
    [
        ((20.0, 30.0), (1.5, -1.0), (9.0, 9.0), (21.5, 29.0)),
        # The point of contact and half of the noise, the part across the wall turned back into the room.
        ((30.5, 40.0), (1.0, 0.5), (1.0, 0.4), (30.5, 40.45)),
        ((30.5, 40.0), (1.0, 0.5), (-1.0, 0.4), (30.5, 40.45)),
        ((33.5, 40.0), (-1.0, 0.0), (0.4, -0.6), (33.2, 39.7)),
        ((20.0, 59.5), (0.0, 1.0), (0.2, 0.8), (20.1, 59.6)),
        ((5.0, 30.0), (-2.0, 0.0), (0.0, 0.0), (4.3, 30.0)),  # at least 0.3 from a wall
        ((32.0, 21.5), (0.0, 1.0), (0.2, 0.8), (32.1, 21.6)),  # a jamb
        ((32.0, 14.5), (0.0, -1.0), (0.2, 0.8), (32.1, 14.4)),
        ((30.5, 18.0), (1.0, 0.0), (9.0, 9.0), (31.5, 18.0)),  # through the door
        ((58.0, 59.0), (4.0, 1.5), (0.0, 0.0), (59.7, 59.75)),  # a corner: the border in x is met first
    ],
)
def test_where_plans_are_tested_a_wall_pushes_back(start, action, noise, end):
    found = TWO_ROOMS.step(at(*start), at(*action), FIXED, at(*noise))[0]
    assert found.tolist() == pytest.approx(list(end), abs=1e-5)


def test_wall_pushes_by_half_a_pixel_on_both_axes_and_moves_twice():
    layout = at(32.0, 10.0)
    free = WALL.step(at(20.0, 30.0), at(1.5, -1.0), layout, at(9.0, 9.0))
    assert free[0].tolist() == pytest.approx([23.0, 28.0])
    pushed = WALL.step(at(28.0, 30.0), at(1.0, 0.0), layout, at(9.0, 9.0))
    assert pushed[0].tolist() == pytest.approx([28.5, 30.5])


@pytest.mark.parametrize("world", [TWO_ROOMS, TWO_ROOMS_RANDOM, WALL])
def test_nobody_leaves_and_nobody_walks_through_a_wall(world):
    episodes = new_episodes(world, seeds_of_test(200))
    rng = generator(1)
    state = episodes.start
    for actions in world.random_actions(200, 300, rng).transpose(0, 1):
        after = world.step(state, 1.5 * actions, episodes.layout, torch.randn(200, 2, generator=rng))
        assert not bool(world.crosses(state, after, episodes.layout).any())
        state = after
        assert 4 < float(state.min()) <= float(state.max()) < 60


def test_starts_and_goals_are_in_two_rooms_away_from_walls():
    episodes = new_episodes(TWO_ROOMS_RANDOM, seeds_of_test(500))
    both = torch.stack([episodes.start, episodes.goal])
    wall = episodes.layout[:, 0]
    left, right = both[..., 0].amin(0), both[..., 0].amax(0)
    assert bool((left >= 6.6 - 1e-5).all())
    assert bool((left <= wall - 3.6 + 1e-4).all())
    assert bool((right >= wall + 3.6 - 1e-4).all())
    assert bool((right <= 57.4 + 1e-5).all())
    assert 6.6 - 1e-5 <= float(both[..., 1].min()) < 6.8 < 57.2 < float(both[..., 1].max()) <= 57.4 + 1e-5
    assert 0.4 < float((episodes.start[:, 0] < wall).float().mean()) < 0.6
    again = new_episodes(TWO_ROOMS_RANDOM, seeds_of_test(500)[7:8])
    assert torch.equal(again.start[0], episodes.start[7])


def test_training_walks():
    states, actions, layouts = TWO_ROOMS_RANDOM.trajectories(600, 90, generator())
    assert states.shape == (600, 91, 2)
    assert actions.shape == (600, 90, 2)
    moved = states[:, 1:] - states[:, :-1]
    is_still = (moved == 0).all(-1)
    assert torch.allclose(moved[~is_still], actions[~is_still], atol=1e-4)
    lengths = actions.norm(dim=-1)
    assert 0.2 - 1e-5 <= float(lengths.min()) < float(lengths.max()) <= 1.8 + 1e-5
    assert 4 < float(states.min()) <= float(states.max()) < 60
    same = TWO_ROOMS_RANDOM.trajectories(600, 90, generator())
    assert torch.equal(same[0], states)


def test_a_share_of_the_walks_is_led_through_the_door():
    """Without walls in the way, every led walk meets the door; the others do so by chance alone."""
    layout = FIXED.expand(400, 2)
    actions, start = TWO_ROOMS._through_door(layout, 90, generator())
    is_kept = ((start > 4.02) & (start < 59.98)).all(-1)  # others were moved to the border
    places = torch.cat([start[:, None], start[:, None] + actions.cumsum(1)], 1)
    in_door = ((places[..., 0] - 32).abs() <= 1 + 1e-4) & ((places[..., 1] - 18).abs() <= 4 + 1e-4)
    assert bool(in_door[is_kept].any(1).all())
    turns = torch.atan2(actions[..., 1], actions[..., 0])
    assert float((turns[:, 1:] - turns[:, :-1]).cos().mean()) > 0.85, "a walk, not two"
    rightwards = float((actions.sum(1)[:, 0] > 0).float().mean())
    assert 0.42 < rightwards < 0.58


# --- TwoRoom of stable-worldmodel -------------------------------------------------------------------------------------


def test_tworoom_picture():
    world = TwoRoom()
    picture = world.render(at(60.0, 150.0), at(49.0))[0]
    assert tuple(picture.shape) == world.picture_shape == (3, 224, 224)
    assert picture[:, 150, 60].tolist() == [255, 0, 0]
    black = (picture == 0).all(0)
    assert [c for c in range(224) if bool(black[100, c])] == [*range(10, 14), *range(107, 118), *range(210, 214)]
    assert [r for r in range(14, 210) if not bool(black[r, 112])] == list(range(35, 64))
    assert int(picture[1, 150, 67]) == int(255 * (1 - np.exp(-0.5)))


@pytest.mark.parametrize(
    ("start", "action", "end"),
    [
        ((60.0, 150.0), (1.0, -0.5), (65.0, 147.5)),
        ((60.0, 150.0), (9.0, 0.0), (65.0, 150.0)),
        ((22.0, 150.0), (-1.0, 0.0), (21.0, 150.0)),
        ((98.0, 150.0), (1.0, 0.0), (99.5, 150.0)),
        ((126.0, 150.0), (-1.0, 0.0), (124.5, 150.0)),
        ((98.0, 49.0), (1.0, 0.0), (103.0, 49.0)),
        ((98.0, 62.0), (1.0, 0.0), (99.5, 62.0)),
    ],
)
def test_tworoom_steps(start, action, end):
    assert TwoRoom().step(at(*start), at(*action), at(49.0), at(0.0, 0.0))[0].tolist() == pytest.approx(list(end))


def test_tworoom_expert_gets_to_other_rooms_and_acts_within_the_box():
    states, actions, _ = TwoRoom().trajectories(200, 200, generator())
    assert float(actions.abs().max()) <= 1
    is_left = states[..., 0] < 112
    assert float((is_left.any(1) & ~is_left.all(1)).float().mean()) > 0.3
    repeated = (actions[:, 1:] == actions[:, :-1]).all(-1).float().mean()
    assert 0.04 < float(repeated) < 0.2, "5 %, and corners of the box that are drawn twice"


def test_tworoom_goals_are_25_steps_ahead_on_a_walk_of_the_expert():
    """And a random policy reaches about as many as a public audit found, 26 %."""
    world, seeds = TwoRoom(), seeds_of_test(40)
    episodes = new_episodes(world, seeds)
    assert torch.equal(episodes.layout, torch.full((40, 1), 49.0))
    apart = (episodes.goal - episodes.start).abs()
    assert 40 < float(apart.max()) <= 25 * 5, "no further than 25 steps of 5 pixels on an axis"
    generator = generator_of(seeds[7], "episode")
    first = int(torch.randint(92 - 25 + 1, (), generator=generator))
    states, _, _ = world.trajectories(1, first + 25, generator)
    assert torch.equal(states[0, first], episodes.start[7])
    assert torch.equal(states[0, first + 25], episodes.goal[7])
    found = audit.judge(world, episodes, audit.play_random(world, episodes, 50), judged_every=1)
    assert 0.12 < float(found.is_reached.float().mean()) < 0.4


# --- PointMaze --------------------------------------------------------------------------------------------------------


def test_pointmaze_physics_and_pictures():
    pytest.importorskip("gymnasium_robotics")
    world = PointMaze()
    states, actions, layout = world.trajectories(4, 60, generator())
    assert states.shape == (4, 61, 4)
    assert not bool(world.crosses(states[:, :-1], states[:, 1:], layout[:, None]).any())
    # One simulator for all: an episode does not feel the others.
    alone, noise = states[2:3, 0], torch.zeros(1, 2)
    for t in range(60):
        alone = world.step(alone, actions[2:3, t], layout[2:3], noise)
    assert torch.equal(alone[0], states[2, 60])
    picture = world.render(torch.tensor([[-1.0, 1.0, 0, 0]]), torch.zeros(1, 0))[0]
    row, column = 19, 19  # cell (1, 1) is pixels 13 to 25
    assert picture[:, row, column].tolist() == [20, 170, 60]
    assert picture[:, 32, 19].tolist() == [90, 110, 160], "the bar of the U"
    assert picture[:, 32, 44].tolist() == [235, 230, 220]
    assert world.distance(torch.tensor([0.0, 0, 9, 9]), torch.tensor([3.0, 4, 0, 0])) == 5


# --- crossing, and gymnasium ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((-1, 0.5), (2, 0.5), True),  # through, though both ends are outside
        ((-1, 1), (2, 1), False),  # along an edge
        ((-1, 0.5), (0, 0.5), False),  # touches
        ((-1, 0.5), (-0.5, 0.5), False),
        ((0.5, -1), (0.5, 0.2), True),
        ((0.5, 0.5), (0.5, 0.5), False),  # does not move
        ((-0.5, 0.4), (0.4, -0.5), False),  # passes a corner
        ((-0.2, 0.4), (0.4, -0.2), True),
    ],
)
def test_swept_collision(before, after, expected):
    box = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    found = sweep.crosses(torch.tensor(before).float(), torch.tensor(after).float(), *box)
    assert bool(found) is expected


@pytest.mark.parametrize("task", [task for task in WORLDS if task != "tworoom-swm"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_gymnasium(task):
    if task == "pointmaze":
        pytest.importorskip("gymnasium_robotics")
    env = gymnasium.make(f"vjepa/{registration.NAMES[task]}-v0")
    check_env(env.unwrapped, skip_render_check=True)
    obs, info = env.reset(seed=3)
    assert obs.shape == new_world(task).picture_shape
    start, goal, _ = new_world(task).episode(3)
    assert np.array_equal(info["state"], start)
    assert np.array_equal(info["goal"], goal)
    world: Any = env.unwrapped
    world.state = torch.from_numpy(info["goal"])[None]
    _, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
    assert (reward, terminated) == (1.0, True)

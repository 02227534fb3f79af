"""CarRacing: gymnasium's physics bit for bit, and frames that differ from gymnasium's own by less than half a level."""

import math
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from gymnasium.envs.box2d.car_racing import CarRacing as Gymnasium

from common.seeding import derive_seed
from ha2018.controller import car_action
from ha2018.racing import SCENE_ROWS, CarRacing
from ha2018.random_play import RANDOM_POLICIES, car_episode, collection_actions, random_car_controller, random_return


def drive(physics, step):
    """An action that follows the road, with a slide and a push through the grass now and then."""
    if step % 100 in range(70, 80):
        return np.array([1, 1, 0], np.float32)
    hull, track = physics.car.hull, np.array(physics.track)
    x, y = hull.position
    nearest = int(np.hypot(track[:, 2] - x, track[:, 3] - y).argmin())
    ahead = track[(nearest + 4) % len(track)]
    error = math.remainder(math.atan2(ahead[3] - y, ahead[2] - x) - math.pi / 2 - hull.angle, 2 * math.pi)
    speed, wanted = math.hypot(*hull.linearVelocity), 50 if abs(error) < 0.15 else 30
    brake = 0.5 if speed > wanted + 10 else 0
    return np.array([np.clip(-2 * error, -1, 1), 0.6 * (speed < wanted), brake], np.float32)


def state(physics):
    car = physics.car
    bodies = [(*b.position, b.angle, *b.linearVelocity, b.angularVelocity) for b in (car.hull, *car.wheels)]
    return np.array([*np.concatenate(bodies), *(w.omega for w in car.wheels), *(w.phase for w in car.wheels)])


def episode(game, seed, steps):
    game.reset(seed)
    found = []
    for step in range(steps):
        reward, done = game.step(drive(game.physics, step))
        found.append((reward, *state(game.physics)))
        if done:
            break
    return np.array(found)


@pytest.fixture(scope="module")
def pairs():
    """(our frame, gymnasium's, our reward, theirs, our state, theirs) of 200 driven steps on each of 5 tracks."""
    found = []
    for seed in range(5):
        theirs, ours = Gymnasium(), CarRacing()
        frame, _ = theirs.reset(seed=seed)
        ours.reset(seed)
        reward, expected = 0.0, 0.0
        for step in range(200):
            found.append((ours.frame, frame, reward, expected, state(ours.physics), state(theirs)))
            action = drive(theirs, step)
            frame, expected, terminated, _, _ = theirs.step(action)
            reward, done = ours.step(action)
            assert done == terminated
    return found


def test_physics_are_gymnasiums_bit_for_bit(pairs):
    for _, _, reward, expected, ours, theirs in pairs:
        assert reward == expected
        np.testing.assert_array_equal(ours, theirs)
    assert sum(pair[2] for pair in pairs) > 300  # tiles were reached
    assert max(pair[4][3:5].max() for pair in pairs) > 30  # metres a second


def test_frames_differ_from_gymnasiums_by_less_than_half_a_level(pairs):
    assert len(pairs) == 1000
    ours, theirs = (np.stack([pair[k] for pair in pairs]).astype(np.int16) for k in (0, 1))
    assert ours.shape == theirs.shape == (1000, 96, 96, 3)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.5
    assert difference.reshape(5, 200, -1).mean((1, 2)).max() < 0.5  # on every track
    assert difference[:, :SCENE_ROWS].mean() < 0.25
    # The drive has shown kerbs, and the tiles under the wheels have changed.
    assert ((theirs[:, :SCENE_ROWS] > 245).all(-1)).any()


def test_a_plain_area_has_the_very_level_of_gymnasium(pairs):
    """The upper left corner, where no edge passes most of the time."""
    ours, theirs = (np.stack([pair[k][:4, :4].reshape(-1, 3) for pair in pairs]) for k in (0, 1))
    plain = (theirs == theirs[:, :1]).all((1, 2))
    assert plain.mean() > 0.3
    assert (ours[plain] == theirs[plain]).mean() > 0.999  # a shade of the road can end within a corner


def test_an_episode_is_a_function_of_its_seed_and_actions():
    game = CarRacing()
    first = episode(game, 3, 150)
    other = episode(game, 4, 150)
    np.testing.assert_array_equal(episode(game, 3, 150), first)
    np.testing.assert_array_equal(episode(CarRacing(), 3, 150), first)
    assert (first[:, 1] != other[:, 1]).any()


def test_looking_changes_nothing():
    """A game whose frames are drawn drives as one whose frames are not."""
    blind = episode(CarRacing(), 5, 60)
    game = CarRacing()
    game.reset(5)
    for step in range(60):
        obs, again = game.observe(), game.observe()
        np.testing.assert_array_equal(obs, again)
        assert obs.shape == (64, 64, 3)
        reward, _ = game.step(drive(game.physics, step))
        np.testing.assert_array_equal([reward, *state(game.physics)], blind[step])


def test_an_episode_ends_off_the_field_or_in_time():
    game = CarRacing(max_steps=30)
    game.reset(0)
    ends = [game.step(np.zeros(3, np.float32)) for _ in range(30)]
    assert [done for _, done in ends] == [False] * 29 + [True]
    assert sum(reward for reward, _ in ends) == pytest.approx(2000 / len(game.physics.track) - 3, abs=1e-3)
    game = CarRacing()
    game.reset(0)
    for _ in range(1000):
        reward, done = game.step(np.array([0, 0.6, 0], np.float32))
        if done:
            break
    assert reward == -100
    assert game.steps < 1000
    game.step(np.zeros(3, np.float32))  # the collection goes on where an episode has ended
    assert game.observe().shape == (64, 64, 3)


def test_there_are_no_skid_marks():
    """Two cars in one place, one of which has slid there."""
    game = CarRacing()
    game.reset(1)
    for step in range(110):
        game.step(drive(game.physics, step))
    assert game.physics.car.particles
    before = game.observe()
    game.physics.car.particles.clear()
    np.testing.assert_array_equal(game.observe(), before)


def test_opencv_averages_as_one_shrinking():
    """The two halvings of the painter against one area average, which they replace."""
    fine = np.random.default_rng(0).integers(0, 256, (336, 384, 3), np.uint8)
    half = cv2.resize(fine, (192, 168), interpolation=cv2.INTER_AREA)
    twice = cv2.resize(half, (96, 84), interpolation=cv2.INTER_AREA)
    once = fine.reshape(84, 4, 96, 4, 3).mean((1, 3))
    assert np.abs(twice - once).max() <= 1


def test_the_collection_policy_is_a_random_controller_on_noise():
    """Gas near one half, brake off half of the time, steering of random strength; the controller is the shipped one."""
    actions = np.stack([list(islice(collection_actions(seed), 100)) for seed in range(60)])
    assert actions.dtype == np.float32
    steering, gas, brake = actions.reshape(-1, 3).T
    assert abs(steering.mean()) < 0.06
    assert abs(gas.mean() - 0.5) < 0.05
    assert 0.4 < (brake == 0).mean() < 0.6
    assert 0.05 < brake.mean() < 0.2
    strength = np.abs(actions[..., 0]).mean(1)
    assert strength.max() > 10 * strength.min()
    _, params = random_car_controller(3, 867)
    rng = np.random.RandomState(derive_seed(3, "noise") % 2**32)
    x = torch.from_numpy(np.stack([np.pad(rng.standard_normal(32), (0, 256)) for _ in range(100)]))
    np.testing.assert_allclose(car_action(torch.from_numpy(params), x), actions[3], atol=1e-6)


def test_random_episodes_are_as_long_as_asked_and_a_function_of_their_seed():
    game = CarRacing(40)
    frames, actions = car_episode(game, 3, 40)
    again, _ = car_episode(CarRacing(40), 3, 40)
    np.testing.assert_array_equal(frames, again)
    assert frames.shape == (40, 64, 64, 3)
    np.testing.assert_allclose(actions, np.stack(list(islice(collection_actions(3), 40))), atol=1e-3)
    np.testing.assert_array_equal(actions, actions.astype(np.float16))
    game.reset(3)
    np.testing.assert_array_equal(frames[0], game.observe())  # the observation before the action


def test_random_returns_depend_on_seed_and_policy():
    returns = {name: random_return(CarRacing(60), "car", name, 5) for name in RANDOM_POLICIES["car"]}
    assert returns == {name: random_return(CarRacing(60), "car", name, 5) for name in RANDOM_POLICIES["car"]}
    assert returns["collection"] > returns["none"]
    uniform = np.stack(list(islice(RANDOM_POLICIES["car"]["uniform"](0), 1000)))
    assert uniform.min(0) == pytest.approx([-1, 0, 0], abs=0.02)
    assert uniform.max(0) == pytest.approx([1, 1, 1], abs=0.02)

"""The worlds: what they show and take, that an episode is its seed and its actions, and clear complaints."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from common import testing
from dreamerv3 import train
from dreamerv3.agent import new_agent
from dreamerv3.atari import gray
from dreamerv3.config import TASKS, Config
from dreamerv3.env import Crafter, Gym, Worlds, gym_arguments, make_world
from dreamerv3.interface import Step, WorldError, need, rescale, resized
from dreamerv3.replay import Replay
from dreamerv3.spaces import ActionSpace, ObsSpace

WORLDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], int]] = {
    "walker": ({"task": "dmc_proprio_walker_walk"}, {"orientations": (14,), "height": (1,), "velocity": (9,)}, 6),
    "cup": ({"task": "dmc_proprio_ball_in_cup_catch"}, {"position": (4,), "velocity": (4,)}, 2),
    "boxing": ({"task": "atari100k_boxing"}, {"image": (64, 64, 1)}, 18),
    "boxing, nature": ({"task": "atari100k_boxing", "edition": "nature"}, {"image": (64, 64, 3)}, 18),
    "breakout, nature": ({"task": "atari100k_breakout", "edition": "nature"}, {"image": (64, 64, 3)}, 4),
    "freeway of 57": ({"task": "atari57_freeway"}, {"image": (96, 96, 1)}, 18),
    "crafter": ({"task": "crafter"}, {"image": (64, 64, 3)}, 17),
    "cartpole of gym": ({"task": "gym"}, {"obs": (4,)}, 2),
    "pendulum of gym": ({"task": "gym", "gym_id": "Pendulum-v1"}, {"obs": (3,)}, 1),
    "lake of gym": ({"task": "gym", "gym_id": "FrozenLake-v1"}, {"obs": ()}, 4),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_shows_what_it_says_and_repeats_itself(name):
    options, shapes, size = WORLDS[name]
    world = make_world(Config(**options))
    assert {key: space.shape for key, space in world.spaces.items()} == shapes
    assert world.actions.size == size

    def play(seed):
        rng, steps = np.random.default_rng(0), [world.reset(seed)]
        for _ in range(8):
            action = np.array(rng.integers(size)) if world.actions.is_discrete else rng.uniform(-1, 1, size)
            steps.append(world.step(action.astype(np.float32)))
            if steps[-1].is_last:
                break
        return steps

    first, other, again = play(1), play(2), play(1)
    assert [step.reward for step in first] == [step.reward for step in again]
    for a, b in zip(first, again, strict=True):
        for key, space in world.spaces.items():
            assert np.array_equal(a.obs[key], b.obs[key])
            assert np.shape(a.obs[key]) == space.shape
            kinds = {"image": np.uint8, "float": np.float32, "discrete": np.int32}
            assert np.asarray(a.obs[key]).dtype == kinds[space.kind]
    if name not in ("lake of gym", "freeway of 57"):
        key = next(iter(shapes))
        assert any(not np.array_equal(a.obs[key], b.obs[key]) for a, b in zip(first, other, strict=False))
    world.close()


def test_a_control_episode_is_1000_environment_steps_and_never_terminal():
    for repeat, steps in ((2, 500), (3, 334)):
        world = make_world(Config(task="dmc_proprio_cartpole_balance", action_repeat=repeat))
        found, count = world.reset(0), 0
        while not found.is_last:
            found, count = world.step(np.zeros(1, np.float32)), count + 1
        assert count == steps
        assert not found.is_terminal
        world.close()


def test_the_creatures_of_crafter_do_not_depend_on_addresses_in_memory():
    def creatures(seed: int) -> list[Any]:
        world, rng, found = Crafter(repeat=1), np.random.default_rng(seed), []
        world.reset(seed)
        for _ in range(120):
            if world.step(np.asarray(rng.integers(17))).is_last:
                break
            found.append([(type(creature), *creature.pos) for creature in world._env._world.objects])
        return found

    for seed in (0, 1):
        assert creatures(seed) == creatures(seed)


def test_gray_levels_are_those_of_the_reference_code():
    """The sum of three products in double precision, rounded down: every level stays what it is."""
    levels = np.arange(256, dtype=np.uint8)
    wanted = [int(g * 0.299 + g * 0.587 + g * (1 - (0.299 + 0.587))) for g in range(256)]
    assert gray(np.stack([levels] * 3, -1))[:, 0].tolist() == wanted == levels.tolist()


class Numbered:
    """A game whose frames are gray in the level of their number, and which ends after one of them."""

    def __init__(self, end: int) -> None:
        self.end = end

    def _frame(self):
        return np.full((210, 160, 3), self.number, np.uint8)

    def reset(self, seed=None):
        self.number = 0
        return self._frame(), {}

    def step(self, action):
        self.number += 1
        return self._frame(), 1.0, self.number == self.end, False, {}


@pytest.mark.parametrize(("end", "shown"), [(5, 4), (6, 4), (7, 7), (8, 8)])
def test_a_game_that_ends_before_the_frames_that_are_shown_shows_the_ones_before(end, shown):
    world = make_world(Config(task="atari100k_boxing", edition="nature"))
    world._env, world._rules = Numbered(end), replace(world._rules, noops=0)  # type: ignore[attr-defined]
    world.reset(0)
    assert (world.step(np.array(0)).obs["image"] == 4).all()
    found = world.step(np.array(0))
    assert found.is_last
    assert found.reward == end - 4
    assert (found.obs["image"] == shown).all()


def test_repeated_rewards_are_summed():
    """Two steps of one are one step of two."""
    single, double = (make_world(Config(task="dmc_proprio_cartpole_swingup", action_repeat=k)) for k in (1, 2))
    single.reset(3)
    double.reset(3)
    action = np.array([0.3], np.float32)
    rewards = [single.step(action).reward for _ in range(2)]
    found = double.step(action)
    assert found.reward == pytest.approx(sum(rewards), rel=1e-6)
    assert found.reward > max(rewards)


def test_actions_are_rescaled_and_clipped():
    low, high = np.array([0.0, -2.0]), np.array([1.0, 2.0])
    assert rescale(np.array([-1.0, 1.0]), low, high).tolist() == [0, 2]
    assert rescale(np.array([0.0, -7.0]), low, high).tolist() == [0.5, -2]


class Count:
    """An episode of three steps whose observation counts them from the seed on, and whose rewards are the actions."""

    spaces = {"x": ObsSpace("float", (1,))}
    actions = ActionSpace(1, is_discrete=False)

    def reset(self, seed):
        self.seed, self.number = seed, 0
        return self._step(0.0)

    def step(self, action):
        self.number += 1
        return self._step(float(action[0]))

    def _step(self, reward):
        return Step({"x": np.array([self.seed % 1000 + self.number], np.float32)}, reward, self.number == 3)

    def close(self):
        pass


def test_worlds_begin_anew_by_themselves_and_come_back_to_the_middle_of_an_episode():
    with Worlds(Count, [4, 9], 0, "test") as worlds, Worlds(Count, [4, 9], 0, "test") as again:
        taken, rows, finished = [], [], []
        for number in range(10):
            taken.append(np.full((2, 1), number, np.float32))
            rows.append(worlds.step(taken[-1]))
            finished.append(worlds.finished)
        firsts = [row["is_first"].tolist() for row in rows]
        assert [first[0] for first in firsts] == [True, False, False, False] * 2 + [True, False]
        assert [row["is_last"][1] for row in rows] == [False, False, False, True] * 2 + [False, False]
        assert rows[0]["reward"].tolist() == [0, 0]
        assert [(f.env, f.total, f.length) for f in finished[3]] == [(0, 6, 3), (1, 6, 3)]
        assert len({float(rows[k]["obs/x"][j, 0]) for k in (0, 4, 8) for j in (0, 1)}) > 3
        # Rows 8 and 9 belong to the running episode: its first action and one that is not taken yet.
        again.restore(worlds.episode, [[taken[9][0], taken[0][0]]] * 2)
        a, b = worlds.step(taken[0]), again.step(taken[0])
        assert all(np.array_equal(a[name], b[name]) for name in a)
        assert worlds.totals == again.totals
        assert worlds.lengths == again.lengths


class Pictures(gymnasium.Env):
    """A world whose observations are given; it shows the same all the time."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, **shown: Any) -> None:
        def space(value: np.ndarray) -> gymnasium.Space[Any]:
            return gymnasium.spaces.Box(0, 255, value.shape, value.dtype.type)

        self.shown = shown
        self.observation_space = gymnasium.spaces.Dict({name: space(value) for name, value in shown.items()})

    def reset(self, **_: Any) -> Any:
        return self.shown, {}

    def step(self, action: Any) -> Any:
        return self.shown, 0.0, False, False, {}


@pytest.fixture
def pictures() -> Any:
    """pictures(name=array, ...): such a world."""
    gymnasium.register("Pictures-v0", Pictures)

    def make(**shown: Any) -> Gym:
        gymnasium.registry["Pictures-v0"].kwargs = shown
        return Gym("Pictures-v0", 1)

    yield make
    del gymnasium.registry["Pictures-v0"]


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4, 12])
def test_every_channel_of_an_image_is_resized_by_itself(channels, pictures):
    shape = (96, 80, channels) if channels else (96, 80)
    image = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    world = pictures(obs=image)
    assert world.spaces["obs"].shape == (64, 64, channels or 1)
    found = world.reset(0).obs["obs"]
    for k in range(channels or 1):
        assert np.array_equal(found[..., k], resized(image[..., k] if channels else image, 64))
    if channels == 3:
        assert np.array_equal(found, resized(image, 64))


def test_an_image_with_its_channels_first_is_refused(pictures):
    with pytest.raises(WorldError, match=r"'obs' is an image \(3, 96, 96\); its channels must come last"):
        pictures(obs=np.zeros((3, 96, 96), np.uint8))


def test_observations_may_have_any_name(pictures, tmp_path):
    """Also those that torch keeps for itself, and names whose files could be taken for one another."""
    names = ["type", "a.b", "a/b", "a-b", "", "%", "position"]
    world = pictures(**{name: np.full(k + 1, k, np.float32) for k, name in enumerate(names)})
    agent = new_agent(world.spaces, world.actions, Config(size="1m"))
    assert "world.decoder.outs.position.weight" in agent.state_dict()
    state = agent.world.rssm.initial_state(1)
    assert {name: value.shape[-1] for name, value in agent.world.decoder(state.h, state.z).items()} == {
        name: k + 1 for k, name in enumerate(names)
    }
    replay = Replay(tmp_path, world.spaces, world.actions, agent.world.rssm.sizes, 1, 100, 4)
    for k, name in enumerate(names):
        replay.rows.arrays[f"obs/{name}"][0] = k
    assert [replay.rows.arrays[f"obs/{name}"][0].mean() for name in names] == list(range(len(names)))


def test_the_games_of_ale_are_known_to_gymnasium():
    world = make_world(Config(task="gym", gym_id="ALE/Pong-v5"))
    assert world.spaces["obs"].shape == world.reset(0).obs["obs"].shape == (64, 64, 3)
    world.close()


def test_what_gymnasium_cannot_give_is_said_in_one_line():
    for gym_id, complaint in (("Blackjack-v1", "supported"), ("NoSuch-v0", "cannot make"), ("a/b/c", "cannot make")):
        with pytest.raises(WorldError, match=complaint) as error:
            Gym(gym_id, 1)
        assert "\n" not in str(error.value)


def test_the_arguments_of_a_gymnasium_world_are_given_on():
    words = "a=1, b=0.5,c=true,d=None,e=rgb_array,"
    assert gym_arguments(words) == {"a": 1, "b": 0.5, "c": True, "d": None, "e": "rgb_array"}
    assert gym_arguments(None) == {}
    config = Config(task="gym", gym_args="sutton_barto_reward=true,max_episode_steps=3")
    with Worlds(lambda: make_world(config), [0], 0, "test") as worlds:
        rows = [worlds.step(np.zeros(1, np.int64)) for _ in range(4)]
    assert [float(row["reward"][0]) for row in rows] == [0, 0, 0, 0]  # it pays nothing until the pole falls
    assert [bool(row["is_last"][0]) for row in rows] == [False, False, False, True]
    for bad, complaint in (("x", "takes key=value"), ("a b=1", "takes key=value"), ("no_such=1", "unexpected keyword")):
        with pytest.raises(WorldError, match=complaint) as error:
            make_world(replace(config, gym_args=bad))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("task", "channels"), [("crafter", 3), ("atari100k_pong", 1), ("gym", 3)])
def test_images_have_the_size_that_is_asked_for(task, channels):
    world = make_world(Config(task=task, gym_id="ALE/Pong-v5", image_size=32))
    shown = next(iter(world.reset(0).obs.values()))
    assert shown.shape == next(iter(world.spaces.values())).shape == (32, 32, channels)
    agent = new_agent(world.spaces, world.actions, Config(task=task, size="1m"))
    state = agent.world.rssm.initial_state(1)
    assert next(iter(agent.world.decoder(state.h, state.z).values())).shape == (1, *shown.shape)
    world.close()


def test_a_size_for_images_that_do_not_fit_or_are_not_there_is_refused():
    with pytest.raises(ValueError, match="multiple of 16, not 72"):
        Config(image_size=72)
    with pytest.raises(WorldError, match="image_size: dmc_proprio_cartpole_balance has no images"):
        make_world(Config(image_size=64))


def test_a_machine_without_a_renderer_is_told_so(tmp_path):
    code = "from dreamerv3.train import main; main(['--preset', 'smoke', '--task', 'dmc_vision_cartpole_balance'])"
    everything = os.environ | {"PYTHONPATH": str(testing.ROOT), "OMP_NUM_THREADS": "1"}
    plain = {name: value for name, value in everything.items() if not name.endswith(("DISPLAY", "MUJOCO_GL"))}
    variables = ({"MUJOCO_GL": "disabled"}, {"MUJOCO_GL": "glfw"}, {"__EGL_VENDOR_LIBRARY_FILENAMES": "none.json"})
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    started = [subprocess.Popen(command, cwd=tmp_path, env=plain | v, stderr=pipe, text=True) for v in variables]
    for process, backend in zip(started, ("disabled", "glfw", "egl"), strict=True):
        _, error = process.communicate()
        assert process.returncode == 2, error
        assert error.count("\n") == 1, error
        assert f"MuJoCo cannot render (MUJOCO_GL={backend}: " in error
        assert "pip" not in error
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_renderer(monkeypatch) -> Any:
    """The module that draws the worlds of dm_control, and the choice of a renderer left out."""
    make_world(Config())
    monkeypatch.setattr(importlib, "reload", lambda module: module)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield importlib.import_module("dm_control.mujoco.engine")
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("fault", [ImportError, AttributeError, RuntimeError, "FatalError"])
def test_whatever_a_renderer_fails_with_is_one_line(fault, no_renderer, monkeypatch, capsys, tmp_path):
    """When it is chosen, and in the middle of a run."""
    kind = importlib.import_module("mujoco").FatalError if fault == "FatalError" else fault
    frames = [np.zeros((64, 64, 3), np.uint8)] * 7

    def broken(*_: Any, **__: Any) -> Any:
        if not frames:
            raise kind("no device,\nnone")
        return frames.pop()

    monkeypatch.setattr(no_renderer.Physics, "render", broken)
    small = ["--preset", "smoke", "--task", "dmc_vision_cartpole_balance", "--env-frames", "40"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            train.main([*small, "--run", str(tmp_path / "run")])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "MuJoCo cannot render (MUJOCO_GL=egl: no device, none)" in error
        monkeypatch.setattr(importlib, "reload", broken)


@pytest.mark.usefixtures("egl")
def test_worlds_that_render_come_after_others_and_leave_the_environment_alone():
    before = dict(os.environ)
    make_world(Config()).close()
    with Worlds(lambda: make_world(Config(task="dmc_vision_cartpole_balance")), [0, 1, 2], 0, "test") as worlds:
        image = [worlds.step(np.zeros((3, 1), np.float32))["obs/image"] for _ in range(2)]
    assert np.stack(image).std((2, 3, 4)).min() > 5
    assert dict(os.environ) == before


def test_every_task_has_a_plan():
    for task in TASKS:
        for edition in ("arxiv_v2", "nature"):
            assert Config(task=task, edition=edition).plan.train_ratio > 0
    assert Config(task="atari57_pong").benchmark == "atari57"
    for task in ("foo", "crafter_2", "dmc_proprio_foo"):
        with pytest.raises(ValueError, match=f"unknown task '{task}'"):
            _ = Config(task=task).plan
    plan = Config(task="dmc_proprio_walker_walk", train_ratio=7.0).plan
    assert (plan.train_ratio, plan.size, plan.action_repeat, plan.env_frames) == (7.0, "12m", 2, 500_000)


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(WorldError, match=r"no_such_world cannot be imported \(.*\); pip install this"):
        need("no_such_world", "this")
    with pytest.raises(WorldError) as error:
        need("gymnasium.no_such_part", "this")
    assert "pip" not in str(error.value)


def test_no_library_of_a_world_is_imported_before_it_is_played():
    """A machine that only trains needs none of them."""
    names = ("gymnasium", "ale_py", "dm_control", "mujoco", "crafter")
    code = f"import sys; sys.modules.update(dict.fromkeys({names}))"
    code += "; import dreamerv3.train, dreamerv3.evaluate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=testing.ROOT, check=False)
    assert done.returncode == 0, done.stderr

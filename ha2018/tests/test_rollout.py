"""Rollouts of C in CarRacing: which numbers an episode depends on, controllers of their own, all three kinds of C."""

import numpy as np
import pytest
import torch

from ha2018 import rollout
from ha2018.agent import Agent
from ha2018.config import PRESETS, TASKS, Config
from ha2018.controller import Controller
from ha2018.env import command
from ha2018.memory import MDNRNN
from ha2018.rollout import open_games, real_returns
from ha2018.vision import VAE

STEPS = 30
CONFIG = Config(**TASKS["car"], task="car", workers=1)


@pytest.fixture(scope="module")
def parts():
    """Never trained, but C's actions depend on z and on the state."""
    torch.manual_seed(0)
    return VAE(4).eval(), MDNRNN(4, 3, 6, 5, predicts_restart=False)


@pytest.fixture
def actions(monkeypatch):
    """Every action that is taken, in order."""
    taken = []

    def command(action):
        taken.append(action)
        return action

    monkeypatch.setattr(rollout, "command", command)
    return taken


def play(parts, controller, params, seeds, games, max_steps=STEPS):
    with open_games(CONFIG, games, max_steps) as games:
        vae, memory = parts
        return real_returns(Agent(vae, memory, controller, params), seeds, games)


@pytest.mark.parametrize(("inputs", "hidden"), [("zh", 0), ("z", 0), ("z", 3)])
def test_returns_depend_on_the_seed_and_the_controller_alone(parts, inputs, hidden):
    """More episodes than games, so that some games play twice."""
    controller = Controller(inputs, hidden)
    params = torch.randn(2, controller.params(4, 6), generator=torch.Generator().manual_seed(1))
    seeds, own = [3, 1], params.repeat_interleave(2, dim=0)
    together, lengths = play(parts, controller, own, seeds * 2, 3)
    assert lengths.tolist() == [STEPS] * 4
    assert len(np.unique(together)) > 1
    for member in range(2):
        alone, _ = play(parts, controller, params[member], seeds, 1)
        np.testing.assert_allclose(together[2 * member : 2 * member + 2], alone, atol=1e-9)


def test_what_the_games_are_told():
    assert command(np.array([0.5], np.float32)) == 1
    action = np.array([0.5, 1, 0], np.float32)
    assert command(action) is action


def test_the_state_reaches_c_and_an_episode_begins_without_that_of_the_one_before(parts, actions):
    controller = Controller("zh")
    params = torch.randn(controller.params(4, 6), generator=torch.Generator().manual_seed(2))
    play(parts, controller, params, [6], 1, 10)
    alone = np.stack(actions)
    play(parts, controller, params, [5, 6], 1, 10)
    np.testing.assert_allclose(actions[20:], alone, atol=1e-6)
    blind = params.clone()
    blind[3:].view(10, 3)[4:] = 0  # the weights of h
    play(parts, controller, blind, [6], 1, 10)
    np.testing.assert_allclose(actions[30], alone[0], atol=1e-6)  # h is zero at first
    assert np.abs(np.stack(actions[30:]) - alone)[1:].max() > 0.01


def test_sizes_of_the_papers_controllers():
    assert CONFIG.controller_params == 867
    assert Config(**{**TASKS["car"], "controller_inputs": "z"}, task="car").controller_params == 99
    hidden = {"controller_inputs": "z", "controller_hidden": 40}
    assert Config(**{**TASKS["car"], **hidden}, task="car").controller_params == 1443
    assert Config().controller_params == 1088
    assert not PRESETS["paper"].values
    assert not PRESETS["paper"].by_task


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"task": "car"}, "controller_inputs zch is not for task car"),
        ({"controller_inputs": "zh"}, "controller_inputs zh is not for task doom"),
        ({"controller_hidden": 40}, "controller_hidden is for task car alone"),
    ],
)
def test_a_controller_of_the_other_task_is_refused(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**values)

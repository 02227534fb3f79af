"""Play without eyes: what the fixed policies and a blind C do, and the table of a world model."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from ha2018 import screen
from ha2018.agent import Agent
from ha2018.config import Config
from ha2018.controller import Controller
from ha2018.memory import MDNRNN
from ha2018.rollout import open_games
from ha2018.vision import VAE

SEEDS = [3, 1, 3]


@pytest.fixture(scope="module")
def agent():
    torch.manual_seed(0)
    return Agent(VAE(4), MDNRNN(4, 1, 6, 5, predicts_restart=True), Controller("zch"), torch.randn(16))


def test_what_the_fixed_policies_do():
    for name, action in (("still", 0), ("left", -1), ("right", 1)):
        assert set(islice(screen.FIXED_POLICIES[name](0), 50)) == {action}
    for period in screen.SWEEPS:
        sweep = np.array(list(islice(screen.FIXED_POLICIES[f"sweep {period}"](0), 3 * period)))
        assert sweep.sum() == 0
        np.testing.assert_array_equal(sweep[:period], sweep[period : 2 * period])
        assert np.count_nonzero(np.diff(sweep)) == 5


def test_a_blind_c_depends_on_its_seed_and_its_parameters_alone(agent):
    """On no frame: nothing of the game or the dream reaches it. But on its own past it does."""
    actions = screen.blind_actions(agent, SEEDS, 30)
    assert actions.shape == (3, 30)
    np.testing.assert_allclose(actions[0], actions[2], atol=1e-6)
    assert np.abs(actions[0] - actions[1]).max() > 0.1
    np.testing.assert_allclose(screen.blind_actions(agent, [1], 30)[0], actions[1], atol=1e-6)
    z_alone = agent.params.clone()
    z_alone[4:] = 0
    others = screen.blind_actions(Agent(agent.vae, agent.memory, agent.controller, z_alone), SEEDS, 30)
    np.testing.assert_allclose(others[:, 0], actions[:, 0], atol=1e-6)  # the state is empty at first
    assert np.abs(others - actions)[:, 1:].max() > 0.01


def test_given_actions_are_what_the_game_gets():
    with open_games(Config(), 2, 60) as games:
        still = screen.game_returns(np.zeros((2, 60), np.float32), [0, 1], games)
        assert still == [60, 60]
        assert screen.game_returns(np.zeros((1, 20), np.float32), [0], games) == [20]  # no more than are given


def test_a_world_model_is_screened_before_any_c(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames", "latents", "controller*"))
    screen.main(["--run", str(folder), "--episodes", "2"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1 + len(screen.FIXED_POLICIES)
    assert shown[0].split()[-1] == "game"
    means = json.loads((folder / "screen.json").read_text())["means"]
    assert list(means) == list(screen.FIXED_POLICIES)
    for row in means.values():
        assert list(row) == ["tau 0.10", "tau 0.50", "tau 1.00", "tau 1.15", "tau 1.30", "game"]
        assert all(1 <= value <= 200 for value in row.values())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--episodes", "0"], "--episodes 0"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--run", "nowhere"], "no run folder"),
    ],
)
def test_bad_options_end_in_one_line(trained, words, complaint, capsys):
    with pytest.raises(SystemExit) as end:
        screen.main(["--run", str(trained), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error

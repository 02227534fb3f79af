"""Acting in the dream: keys, what an action does there, its end, and the film where there is no display."""

from __future__ import annotations

import cv2
import numpy as np
import pygame
import pytest
import torch

from dreamerv3 import pictures, watch
from dreamerv3.agent import new_agent
from dreamerv3.config import Config
from dreamerv3.env import Worlds, make_world

CARTPOLE = Config(task="gym", size="1m")
ATARI = ("NOOP", "FIRE", "UP", "LEFT", "UPLEFT", "UPLEFTFIRE")
CRAFTER = ("noop", "move_left", "move_right", "move_up", "move_down", "do", "sleep")


@pytest.mark.parametrize(
    ("keys", "names", "action"),
    [
        (set(), ATARI, 0),
        ({"up", "left"}, ATARI, 4),
        ({"fire", "up", "left"}, ATARI, 5),
        ({"fire", "up"}, ATARI, 2),
        ({"right"}, ATARI, 0),
        ({"right"}, CRAFTER, 2),
        ({"fire"}, CRAFTER, 5),
        ({"7"}, CRAFTER, 6),
        ({"8"}, CRAFTER, 0),
        ({"2", "left"}, ("", ""), 1),
        ({"left"}, ("", ""), 0),
    ],
)
def test_keys_are_the_actions_of_the_world(keys, names, action):
    assert watch.action_of(keys, names, len(names)) == action


def test_worlds_name_their_actions():
    for task, expected in (("atari100k_pong", {"NOOP", "UP", "DOWNLEFTFIRE"}), ("crafter", {"noop", "do", "sleep"})):
        world = make_world(Config(task=task))
        assert expected <= set(world.actions.names)
        assert len(world.actions.names) == world.actions.size
        world.close()


def dream_of(config: Config, worlds: Worlds) -> watch.Dream:
    """Of an agent that has learnt nothing but that life goes on."""
    torch.manual_seed(0)
    agent = new_agent(worlds.spaces, worlds.actions, config)
    with torch.no_grad():
        agent.world.cont.out.bias.fill_(9.0)
    return watch.Dream(agent, worlds, 0)


def test_the_dream_follows_the_actions_and_repeats_itself():
    found = []
    for actions in ([0, 0, 0], [0, 0, 0], [0, 1, 0], [None, None, None]):
        with Worlds(lambda: make_world(CARTPOLE), [0], 0, "watch") as worlds:
            dream = dream_of(CARTPOLE, worlds)
            for action in actions:
                dream.step(action)
            found.append(dream.state.h.clone())
            assert worlds.lengths == [pictures.CONTEXT]  # reality stands still
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_dream_that_is_over_begins_again_where_reality_goes_on():
    with Worlds(lambda: make_world(CARTPOLE), [0], 0, "watch") as worlds:
        dream = dream_of(CARTPOLE, worlds)
        dream.step(0)
        assert not dream.is_over
        with torch.no_grad():
            dream.agent.world.cont.out.bias.fill_(-9.0)
        dream.step(0)
        assert dream.is_over
        assert (dream.steps, worlds.lengths) == (2, [pictures.CONTEXT])
        dream.step(0)
        assert (dream.steps, worlds.lengths) == (1, [2 * pictures.CONTEXT])


@pytest.mark.parametrize(("config", "rows"), [(CARTPOLE, 4 + 3), (Config(task="crafter", size="1m"), 3)])
def test_below_the_dream_stands_what_the_model_expects(config, rows):
    with Worlds(lambda: make_world(config), [0], 0, "watch") as worlds:
        dream = dream_of(config, worlds)
        shapes = []
        for _ in range(2):
            dream.step(0)
            shapes.append(dream.picture("you").shape)
    head = 32 if config.task == "gym" else watch.SIDE
    assert shapes == [(head + rows * pictures.HEIGHT, watch.SIDE, 3)] * 2
    assert list(dream.curves)[-3:] == ["reward", "value", "continue"]


def test_p_hands_over_r_begins_again_and_esc_ends(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pressed, given = {3: pygame.K_p, 5: pygame.K_p, 7: pygame.K_r, 8: pygame.K_ESCAPE}, []
    with Worlds(lambda: make_world(CARTPOLE), [0], 0, "watch") as worlds:
        dream = dream_of(CARTPOLE, worlds)
        real = dream.step

        def step(action: int | None) -> None:
            given.append(action)
            if len(given) in pressed:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pressed[len(given)]))
            real(action)

        monkeypatch.setattr(dream, "step", step)
        watch.window(dream)
        assert given == [0, 0, 0, None, None, 0, 0, 0]
        assert (dream.steps, worlds.lengths) == (1, [2 * pictures.CONTEXT])


def test_the_policy_plays_in_the_dream_without_a_display(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    path = tmp_path / "a.webm"
    watch.main(["--run", str(trained), "--film", str(path), "--steps", "6"])
    assert "the agent after 20 updates" in capsys.readouterr().out
    video = cv2.VideoCapture(str(path))
    frames = []
    while (found := video.read())[0]:
        frames.append(found[1])
    assert len(frames) == 6
    assert not np.array_equal(frames[0], frames[-1])


@pytest.mark.parametrize("words", [["--steps", "0"], ["--film", "a.mp4"], ["--device", "tpu"]])
def test_bad_options_end_in_one_line(words, trained, capsys):
    with pytest.raises(SystemExit) as end:
        watch.main(["--run", str(trained), *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

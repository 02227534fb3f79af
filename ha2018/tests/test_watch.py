"""The dream for spectators: the film without a display, the window with keys, the temperature in between."""

from collections import defaultdict

import cv2
import numpy as np
import pygame
import pytest
import torch

from ha2018 import watch
from ha2018.agent import Agent, WorldModel
from ha2018.config import Config
from ha2018.controller import Controller
from ha2018.dream import FirstFrames
from ha2018.memory import MDNRNN
from ha2018.vision import VAE
from ha2018.watch import Command, Show, Window, action_of_keys

TASKS = {"doom": (1, "zch"), "car": (3, "zh")}


@pytest.fixture(params=TASKS)
def show(request):
    """A dream of an M that was never trained."""
    actions, inputs = TASKS[request.param]
    torch.manual_seed(0)
    memory = MDNRNN(4, actions, 6, 5, predicts_restart=request.param == "doom")
    with torch.no_grad():
        memory.output_b[0] = -20  # for doom: no restart before max_steps
    vae, controller = VAE(4).eval(), Controller(inputs)
    bank = FirstFrames(torch.randn(3, 4), torch.zeros(3, 4))
    agent = Agent(vae, memory, controller, torch.randn(controller.params(4, 6)))
    return Show(WorldModel(vae, memory, bank, 3, torch.float32), agent, Config(max_steps=7), seed=0)


def test_a_dream_goes_on_for_ever_and_shows_pictures(show):
    steps = []
    for _ in range(20):
        picture = show.advance(Command())
        assert picture.shape == (512, 512, 3)
        assert picture.dtype == np.uint8
        steps.append(show.dream.steps)
    assert max(steps) < 7  # it has begun again


def test_the_temperature_and_the_beginning_are_in_the_spectators_hands(show):
    show.advance(Command(warmer=0.05))
    assert show.dream.temperature == pytest.approx(1.2)
    for _ in range(40):
        show.advance(Command(warmer=-0.05))
    assert show.dream.temperature == pytest.approx(0.05)
    show.begin()
    show.advance(Command())
    show.advance(Command(is_restart=True))
    assert show.dream.steps <= 1


def test_what_the_spectator_does_changes_the_dream(show):
    size = show.model.memory.input_size - 4 - int(show.model.memory.predicts_restart)
    found = []
    for value in (-1.0, 1.0):
        again = Show(show.model, show.agent, Config(max_steps=7), seed=5)
        again.advance(Command((value,) * size))
        found.append(again.dream.state.h.clone())
    assert not torch.equal(*found)


def test_keys():
    pressed = defaultdict(bool, {pygame.K_LEFT: True, pygame.K_UP: True})
    assert action_of_keys("doom", pressed) == (-1,)  # type: ignore[arg-type]
    assert action_of_keys("car", pressed) == (-1, 1, 0)  # type: ignore[arg-type]
    pressed = defaultdict(bool, {pygame.K_LEFT: True, pygame.K_RIGHT: True, pygame.K_DOWN: True})
    assert action_of_keys("car", pressed) == (0, 0, 0.8)  # type: ignore[arg-type]


def test_the_window_obeys_its_keys(show, monkeypatch):
    """On a display that nobody sees."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    task = "doom" if show.model.memory.predicts_restart else "car"
    window = Window(task)
    try:
        command = window.command()
        assert command is not None
        assert command.action == ((0,) if task == "doom" else (0, 0, 0))
        for key, text in ((pygame.K_c, "c"), (pygame.K_PLUS, "+"), (pygame.K_r, "r")):
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, unicode=text))
        assert window.command() == Command(None, 0.05, True)
        window.show(show.advance(Command()))
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE, unicode=""))
        assert window.command() is None
    finally:
        window.close()


def test_a_film_of_a_trained_run_is_written(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    path = tmp_path / "dream.webm"
    watch.main(["--run", str(trained), "--film", str(path), "--seconds", "0.5", "--temperature", "1.3"])
    assert str(path) in capsys.readouterr().out
    film = cv2.VideoCapture(str(path))
    frames = []
    while (answer := film.read())[0]:
        frames.append(answer[1])
    film.release()
    assert len(frames) == 18
    assert frames[0].shape == (512, 512, 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--temperature", "0"], "--temperature 0.0"),
        (["--film", "dream.mp4"], ".webm"),
        (["--temperature", "inf"], "--temperature"),
        (["--seconds", "0"], "--seconds"),
        (["--seed", "-1"], "--seed"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--colour"], "--colour"),
        (["--run", "nowhere"], "is no run folder"),
    ],
)
def test_bad_options_end_in_one_line(trained, words, complaint, capsys):
    with pytest.raises(SystemExit) as end:
        watch.main(["--run", str(trained), *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error

"""The dream for spectators: the film without a display, the window with keys, the temperature in between."""

import shutil
from collections import defaultdict

import cv2
import numpy as np
import pygame
import pytest
import torch

from ha2018 import watch
from ha2018.agent import Agent, WorldModel
from ha2018.config import TASKS as TASK_SETTINGS
from ha2018.config import Config
from ha2018.controller import Controller
from ha2018.dream import FirstFrames
from ha2018.memory import MDNRNN
from ha2018.pictures import STEPS_PER_SECOND
from ha2018.racing import CarRacing
from ha2018.vision import VAE
from ha2018.watch import Command, DreamStage, GameStage, Show, Window, action_of_keys

TASKS = {"doom": (1, "zch"), "car": (3, "zh")}


STEPS = 7


class Track(CarRacing):
    """A game that notes what it is told."""

    def __init__(self, max_steps):
        super().__init__(max_steps)
        self.told = []

    def step(self, action):
        self.told.append(action)
        return super().step(np.array([0, 0, 0], np.float32))


@pytest.fixture(params=TASKS)
def parts(request):
    """Task, world model and agent of an M that was never trained."""
    actions, inputs = TASKS[request.param]
    torch.manual_seed(0)
    memory = MDNRNN(4, actions, 6, 5, predicts_restart=request.param == "doom")
    with torch.no_grad():
        memory.output_b[0] = -20  # for doom: no restart before max_steps
    vae, controller = VAE(4).eval(), Controller(inputs)
    bank = FirstFrames(torch.randn(3, 4), torch.zeros(3, 4))
    agent = Agent(vae, memory, controller, torch.randn(controller.params(4, 6)))
    settings = {**TASK_SETTINGS[request.param], "task": request.param, "max_steps": STEPS, "memory_length": 2}
    config = Config(**settings)
    return config, WorldModel(vae, memory, bank, 3, torch.float32), agent


@pytest.fixture
def show(parts):
    config, model, agent = parts
    return Show([DreamStage(model, agent, config, 0)], config, 0)


def test_a_dream_goes_on_for_ever_and_shows_pictures(show):
    steps = []
    for _ in range(200):
        picture = show.advance(Command())
        assert picture.shape == (512, 512, 3)
        assert picture.dtype == np.uint8
        steps.append(show.stages[0].dream.steps)
    assert steps[:STEPS] == [1, 2, 3, 4, 5, 6, 7]
    assert steps.count(1) > 1  # it has begun again


def test_the_end_of_an_episode_is_seen_for_a_moment(show):
    """With the score, on a darkened picture that stays."""
    pictures = [show.advance(Command()) for _ in range(STEPS + 1)]
    assert pictures[STEPS - 1].mean() < 0.7 * pictures[STEPS - 2].mean()
    np.testing.assert_array_equal(pictures[STEPS], pictures[STEPS - 1])
    pause = 1
    while show.stages[0].dream.steps == STEPS:
        show.advance(Command())
        pause += 1
    assert pause == round(1.5 * STEPS_PER_SECOND[show.task])
    for _ in range(STEPS):
        show.advance(Command())
    show.advance(Command(is_restart=True))
    assert show.stages[0].dream.steps == 1  # nobody has to wait


def test_the_temperature_and_the_beginning_are_in_the_spectators_hands(show):
    dream = show.stages[0].dream
    show.advance(Command(warmer=0.05))
    assert dream.temperature == pytest.approx(1.2 if show.task == "doom" else 0.75)
    for _ in range(40):
        show.advance(Command(warmer=-0.05))
    assert dream.temperature == pytest.approx(0.05)
    show.advance(Command(is_restart=True))
    assert dream.steps == 1


def test_what_the_spectator_does_changes_the_dream(parts):
    config, model, agent = parts
    found = []
    for value in (-1.0, 1.0):
        stage = DreamStage(model, agent, config, 5)
        Show([stage], config, 5).advance(Command((value,) * TASKS[config.task][0]))
        found.append(stage.dream.state.h.clone())
    assert not torch.equal(*found)


def test_without_a_controller_random_play_takes_its_place(parts):
    config, model, agent = parts
    heights = []
    for own in (None, agent):
        stage = DreamStage(model, own, config, 5)
        show = Show([stage], config, 5)
        for _ in range(STEPS - 1):
            show.advance(Command())
        heights.append(stage.dream.state.h.clone())
    assert not torch.equal(*heights)


@pytest.mark.parametrize("parts", ["car"], indirect=True)
def test_the_real_game_stands_beside_the_dream(parts):
    """The spectator's action reaches both; C acts in each on what it sees there, and remembers what others did."""
    config, model, agent = parts
    game = Track(STEPS)
    real = GameStage(game, agent, 0)
    show = Show([DreamStage(model, agent, config, 0), real], config, 0)
    action = (0.5, 1.0, 0.0)
    picture = show.advance(Command(action))
    assert picture.shape == (512, 1024, 3)
    np.testing.assert_allclose(game.told[0], action)
    assert real.player is not None
    assert real.player.state.h.abs().max() > 0
    show.advance(Command())
    assert not np.allclose(game.told[1], action)
    alone = GameStage(Track(STEPS), None, 0)
    alone.begin()
    for _ in range(STEPS - 1):
        frame, done = alone.advance(np.array(action, np.float32))
        assert not done
    last, done = alone.advance(np.array(action, np.float32))
    assert done
    np.testing.assert_array_equal(last, frame)


def test_keys():
    pressed = defaultdict(bool, {pygame.K_LEFT: True, pygame.K_UP: True})
    assert action_of_keys("doom", pressed) == (-1,)  # type: ignore[arg-type]
    assert action_of_keys("car", pressed) == (-1, 1, 0)  # type: ignore[arg-type]
    pressed = defaultdict(bool, {pygame.K_LEFT: True, pygame.K_RIGHT: True, pygame.K_DOWN: True})
    assert action_of_keys("car", pressed) == (0, 0, 0.8)  # type: ignore[arg-type]


def test_the_window_obeys_its_keys(show, monkeypatch):
    """On a display that nobody sees."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    task = show.task
    window = Window(task, 1)
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


def test_v_and_m_are_enough_for_a_film_with_the_game_beside(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames", "latents", "controller*"))
    watch.main(["--run", str(folder), "--game", "--seconds", "0.2"])
    film = cv2.VideoCapture(str(folder / "dream.webm"))
    ok, frame = film.read()
    film.release()
    assert ok
    assert frame.shape == (512, 1024, 3)
    assert frame[:, 512:].std() > 5


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

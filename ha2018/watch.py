"""Drive or shoot inside the dream, with the real game beside it: a window, or a film where there is no display.

    python -m ha2018.watch --run runs/ha2018/doom-cpu-seed0 --game

Keys: arrows steer (CarRacing: up is gas, down is the brake); C gives the controls to the controller and takes them
back; + and - change the temperature; R begins again; Esc ends. Without a display, or with --film, the controller plays
and the film is written. A run whose V and M are trained is enough: as long as it has no controller, random play takes
its place.
Source: paper, sections 3 and 4, and the interactive figures of its web page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it advertises itself on stdout
import pygame
import torch

from common.config import Parser, user_error
from common.program import program
from common.run import Run, run_config, usable_device
from common.video import has_display, label, write_video
from ha2018 import data
from ha2018.agent import CONTROLLER, Agent, WorldModel, load_agent, load_world_model
from ha2018.config import Config
from ha2018.dream import Dream, Noise
from ha2018.env import Game, command, new_game
from ha2018.pictures import STEPS_PER_SECOND
from ha2018.random_play import RANDOM_POLICIES
from ha2018.rollout import Player

SIDE = 512  # pixels of a picture
TEMPERATURE_STEP, HIGHEST_TEMPERATURE = 0.05, 10.0
BRAKE = 0.8  # of the key; more would block the wheels
PAUSE_SECONDS = 1.5  # that the end of an episode stays in view


@dataclass(frozen=True)
class Command:
    """What a spectator wants of a step. `action` [A] is None where the controller plays."""

    action: tuple[float, ...] | None = None
    warmer: float = 0.0
    is_restart: bool = False


class Screen(Protocol):
    """Where frames [H, W, 3] go and commands come from; None ends the show."""

    def command(self) -> Command | None: ...
    def show(self, frame: np.ndarray) -> None: ...


class DreamStage:
    """The dream of M: what V decodes of it, step by step."""

    def __init__(self, model: WorldModel, agent: Agent | None, config: Config, seed: int) -> None:
        self.model, self.agent, self.episode = model, agent, seed
        self.dream = Dream(model.memory, config.temperature, config.max_steps)
        self.device = model.memory.bias.device
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def title(self) -> str:
        return f"dream, tau {self.dream.temperature:.2f}"

    def begin(self) -> None:
        """The next episode."""
        noise = Noise([self.episode], 1, self.model.memory.z_size, self.device)
        self.episode += 1
        self.dream.reset(noise.start(self.model.first_frames))

    @torch.no_grad()
    def advance(self, given: np.ndarray | None) -> tuple[np.ndarray, bool]:
        """One step with the action `given` [A], or that of C. Returns the frame [64, 64, 3] and whether it is over."""
        dream = self.dream
        if given is None:
            assert self.agent is not None
            action = self.agent.controller.action(self.agent.params, dream.z, dream.state)
        else:
            action = torch.as_tensor(given, device=self.device)[None]
        uniform = torch.rand(dream.z.shape, generator=self.generator, device=self.device)
        normal = torch.randn(dream.z.shape, generator=self.generator, device=self.device)
        _, _, done = dream.step(action, uniform, normal)
        return data.to_frames(self.model.vae.decode(dream.z))[0], bool(done)


class GameStage:
    """The real game, as V sees it."""

    title = "real game"

    def __init__(self, game: Game, agent: Agent | None, seed: int) -> None:
        self.game, self.agent, self.episode = game, agent, seed

    def begin(self) -> None:
        """The next episode."""
        self.game.reset(self.episode)
        self.frame = self.game.observe()
        self.player = None if self.agent is None else Player(self.agent, [self.episode], [0])
        self.episode += 1

    @torch.no_grad()
    def advance(self, given: np.ndarray | None) -> tuple[np.ndarray, bool]:
        """One step with the action `given` [A], or that of C. Returns the frame [64, 64, 3] and whether it is over."""
        action = given
        if self.player is not None:  # it remembers what others do as well
            action = self.player.act([self.frame], None if given is None else given[None])[0]
        _, done = self.game.step(command(action))
        if not done:  # the game has no screen any more once it is over
            self.frame = self.game.observe()
        return self.frame, done


class Show:
    """One stage or two, whose episodes go on for ever: what has ended stays in view for a moment and begins again."""

    def __init__(self, stages: Sequence[DreamStage | GameStage], config: Config, seed: int) -> None:
        self.stages, self.task = stages, config.task
        self.steps, self.pause = [0] * len(stages), [0] * len(stages)
        self.pictures = [np.zeros((SIDE, SIDE, 3), np.uint8)] * len(stages)
        self.has_controller = all(stage.agent is not None for stage in stages)
        self.random: Iterator[Any] = RANDOM_POLICIES[config.task]["uniform"](seed)
        for stage in stages:
            stage.begin()

    def advance(self, wish: Command) -> np.ndarray:
        """One step of every stage, and the pictures [SIDE, n * SIDE, 3] of them."""
        given, who = self._action(wish)
        for k, stage in enumerate(self.stages):
            if isinstance(stage, DreamStage):
                warmer = round(stage.dream.temperature + wish.warmer, 2)
                stage.dream.temperature = min(max(TEMPERATURE_STEP, warmer), HIGHEST_TEMPERATURE)
            self.pause[k] = max(0, self.pause[k] - 1)
            if wish.is_restart or (self.steps[k] < 0 and not self.pause[k]):
                self.steps[k], self.pause[k] = 0, 0
                stage.begin()
            if self.steps[k] < 0:
                continue
            frame, done = stage.advance(given)
            self.steps[k] += 1
            words = f"over after {self.steps[k]}" if done else f"step {self.steps[k]}   {who}"
            frame = frame + np.uint8(1)  # the wrap-around of the preprocessing undone
            large = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            shown = np.asarray(large // 2 if done else large, np.uint8)
            self.pictures[k] = label(shown, f"{stage.title}   {words}")
            if done:
                self.steps[k], self.pause[k] = -1, round(PAUSE_SECONDS * STEPS_PER_SECOND[self.task])
        return np.concatenate(self.pictures, axis=1)

    def _action(self, wish: Command) -> tuple[np.ndarray | None, str]:
        if wish.action is not None:
            return np.array(wish.action, np.float32), "you play"
        if self.has_controller:
            return None, "C plays"
        return np.float32(next(self.random)).reshape(-1), "random play"


def watch(show: Show, screen: Screen) -> None:
    """The loop: a command, a step, a picture."""
    while (wish := screen.command()) is not None:
        screen.show(show.advance(wish))


class Film:
    """A screen for machines without one: the controller plays for some steps, then the film is written."""

    def __init__(self, path: Path, steps: int, per_second: int) -> None:
        self.path, self.steps, self.per_second = path, steps, per_second
        self.frames: list[np.ndarray] = []

    def command(self) -> Command | None:
        return Command() if len(self.frames) < self.steps else None

    def show(self, frame: np.ndarray) -> None:
        self.frames.append(frame)

    def close(self) -> None:
        write_video(self.path, np.stack(self.frames), self.per_second)


class Window:
    """A pygame window in real time."""

    def __init__(self, task: str, pictures: int) -> None:
        pygame.display.init()
        self.task = task
        self.surface = pygame.display.set_mode((pictures * SIDE, SIDE))
        pygame.display.set_caption("arrows, C, + -, R, Esc")
        self.clock = pygame.time.Clock()
        self.is_controller = False

    def command(self) -> Command | None:
        warmer, is_restart = 0.0, False
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                return None
            if event.type != pygame.KEYDOWN:
                continue
            if event.key == pygame.K_ESCAPE:
                return None
            warmer += TEMPERATURE_STEP * ((event.unicode in ("+", "=")) - (event.unicode == "-"))
            is_restart |= event.key == pygame.K_r
            self.is_controller ^= event.key == pygame.K_c
        action = None if self.is_controller else action_of_keys(self.task, pygame.key.get_pressed())
        return Command(action, warmer, is_restart)

    def show(self, frame: np.ndarray) -> None:
        pygame.surfarray.blit_array(self.surface, frame.swapaxes(0, 1))
        pygame.display.flip()
        self.clock.tick(STEPS_PER_SECOND[self.task])

    def close(self) -> None:
        pygame.display.quit()


def action_of_keys(task: str, pressed: Sequence[bool]) -> tuple[float, ...]:
    """The action [A] of the arrow keys held down: left and right are -1 and 1, both together nothing."""
    steering = float(pressed[pygame.K_RIGHT]) - float(pressed[pygame.K_LEFT])
    if task == "doom":
        return (steering,)
    return (steering, float(pressed[pygame.K_UP]), BRAKE * float(pressed[pygame.K_DOWN]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m ha2018.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="a run whose V and M are trained")
    parser.add_argument("--game", action="store_true", help="show the real game beside the dream")
    parser.add_argument("--film", type=Path, metavar="FILE", help="write this .webm even where there is a display")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the film (default 20)")
    parser.add_argument("--temperature", type=float, help="to begin with (default: that of the run)")
    parser.add_argument("--seed", type=int, default=0, help="of the dream (default 0)")
    parser.add_argument("--device", help="torch device (default: that of the run)")
    options = parser.parse_args(argv)
    config = run_config(Config, Run.load("ha2018", options.run))
    if options.temperature is not None and not TEMPERATURE_STEP <= options.temperature <= HIGHEST_TEMPERATURE:
        user_error(f"--temperature {options.temperature}: {TEMPERATURE_STEP} to {HIGHEST_TEMPERATURE}")
    if not 0 <= options.seed < 2**31:
        user_error(f"--seed {options.seed}: 0 to {2**31 - 1}")
    if options.film is not None and options.film.suffix != ".webm":
        user_error(f"--film {options.film}: the name must end in .webm")
    if not 0 < options.seconds <= 3600:
        user_error(f"--seconds {options.seconds}: above 0, at most 3600")
    model = load_world_model(options.run, config, usable_device(options.device or config.device))
    agent = load_agent(options.run, model, config) if (options.run / CONTROLLER).exists() else None
    dream = DreamStage(model, agent, config, options.seed)
    if options.temperature is not None:
        dream.dream.temperature = options.temperature
    stages: list[DreamStage | GameStage] = [dream]
    per_second = STEPS_PER_SECOND[config.task]
    with ExitStack() as stack:
        if options.game:
            game = stack.enter_context(closing(new_game(config.task, config.max_steps)))
            stages.append(GameStage(game, agent, options.seed))
        if options.film is None and has_display():
            screen: Film | Window = Window(config.task, len(stages))
        else:
            path = options.film or options.run / "dream.webm"
            screen = Film(path, max(1, round(options.seconds * per_second)), per_second)
        watch(Show(stages, config, options.seed), screen)
        screen.close()
    if isinstance(screen, Film):
        print(f"film: {screen.path}")


if __name__ == "__main__":
    program(main)

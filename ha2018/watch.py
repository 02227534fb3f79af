"""Drive or shoot inside the dream: a window with keys, and without a display a film of the same loop.

    python -m ha2018.watch --run runs/ha2018/doom-cpu-seed0

Keys: arrows steer (CarRacing: up is gas, down is the brake); C gives the controls to the controller and takes them
back; + and - change the temperature; R begins again; Esc ends. Without a display, or with --film, the controller plays
and the film is written.
Source: paper, sections 3 and 4, and the interactive figures of its web page.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it advertises itself on stdout
import pygame
import torch

from common.config import Parser, user_error
from common.program import program
from common.run import Run, run_config, usable_device
from common.video import label, write_video
from ha2018 import data
from ha2018.agent import Agent
from ha2018.config import Config
from ha2018.dream import Dream, Noise
from ha2018.pictures import STEPS_PER_SECOND

SIDE = 512  # pixels of the window
TEMPERATURE_STEP, HIGHEST_TEMPERATURE = 0.05, 10.0
BRAKE = 0.8  # of the key; more would block the wheels


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


class Show:
    """A dream that goes on for ever: what has ended begins again."""

    def __init__(self, agent: Agent, config: Config, seed: int) -> None:
        self.agent = agent
        self.dream = Dream(agent.memory, config.temperature, config.max_steps)
        self.generator = torch.Generator(agent.device).manual_seed(seed)
        self.episode = seed
        self.begin()

    def begin(self) -> None:
        """The next episode."""
        noise = Noise([self.episode], 1, self.agent.memory.z_size, self.agent.device)
        self.episode += 1
        self.dream.reset(noise.start(self.agent.bank))

    @torch.no_grad()
    def advance(self, command: Command) -> np.ndarray:
        """One step, and the picture [SIDE, SIDE, 3] that V decodes of it."""
        dream, agent = self.dream, self.agent
        warmer = round(dream.temperature + command.warmer, 2)
        dream.temperature = min(max(TEMPERATURE_STEP, warmer), HIGHEST_TEMPERATURE)
        if command.is_restart:
            self.begin()
        if command.action is None:
            action = agent.controller.action(agent.params, dream.z, dream.state)
        else:
            action = torch.tensor([command.action], device=agent.device)
        uniform = torch.rand(dream.z.shape, generator=self.generator, device=agent.device)
        normal = torch.randn(dream.z.shape, generator=self.generator, device=agent.device)
        _, _, done = dream.step(action, uniform, normal)
        frame = data.to_frames(agent.vae.decode(dream.z))[0] + np.uint8(1)  # the wrap-around of the frames undone
        large = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        who = "C plays" if command.action is None else "you play"
        picture = label(large, f"tau {dream.temperature:.2f}   step {dream.steps}   {who}")
        if bool(done):
            self.begin()
        return picture


def watch(show: Show, screen: Screen) -> None:
    """The loop: a command, a step, a picture."""
    while (command := screen.command()) is not None:
        screen.show(show.advance(command))


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

    def __init__(self, task: str) -> None:
        pygame.display.init()
        self.task = task
        self.surface = pygame.display.set_mode((SIDE, SIDE))
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


def has_display() -> bool:
    """Whether a window can be opened here."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        pygame.display.init()
    except pygame.error:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m ha2018.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="a finished training run")
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
    show = Show(Agent(options.run, config, usable_device(options.device or config.device)), config, options.seed)
    if options.temperature is not None:
        show.dream.temperature = options.temperature
    per_second = STEPS_PER_SECOND[config.task]
    if options.film is None and has_display():
        screen: Film | Window = Window(config.task)
    else:
        path = options.film or options.run / "dream.webm"
        screen = Film(path, max(1, round(options.seconds * per_second)), per_second)
    watch(show, screen)
    screen.close()
    if isinstance(screen, Film):
        print(f"film: {screen.path}")


if __name__ == "__main__":
    program(main)

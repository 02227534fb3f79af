"""Act inside the dream: a window, or a film where there is no display.

    python -m dreamerv3.watch --run runs/dreamerv3/crafter-gpu-seed0

A real episode is played for a few steps, then the model is alone: what it shows, and below it the reward, the value and
the probability of going on that it expects. Keys, where actions are discrete: arrows and space, or the actions by their
number with 1, 2, ..., 9, 0, Q, W, E, T, Y, U, I, O; P gives them to the policy and takes them back. R goes on in
reality and begins again from there; Esc ends. Without a display, or with --film, the policy plays and the film is
written. The run need not have ended.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it advertises itself on stdout
import pygame

from common.config import Parser, user_error
from common.program import program
from common.run import Run, run_config, usable_device
from common.seeding import derive_seed
from common.video import has_display, label, write_video
from dreamerv3.agent import Agent, load_agent, seen
from dreamerv3.config import Config
from dreamerv3.env import Worlds, make_world
from dreamerv3.interface import WorldError
from dreamerv3.pictures import CONTEXT, FPS, ROWS, colours, curve_frame, decode, signals
from dreamerv3.rssm import State

Array = np.ndarray[Any, Any]

SIDE = 512  # pixels of the picture
REMEMBERED = 100  # steps of the curves
OVER = 0.5  # the dream ends where going on is less likely
NUMBERED = "1234567890qwetyuio"  # keys of the actions by their number; P and R have a meaning of their own


class Dream:
    """One imagined episode at a time, and the policy that may play it."""

    def __init__(self, agent: Agent, worlds: Worlds, seed: int) -> None:
        self.agent, self.worlds, self.seed, self.time = agent, worlds, seed, 0
        self.device = next(agent.parameters()).device
        self.real = agent.world.rssm.initial_state(1)
        shape, dtype = ((1,), torch.int64) if worlds.actions.is_discrete else ((1, worlds.actions.size), torch.float32)
        self.action = torch.zeros(shape, dtype=dtype)
        self.begin()

    def begin(self) -> None:
        """Some real steps of the policy, then the model alone from there."""
        for _ in range(CONTEXT):
            rows = self.worlds.step(self.action.numpy())
            inputs = (self.action.to(self.device), *seen(rows, self.device), *self._noise())
            self.real, action = self.agent.act(self.real, *inputs)
            self.action = action.cpu()
        self.state, self.total, self.steps, self.is_over = self.real, 0.0, 0, False
        self.curves: dict[str, list[float]] = {}
        self._remember()

    def _noise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The random numbers of the next step, of reality or of the dream."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "watch", self.time))
        self.time += 1
        uniform, noise = self.agent.draw_act_noise(1, generator)
        return uniform.to(self.device), noise.to(self.device)

    @torch.no_grad()
    def step(self, action: int | None) -> None:
        """One step by this action, or by the policy's; where the dream is over, another one begins."""
        if self.is_over:
            self.begin()
        uniform, noise = self._noise()
        policy = self.agent.actor(self.state.feature)
        chosen = policy.sample(noise) if action is None else torch.tensor([action], device=self.device)
        self.state = self.agent.world.rssm.imagine_step(self.state, policy.vector(chosen), uniform)
        self.steps += 1
        self._remember()
        self.total += self.curves["reward"][-1]
        self.is_over = self.curves["continue"][-1] < OVER

    def _remember(self) -> None:
        """Add what the model shows and expects now to the curves, the newest REMEMBERED steps of each."""
        self.shown = decode(self.agent, State(self.state.h, self.state.z))
        vectors = [] if self.agent.world.decoder.images else list(self.agent.world.decoder.vectors)
        numbers = [(f"{name} {k}", x) for name in vectors for k, x in enumerate(self.shown[name].reshape(-1))]
        expected = [(name, values[0]) for name, values in signals(self.agent, self.state.feature).items()]
        for title, value in [*numbers[:ROWS], *expected]:
            self.curves[title] = [*self.curves.get(title, []), float(value)][-REMEMBERED:]

    def picture(self, who: str) -> Array:
        """What the model shows [H, SIDE, 3], with the sum of the rewards so far; H is the same at every step."""
        words = f"{who}  {self.total:+.1f}{'  over' if self.is_over else ''}"
        lines = {title: {"dream": np.array(values)} for title, values in self.curves.items()}
        below = curve_frame(lines, SIDE, len(self.curves["reward"]), REMEMBERED)
        images = self.agent.world.decoder.images
        if not images:
            head = np.zeros((32, SIDE, 3), np.uint8)
            return np.concatenate([label(head, words), below])
        image = (255 * self.shown[images[0]][0]).clip(0, 255).astype(np.uint8)
        return np.concatenate([label(colours(image, SIDE), words), below])


def action_of(keys: set[str], names: Sequence[str], size: int) -> int:
    """The action for the pressed keys, among up, down, left, right, fire and those of NUMBERED; nothing pressed, or
    nothing that the world knows, is its first action, which does nothing in most."""
    for number, key in enumerate(NUMBERED[:size]):
        if key in keys:
            return number
    directions = [word for word in ("UP", "DOWN", "RIGHT", "LEFT") if word.lower() in keys]
    direction, fire = "".join(directions), "FIRE" if "fire" in keys else ""
    of_crafter = [*(f"move_{word.lower()}" for word in directions), *(["do"] if fire else [])]
    for name in (direction + fire, direction, fire, *of_crafter):
        if name in names:
            return names.index(name)
    return 0


def film(dream: Dream, path: Path, steps: int) -> None:
    """The policy plays `steps` steps into a .webm file."""
    frames = []
    for _ in range(steps):
        dream.step(None)
        frames.append(dream.picture("policy"))
    write_video(path, np.stack(frames), FPS)


def window(dream: Dream) -> None:
    """Until Esc, or until the window is closed."""
    codes = {pygame.K_UP: "up", pygame.K_DOWN: "down", pygame.K_LEFT: "left", pygame.K_RIGHT: "right"}
    codes |= {pygame.K_SPACE: "fire", **{ord(key): key for key in NUMBERED}}
    actions = dream.agent.actions
    pygame.display.init()  # and nothing else: a machine may have no sound
    height, width = dream.picture("").shape[:2]
    screen, clock = pygame.display.set_mode((width, height)), pygame.time.Clock()
    pygame.display.set_caption("DreamerV3: inside the dream")
    is_policy = not actions.is_discrete
    try:
        while True:
            for event in pygame.event.get():
                pressed = event.key if event.type == pygame.KEYDOWN else None
                if event.type == pygame.QUIT or pressed == pygame.K_ESCAPE:
                    return
                is_policy ^= pressed == pygame.K_p and actions.is_discrete
                if pressed == pygame.K_r:
                    dream.begin()
            held = pygame.key.get_pressed()
            keys = {name for code, name in codes.items() if held[code]}
            dream.step(None if is_policy else action_of(keys, actions.names, actions.size))
            picture = dream.picture("policy" if is_policy else "you")
            screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            clock.tick(FPS)
    finally:
        pygame.display.quit()


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m dreamerv3.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="a run with a checkpoint")
    parser.add_argument("--film", type=Path, metavar="FILE", help="write a .webm file instead of opening a window")
    parser.add_argument("--steps", type=int, default=200, help="steps of the film (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the dream (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number> (default cpu)")
    options = parser.parse_args(argv)
    if options.steps < 1 or (options.film is not None and options.film.suffix != ".webm"):
        user_error("a film has at least one step, and its file ends in .webm")
    info, device = Run.load("dreamerv3", options.run), usable_device(options.device)
    config = run_config(Config, info)
    try:
        with Worlds(lambda: make_world(config), [0], options.seed, "watch") as worlds:
            agent, _, updates = load_agent(info, config, worlds, device, is_final=False)
            print(f"the agent after {updates} updates")
            dream = Dream(agent, worlds, options.seed)
            if options.film is None and has_display():
                window(dream)
                return
            path = options.film or options.run / "watch.webm"
            film(dream, path, options.steps)
            print(f"film: {path}")
    except WorldError as error:
        user_error(str(error))


if __name__ == "__main__":
    program(main)

"""Play inside the world model: a window, or a film where there is no display.

    python -m diamond.watch --run runs/diamond/catch-night-seed0

Keys: arrows and space are the joystick; P gives it to the policy and takes it back; R begins again from other real
frames; Esc ends. Without a display, or with --film, the policy plays and the film is written.
Source: reference code: play.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it advertises itself on stdout
import pygame

from common import dist
from common.config import Parser, user_error
from common.program import program
from common.run import Run, run_config, usable_device
from common.video import has_display, label, write_video
from diamond.agent import Agent, load_agent
from diamond.beginnings import Pool
from diamond.config import Config
from diamond.env import new_game
from diamond.imagination import Draws, Imagination, pick
from diamond.pictures import large
from diamond.replay import Replay
from diamond.rollouts import shown

SIDE = 512  # pixels of the picture
FPS = 15
ENDLESS = 10**9  # steps of an imagined game that only R may end


class Dream:
    """One imagined game without a horizon, and the policy that may play it."""

    def __init__(self, agent: Agent, replay: Replay, config: Config, device: torch.device) -> None:
        self.config = replace(config, horizon=ENDLESS, batch_size=1, initial_batches=64)
        ranks = dist.Ranks(0, 1, 0, device)
        pool = Pool(replay, agent.reward_end, self.config, ranks)
        self.world, self.policy = Imagination(agent, self.config, pool.take), agent.actor_critic
        self.time, self.total = 0, 0.0
        self.begin()

    def begin(self) -> None:
        """From other real frames."""
        self.world.reset(1)
        self.state, self.total = self.policy.initial_state(1), 0.0

    @torch.no_grad()
    def step(self, action: int | None) -> None:
        """One step by this action, or by the policy's."""
        draws = Draws(1, slice(0, 1), self.world.obs.device, self.config.seed, "watch", self.time)
        self.world.draws = draws
        logits, _, self.state = self.policy(self.world.obs[:, -1], self.state)
        chosen = pick(logits, draws.uniform()) if action is None else logits.new_full((1,), action).long()
        outcome = self.world.step(chosen)
        self.time, self.total = self.time + 1, self.total + float(outcome.reward[0])
        if len(outcome.dead):
            self.state, self.total = self.policy.initial_state(1), 0.0

    def picture(self, who: str) -> NDArray[np.uint8]:
        """The newest frame [SIDE, SIDE, 3], with the sum of the reward signs so far."""
        return label(large(shown(self.world.obs[:, -1])[0], SIDE), f"{who}  {self.total:+.0f}")


def action_of(keys: set[str], names: Sequence[str]) -> int:
    """The action of the game for pressed keys among up, down, left, right, fire; nothing pressed, or nothing that the
    game knows, is its NOOP."""
    direction = "".join(word for word in ("UP", "DOWN", "RIGHT", "LEFT") if word.lower() in keys)
    fire = "FIRE" if "fire" in keys else ""
    for name in (direction + fire, direction, fire, "NOOP"):
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


def window(dream: Dream, names: Sequence[str]) -> None:
    """Until Esc, or until the window is closed."""
    codes = {pygame.K_UP: "up", pygame.K_DOWN: "down", pygame.K_LEFT: "left", pygame.K_RIGHT: "right"}
    codes[pygame.K_SPACE] = "fire"
    pygame.init()
    screen, clock = pygame.display.set_mode((SIDE, SIDE)), pygame.time.Clock()
    pygame.display.set_caption("DIAMOND: inside the world model")
    is_policy = False
    try:
        while True:
            for event in pygame.event.get():
                pressed = event.key if event.type == pygame.KEYDOWN else None
                if event.type == pygame.QUIT or pressed == pygame.K_ESCAPE:
                    return
                is_policy ^= pressed == pygame.K_p
                if pressed == pygame.K_r:
                    dream.begin()
            held = pygame.key.get_pressed()
            keys = {name for code, name in codes.items() if held[code]}
            dream.step(None if is_policy else action_of(keys, names))
            picture = dream.picture("policy" if is_policy else "you")
            screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            clock.tick(FPS)
    finally:
        pygame.quit()


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m diamond.watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="a finished run")
    parser.add_argument("--film", type=Path, metavar="FILE", help="write a .webm file instead of opening a window")
    parser.add_argument("--steps", type=int, default=200, help="steps of the film (default 200)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:<number> (default cpu)")
    options = parser.parse_args(argv)
    if options.steps < 1 or (options.film is not None and options.film.suffix != ".webm"):
        user_error("a film has at least one step, and its file ends in .webm")
    info, device = Run.load("diamond", options.run), usable_device(options.device)
    config = replace(run_config(Config, info), device=options.device)
    game = new_game(config)
    agent, state = load_agent(info, config, game.actions, device)
    replay = Replay(options.run / "replay-0", config.env_steps, config.image_size)
    replay.restore(state["count"])
    dream = Dream(agent, replay, config, device)
    if options.film is None and has_display():
        window(dream, game.names)
        return
    path = options.film or options.run / "watch.webm"
    film(dream, path, options.steps)
    print(f"film: {path}")


if __name__ == "__main__":
    program(main)

"""Record the play that a world model of video learns from and is tested on, so that no game is needed afterwards.

    python -m diamond.recorder --preset gpu --task video_pong --data play
    python -m diamond.train --preset gpu --task video_pong --data play

What is played is what the train command of the same preset, task and seed would play by itself: `env_steps` decisions
of the untrained policy, each episode a video, and behind them `test_rollouts` beginnings of fresh games for the test.
The format is documented in data.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.config import parse, user_error
from common.program import program
from common.run import progress_bar, seed_everything
from diamond import data, rollouts
from diamond.agent import new_agent
from diamond.collect import Player
from diamond.config import PRESETS, TASKS, Config
from diamond.data import Video
from diamond.env import new_game

PIECE = 100  # decisions between two steps of the progress bar


def played(player: Player, steps: int) -> Iterator[Video]:
    """So many decisions, as one video of each episode; the last one may have been cut."""
    frames, action, count = [], [], 0
    bar = progress_bar(steps, "play", unit="step")
    for first in range(0, steps, PIECE):
        for step in player.collect(min(PIECE, steps - first), first):
            frames.append(step.frame)
            action.append(step.action)
            if step.final is not None:
                yield Video(f"play {count}", np.stack([*frames, step.final]), np.array(action))
                frames, action, count = [], [], count + 1
        bar.update(min(PIECE, steps - first))
    bar.close()
    if action:
        assert player.frame is not None, "its episode has not ended"
        yield Video(f"play {count}", np.stack([*frames, player.frame]), np.array(action))


def record(config: Config, target: Path) -> int:
    """Write the new folder `target`. Returns how many frames there are."""
    device = torch.device("cpu")
    seed_everything(config.seed, str(device))
    game = new_game(config)
    policy = new_agent(config, game.actions).actor_critic

    def videos() -> Iterator[Video]:
        yield from played(Player(policy, config, device), config.env_steps)
        tests = rollouts.held_out(game, policy, config, device)
        for k, (frames, action, is_real) in enumerate(zip(tests.frames, tests.action, tests.is_real, strict=True)):
            length = int(is_real.sum())
            yield Video(f"test {k}", frames[:length], action[: length - 1])

    try:
        return data.write(target, videos(), actions=game.actions, tested=config.test_rollouts, game=config.game)
    finally:
        game.close()


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse(Config, TASKS, PRESETS, argv, prog="python -m diamond.recorder", description=__doc__ or "")
    if not config.is_video or config.task == "own":
        user_error(f"only the play of a task video_* is recorded, not that of {config.task}")
    if not config.data:
        user_error("name the folder to write with --data; it must not exist")
    target = Path(config.data)
    if target.exists():
        user_error(f"{target} exists; give a folder that does not")
    frames = record(replace(config, data=""), target)
    print(f"recorded: {frames:,} frames in {target}")


if __name__ == "__main__":
    program(main)

"""What a person sees of a run: the real game, what V keeps of it, and the dream, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from common.video import label, side_by_side, write_video
from ha2018 import data
from ha2018.agent import Agent, WorldModel
from ha2018.config import Config
from ha2018.dream import dream_episode
from ha2018.env import new_game
from ha2018.rollout import real_episode

FILM_SECONDS = 12
FILM_EVERY = 2  # steps per frame of the film
STEPS_PER_SECOND = {"doom": 35, "car": 50}
PANEL = 112


def film(model: WorldModel, agent: Agent, config: Config, seed: int, path: Path) -> None:
    """The same controller in the real game, in the game as V sees it, and in the dream, for at most 12 seconds."""
    per_second = STEPS_PER_SECOND[config.task]
    steps = min(config.max_steps, FILM_SECONDS * per_second)
    game = new_game(config.task, config.max_steps)
    try:
        seen, met, _ = real_episode(agent, game, seed, steps)
    finally:
        game.close()
    # Deviation D13: the official dream of CarRacing, for pictures alone, ends after 1200 steps.
    dream = model.memory, model.first_frames, agent.controller, agent.params, seed, config.temperature, steps
    z, _ = dream_episode(*dream)
    with torch.no_grad():
        kept, dreamt = (data.to_frames(model.vae.decode(z[::FILM_EVERY])) for z in (met, z[:-1]))
    panels = [
        _panel(frames, title, ended=len(frames) < -(-steps // FILM_EVERY))
        for frames, title in ((seen[::FILM_EVERY], "real game"), (kept, "what V keeps"), (dreamt, "dream of M"))
    ]
    write_video(path, side_by_side(panels), per_second / FILM_EVERY)


def _panel(frames: np.ndarray, title: str, ended: bool) -> np.ndarray:
    """Frames [T, 64, 64, 3] enlarged to PANEL pixels a side, with the wrap-around of the preprocessing undone.

    The last frame, which stays while the other panels go on, says that the episode has ended.
    """
    frames = frames + np.uint8(1)
    large = [cv2.resize(frame, (PANEL, PANEL), interpolation=cv2.INTER_CUBIC) for frame in frames]
    titles = [title] * (len(large) - 1) + [f"{title}: over" if ended else title]
    return np.stack([label(frame, text) for frame, text in zip(large, titles, strict=True)])

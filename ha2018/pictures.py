"""What a person sees of a run: the real game, what V keeps of it, and the dream, side by side."""

from pathlib import Path

import cv2
import numpy as np
import torch

from common.video import label, side_by_side, write_video
from ha2018 import data
from ha2018.agent import Agent
from ha2018.config import Config
from ha2018.dream import dream_episode
from ha2018.env import Game, TakeCover
from ha2018.racing import CarRacing
from ha2018.rollout import command
from ha2018.vision import sample_z

FILM_SECONDS = 12
FILM_EVERY = 2  # steps per frame of the film
STEPS_PER_SECOND = {"doom": 35, "car": 50}
PANEL = 112


def film(agent: Agent, config: Config, seed: int, path: Path) -> None:
    """The same controller in the real game, in the game as V sees it, and in the dream, for at most 12 seconds."""
    per_second = STEPS_PER_SECOND[config.task]
    steps = min(config.max_steps, FILM_SECONDS * per_second)
    game: Game = TakeCover(config.max_steps) if config.task == "doom" else CarRacing(config.max_steps)
    try:
        seen, reconstructed = _real_episode(agent, game, seed, steps)
    finally:
        game.close()
    # Deviation D13: the official dream of CarRacing, for pictures alone, ends after 1200 steps.
    z, _ = dream_episode(agent.memory, agent.bank, agent.controller, agent.params, seed, config.temperature, steps)
    with torch.no_grad():
        dreamt = data.to_frames(agent.vae.decode(z[:-1:FILM_EVERY]))
    panels = [
        _panel(frames, title, ended=len(frames) < -(-steps // FILM_EVERY))
        for frames, title in ((seen, "real game"), (reconstructed, "what V keeps"), (dreamt, "dream of M"))
    ]
    write_video(path, side_by_side(panels), per_second / FILM_EVERY)


@torch.no_grad()
def _real_episode(agent: Agent, game: Game, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Every FILM_EVERY-th frame of an episode, and its reconstruction from the sampled z."""
    game.reset(seed)
    state, restart = agent.memory.initial_state(1), torch.ones(1, device=agent.device)
    generator = torch.Generator().manual_seed(seed)
    seen, zs, done = [], [], False
    for t in range(steps):
        obs = game.observe()
        mu, logvar = agent.vae.encode(data.to_images(obs[None], agent.device))
        z = sample_z(mu, logvar, torch.randn(mu.shape, generator=generator).to(agent.device))
        if t % FILM_EVERY == 0:
            seen.append(obs)
            zs.append(z)
        action = agent.controller.action(agent.params, z, state)
        state = agent.memory.step(z, action, restart, state)
        restart = torch.zeros_like(restart)
        _, done = game.step(command(action[0].cpu().numpy()))
        if done:
            break
    return np.stack(seen), data.to_frames(agent.vae.decode(torch.cat(zs)))


def _panel(frames: np.ndarray, title: str, ended: bool) -> np.ndarray:
    """Frames [T, 64, 64, 3] enlarged to PANEL pixels a side, with the wrap-around of the preprocessing undone.

    The last frame, which stays while the other panels go on, says that the episode has ended.
    """
    frames = frames + np.uint8(1)
    large = [cv2.resize(frame, (PANEL, PANEL), interpolation=cv2.INTER_CUBIC) for frame in frames]
    titles = [title] * (len(large) - 1) + [f"{title}: over" if ended else title]
    return np.stack([label(frame, text) for frame, text in zip(large, titles, strict=True)])

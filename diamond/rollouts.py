"""Imagined videos beside real ones under the same actions: how far the world model drifts, and whether it can choose.

R videos, L frames of history, T frames imagined.
Source: paper, sections 5.1 and 5.2, Figure 3 and Appendix K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.run import progress_bar
from common.seeding import derive_seed
from diamond.actor_critic import ActorCritic
from diamond.agent import Agent
from diamond.collect import as_obs
from diamond.config import Config
from diamond.data import Recordings
from diamond.env import Coin, Game
from diamond.frames import to_float
from diamond.imagination import pick

LEVELS = 255


@dataclass
class Videos:
    """Held-out play: frames [R, L + T, 3, H, W] uint8, action [R, L + T], is_real [R, L + T]: a game may end early."""

    frames: NDArray[np.uint8]
    action: NDArray[np.int64]
    is_real: NDArray[np.bool_]


@torch.no_grad()
def held_out(game: Game, policy: ActorCritic, config: Config, device: torch.device) -> Videos:
    """The beginnings of `test_rollouts` fresh games that the policy plays, no training has seen them."""
    count, length = config.test_rollouts, config.history + config.test_length
    frames = np.zeros((count, length, 3, config.image_size, config.image_size), np.uint8)
    action, is_real = np.zeros((count, length), np.int64), np.zeros((count, length), bool)
    bar = progress_bar(count, "held-out play", unit="game")
    for k in range(count):
        rng = np.random.default_rng(derive_seed(config.seed, "held-out act", k))
        frame = game.reset(derive_seed(config.seed, "held-out", k) % 2**31)
        state, is_last = policy.initial_state(1), False
        for t in range(length):
            frames[k, t], is_real[k, t] = frame, True
            logits, _, state = policy(as_obs([frame], device), state)
            action[k, t] = int(pick(logits, torch.tensor([rng.random()], device=device)))
            if is_last:
                break
            answer = game.step(int(action[k, t]))
            frame, is_last = answer.frame, answer.is_over or answer.is_cut
        bar.update()
    bar.close()
    return Videos(frames, action, is_real)


def recorded(recordings: Recordings, config: Config) -> Videos:
    """The same of recorded play: pieces of the videos that no training has seen, spread evenly over them."""
    length = config.history + config.test_length
    numbers = range(len(recordings.counts) - recordings.tested, len(recordings.counts))
    starts = [(k, t) for k in numbers for t in range(max(1, recordings.counts[k] - length + 1))]
    chosen = np.unique(np.linspace(0, len(starts) - 1, config.test_rollouts).round().astype(int)).tolist()
    frames = np.zeros((len(chosen), length, 3, config.image_size, config.image_size), np.uint8)
    action, is_real = np.zeros((len(chosen), length), np.int64), np.zeros((len(chosen), length), bool)
    for row, (k, start) in enumerate(starts[index] for index in chosen):
        piece = recordings.frames(k)[start : start + length]
        frames[row, : len(piece)], is_real[row, : len(piece)] = piece, True
        taken = recordings.action[k][start : start + len(piece)]
        action[row, : len(taken)] = taken
    return Videos(frames, action, is_real)


@torch.no_grad()
def imagine(agent: Agent, videos: Videos, steps: int, config: Config, device: torch.device) -> NDArray[np.uint8]:
    """Frames [R, L + T, 3, H, W]: the first L are real, the others imagined under the recorded actions.

    `steps` denoising steps a frame; the same random numbers for every number of them.
    """
    history, settings = config.history, replace(config.sampler, steps=steps)
    obs = to_float(torch.from_numpy(videos.frames[:, :history]).to(device))
    action = torch.from_numpy(videos.action).to(device)
    generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "imagined video"))
    churn = torch.Generator(device).manual_seed(derive_seed(config.seed, "imagined video, within a frame", steps))
    found = list(videos.frames[:, :history].swapaxes(0, 1))
    bar = progress_bar(videos.frames.shape[1] - history, f"videos, {steps} denoising steps", unit="frame")
    for t in range(history, videos.frames.shape[1]):
        start = torch.randn(obs[:, 0].shape, generator=generator, device=device)
        frame = agent.denoiser.next_frame(obs, action[:, t - history : t], start, settings, churn)
        obs = torch.cat([obs[:, 1:], frame[:, None]], dim=1)
        found.append(shown(frame))
        bar.update()
    bar.close()
    return np.stack(found, axis=1)


def shown(frame: Tensor) -> NDArray[np.uint8]:
    """An imagined frame as bytes; rounded, since it is on the levels already and a truncation would lower them."""
    return ((frame.clamp(-1, 1) + 1) / 2 * LEVELS).round().to(torch.uint8).cpu().numpy()


def drift(
    videos: Videos, imagined: NDArray[np.uint8], history: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Mean pixel distance in levels of 255 of each video [R], and over all videos of each imagined frame [T]."""
    distance = np.abs(imagined.astype(np.float32) - videos.frames).mean((2, 3, 4))[:, history:]
    is_real = videos.is_real[:, history:]
    distance = np.where(is_real, distance, 0)
    each = distance.sum(1) / np.maximum(is_real.sum(1), 1)
    count = is_real.sum(0)
    return each, (distance.sum(0) / np.maximum(count, 1))[count > 0]


def copies(videos: Videos, history: int) -> NDArray[np.uint8]:
    """A floor: the last real frame for ever."""
    last = videos.frames[:, history - 1 : history]
    return np.concatenate([videos.frames[:, :history], last.repeat(videos.frames.shape[1] - history, 1)], 1)


def constant(videos: Videos, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A floor: always the same frame [3, H, W]."""
    return np.broadcast_to(frame, videos.frames.shape)


@torch.no_grad()
def coin_choices(
    agent: Agent, steps: int, config: Config, device: torch.device, count: int, *, start_std: float = 1.0
) -> NDArray[np.float64]:
    """How far each of `count` imagined jumps of the coin's square is to one side, [-1, 1]: the brightness of the right
    place minus the left, in that of a whole square. ±1 is a choice, 0 the average of both, or neither.

    start_std: of the noise that the sampler begins with; the method has 1, below the level that it calls it.
    """
    game = Coin(config.image_size)
    frame = game.reset(0)
    frames = [frame]
    while len(frames) < 2 * config.history + 2:
        frames.append(game.step(0).frame)
    start = 2 - (config.history + 1) % 2  # the next frame is one of the jumps, at an odd time
    context = np.stack(frames[start : start + config.history])
    obs = to_float(torch.from_numpy(context).to(device)).expand(count, -1, -1, -1, -1)
    action = torch.zeros(count, config.history, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "coin", steps))
    noise = start_std * torch.randn(obs[:, 0].shape, generator=generator, device=device)
    found = agent.denoiser.next_frame(obs, action, noise, replace(config.sampler, steps=steps), generator)
    left, right = (shown(found)[:, :, *game.square(place)].mean((1, 2, 3)) for place in (0, 2))
    return np.clip((right - left) / (float(frame.max()) - float(frame.min())), -1, 1)


def mean_frame(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of frames [N, 3, H, W], of at most 2,000 of them."""
    return frames[:: max(1, len(frames) // 2000)].mean(0).round().astype(np.uint8)

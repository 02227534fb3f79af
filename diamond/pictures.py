"""What a person sees of a run: reality beside imagination under the same actions, and a frame coming out of noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from common.seeding import derive_seed
from common.video import label, side_by_side, write_video
from diamond import rollouts
from diamond.agent import Agent
from diamond.config import Config
from diamond.denoiser import Denoiser
from diamond.frames import to_float
from diamond.sampler import karras_sigmas, trajectory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FRAMES = 200  # of the film
FPS = 15
PANEL = 192  # pixels of a picture


def film(agent: Agent, videos: rollouts.Videos, config: Config, folder: Path) -> None:
    """Writes video.webm: the first held-out video, the same imagined from its first frames, their difference, and the
    drift so far as a curve."""
    length = min(int(videos.is_real[0].sum()), FRAMES)
    some = slice(0, 1), slice(0, length)
    first = rollouts.Videos(videos.frames[some], videos.action[some], videos.is_real[some])
    device = next(agent.parameters()).device
    imagined = rollouts.imagine(agent, first, config.sampler_steps, config, device)[0]
    real = first.frames[0]
    difference = np.abs(real.astype(np.int16) - imagined).astype(np.uint8)
    distance = difference.mean((1, 2, 3))
    clips = [_clip(frames, words) for frames, words in ((real, "real"), (imagined, "imagined"), (difference, "gap"))]
    clips.append(_curve_clip(distance))
    write_video(folder / "video.webm", side_by_side(clips), FPS)


def large(frame: NDArray[np.uint8], side: int = PANEL) -> NDArray[np.uint8]:
    """A frame [3, H, W] as a picture [side, side, 3] of square pixels."""
    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)


def _clip(frames: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    return np.stack([label(large(frame), words) for frame in frames])


def _curve_clip(distance: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The mean distance of pixels so far, frame by frame, on a fixed scale."""
    top = max(float(distance.max()), 1.0)
    x = np.linspace(8, PANEL - 8, len(distance))
    points = np.stack([x, PANEL - 12 - distance / top * (PANEL - 48)], axis=1).astype(np.int32)
    found = []
    for t in range(len(distance)):
        picture = np.full((PANEL, PANEL, 3), 250, np.uint8)
        cv2.polylines(picture, [points[: t + 1]], False, (42, 111, 151), 2, cv2.LINE_AA)
        found.append(label(picture, f"drift {distance[t]:.1f}"))
    return np.stack(found)


@torch.no_grad()
def draw_steps(agent: Agent, videos: rollouts.Videos, config: Config, path: Path) -> None:
    """Writes a strip: the last real frame, x after every denoising step of the frame behind it, and what came really.

    Nothing is drawn for a DDPM, whose steps are of another kind.
    """
    denoiser = agent.denoiser
    if not isinstance(denoiser, Denoiser):
        return
    history, device = config.history, next(agent.parameters()).device
    obs = to_float(torch.from_numpy(videos.frames[:1, :history]).to(device))
    action = torch.from_numpy(videos.action[:1, :history]).to(device)
    generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "strip"))
    start = torch.randn(obs[:, 0].shape, generator=generator, device=device)
    settings = config.sampler
    sigmas = karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max, settings.rho)
    path_of_x = trajectory(lambda x, s: denoiser.denoise(x, s, obs, action), start, sigmas, settings, generator)
    frames = [("last real frame", videos.frames[0, history - 1])]
    frames += [
        (f"sigma {sigma:.2g}", rollouts.shown(x)[0]) for sigma, x in zip(sigmas.tolist(), path_of_x, strict=True)
    ]
    frames.append(("really next", videos.frames[0, history]))
    figure, axes = plt.subplots(1, len(frames), figsize=(1.8 * len(frames), 2.1), layout="constrained")
    for axis, (words, frame) in zip(axes, frames, strict=True):
        axis.imshow(large(frame))
        axis.set_title(words, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)

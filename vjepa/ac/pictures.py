"""What a plan looks like: what happened, what was imagined, the energy of the first action; and the ways of a test.

An imagined latent is no picture: it is shown as the picture, of many from the world, whose latent is nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from common.seeding import derive_seed
from common.video import Frames, label, side_by_side, write_video
from vjepa.ac.build import Model, imagination_of
from vjepa.ac.config import Config
from vjepa.ac.imagination import Imagination, cost_of, in_colour
from vjepa.ac.planner import Plan
from vjepa.ac.play import plan_once
from vjepa.ac.worlds.world import Episodes, World

PANEL = 260  # pixels of a panel's side
BANK = 1000  # pictures that an imagined one is chosen from
GRID = 21  # first actions along each axis of a landscape
STEPS = 40  # frames of the film at most
SECOND = 5  # frames
SHOWN = 12  # ways drawn
BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "#9a9a9a"


@dataclass(frozen=True)
class Moment:
    """A step of an episode at which a plan was made: state [1, S], the plan, and what it imagined."""

    step: int
    state: Tensor
    plan: Plan
    present: Tensor
    dreamt: list[Tensor]


@dataclass(frozen=True)
class Bank:
    """Pictures [n, C, H, W] of one layout, and their latents [n, ...]."""

    pictures: Tensor
    latents: Tensor

    def nearest(self, imagination: Imagination, latents: Tensor) -> Tensor:
        """latents [k, ...] -> the pictures [k, C, H, W] whose latents are nearest."""
        rows = [imagination.apart(self.latents[None], one[None])[0].argmin() for one in latents]
        return self.pictures[torch.stack(rows)]


@torch.no_grad()
def new_bank(imagination: Imagination, world: World, layout: Tensor, seed: int) -> Bank:
    """States of random walks, drawn in the layout [1, L] of one episode."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "pictures"))
    walks = world.trajectories(BANK // 10, 9, generator)[0].flatten(0, 1).to(layout.device)
    pictures = world.render(walks, layout.expand(len(walks), -1))
    return Bank(pictures, torch.cat([imagination.encode(part) for part in pictures.split(100)]))


@torch.no_grad()
def landscape(
    imagination: Imagination, world: World, moment: Moment, goal: Tensor, config: Config
) -> tuple[np.ndarray, float]:
    """The cost [GRID, GRID] of the plan with another first action, (dx, dy) from -most to most on both axes, and most.

    A model step of several world steps has the same action in each of them.
    """
    size, skip = world.action_size, config.frame_skip
    most = max(1.0, float(moment.plan.actions[0, 0].abs().max()))
    line = torch.linspace(-most, most, GRID, device=goal.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    actions = moment.plan.actions[:, None].repeat(1, GRID * GRID, 1, 1)
    actions[0, :, 0] = torch.stack([x, y], -1).flatten(0, 1)[:, :size].repeat(1, skip)
    cost = cost_of(imagination, moment.present, moment.state, goal, config.objective)
    parts = [cost(part) for part in actions.split(147, 1)]
    return torch.cat(parts, 1)[0].reshape(GRID, GRID).cpu().numpy(), most


def draw_landscape(values: np.ndarray, most: float, chosen: np.ndarray) -> Frames:
    """A panel: dark is near the goal; the cross is the first action chosen [A]."""
    figure = plt.figure(figsize=(PANEL / 100, PANEL / 100), dpi=100)
    axis = figure.add_axes((0.17, 0.14, 0.8, 0.74))
    axis.imshow(values, extent=(-most, most, most, -most), cmap="viridis")
    axis.plot(*np.clip(chosen[:2], -most, most), "x", color="white", markersize=9, markeredgewidth=2)
    axis.set_title("energy by first action", fontsize=7)
    axis.tick_params(labelsize=6)
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    plt.close(figure)
    return image


def panel(picture: Tensor, words: str) -> Frames:
    """A picture [C, H, W] uint8, enlarged and labelled."""
    image = in_colour(picture).cpu().numpy().transpose(1, 2, 0)
    return label(cv2.resize(image, (PANEL, PANEL), interpolation=cv2.INTER_NEAREST).astype(np.uint8), words)


@torch.no_grad()
def film(imagination: Imagination, world: World, episodes: Episodes, trace: Tensor, config: Config, path: Path) -> None:
    """The first episode: what happened, what each plan imagined of the same steps, the goal, and the landscape.

    The plans are made again at the states of the trace [T + 1, S]; they are the same ones.
    """
    goal = imagination.encode(world.render(episodes.goal, episodes.layout))
    bank = new_bank(imagination, world, episodes.layout, config.seed)
    target = panel(world.render(episodes.goal, episodes.layout)[0], "goal")
    every = max(1, config.execute * config.frame_skip)
    clips: list[Frames] = []
    plans = range(0, len(trace) - 1, every)
    for start in list(plans)[:: max(1, len(plans) * every // STEPS)]:
        state = trace[start][None]
        plan = plan_once(imagination, world, episodes, state, goal, start, config)
        present = imagination.encode(world.render(state, episodes.layout))
        done = plan.actions[:, : config.execute]
        dreamt = list(imagination.dream(present, state, done))
        moment = Moment(start, state, plan, present, dreamt)
        energies = draw_landscape(*landscape(imagination, world, moment, goal, config), done[0, 0].cpu().numpy())
        imagined = bank.nearest(imagination, torch.cat([present, *dreamt]))
        for k, picture in enumerate(imagined):
            at = min(start + k * config.frame_skip, len(trace) - 1)
            real = panel(world.render(trace[at][None], episodes.layout)[0], f"real, step {at}")
            row = [real, panel(picture, f"imagined, {k} ahead"), target, energies]
            clips.append(side_by_side([part[None] for part in row])[0])
        if len(clips) >= STEPS:
            break
    write_video(path, np.stack(clips), SECOND)


def draw_ways(world: World, episodes: Episodes, traces: Tensor, path: Path) -> None:
    """The ways of the first episodes [E, T + 1, S]: start a ring, goal a star, over the picture of the goal."""
    count = min(SHOWN, len(traces))
    rows = -(-count // 6)
    columns = min(count, 6)
    figure, axes = plt.subplots(rows, columns, figsize=(1.8 * columns, 1.8 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    size = world.picture_shape[1]
    for k, axis in zip(range(count), axes.flat, strict=False):
        background = panel(world.render(episodes.goal[k : k + 1], episodes.layout[k : k + 1])[0], "")
        way, goal = (world.to_pixels(part.cpu()) for part in (traces[k], episodes.goal[k]))
        axis.imshow(background, extent=(-0.5, size - 0.5, size - 0.5, -0.5), alpha=0.6)
        axis.plot(way[:, 0], way[:, 1], color=BLUE, linewidth=1)
        axis.plot(way[0, 0], way[0, 1], "o", color=GREY, fillstyle="none", markersize=5)
        axis.plot(goal[0], goal[1], "*", color=ORANGE, markersize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(model: Model, world: World, episodes: Episodes, traces: Tensor, config: Config, folder: Path) -> None:
    """ways.png and video.webm of a test, traces [E, T + 1, S]."""
    draw_ways(world, episodes, traces, folder / "ways.png")
    first = episodes.select(slice(0, 1))
    film(imagination_of(model, world, config), world, first, traces[0], config, folder / "video.webm")

"""Windows of random walks for training: fresh ones for every update, or from a set that is made once.

Shapes: B windows, T frames, S numbers of a state, A of a world's action, k steps of the world between frames.
Every number is drawn by its place (seed, purpose, update), so a run that goes on needs no generator's state.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.files import atomic_write
from common.seeding import derive_seed
from vjepa.ac.config import Config
from vjepa.ac.worlds.world import World
from vjepa.data import DAMAGED

WALKS = "walks.npz"


@dataclass(frozen=True)
class Walks:
    """states [n, L + 1, S], actions [n, L, A], layouts [n, .] of n walks of L steps."""

    states: Tensor
    actions: Tensor
    layouts: Tensor


@dataclass(frozen=True)
class Batch:
    """pictures [B, T, C, H, W] uint8, states [B, T, S], actions [B, T, k*A]: action t leads from frame t to t + 1."""

    pictures: Tensor
    states: Tensor
    actions: Tensor


def batch_of(world: World, config: Config, walks: Walks | None, purpose: str, update: int, ranks: dist.Ranks) -> Batch:
    """The windows of this rank for one update, made on its device.

    Of walks that were made before, all ranks together have the windows that one process would have; fresh walks are
    drawn by each rank for itself.
    """
    mine = dist.share(config.batch_size, ranks)
    keys = (purpose, update) if walks is not None else (purpose, update, ranks.rank)
    generator = torch.Generator(ranks.device).manual_seed(derive_seed(config.seed, *keys))
    if walks is None:
        chosen = Walks(*world.trajectories(mine.stop - mine.start, config.trajectory_steps, generator))
        return windows(world, config, chosen, starts_of(config, len(chosen.states), generator))
    shape = (config.batch_size,)
    index = torch.randint(len(walks.states), shape, generator=generator, device=ranks.device)[mine]
    first = starts_of(config, config.batch_size, generator)[mine]
    chosen = Walks(walks.states[index], walks.actions[index], walks.layouts[index])
    return windows(world, config, chosen, first)


def starts_of(config: Config, count: int, generator: torch.Generator) -> Tensor:
    """First steps [count] of windows, uniform over those that have a whole action behind every frame."""
    last = config.trajectory_steps - config.frames * config.frame_skip
    return torch.randint(last + 1, (count,), generator=generator, device=generator.device)


def windows(world: World, config: Config, walks: Walks, first: Tensor) -> Batch:
    """One window of each of B walks, from its step first [B] on."""
    count, frames, skip = len(first), config.frames, config.frame_skip
    at = first[:, None] + skip * torch.arange(frames, device=first.device)
    row = torch.arange(count, device=first.device)[:, None]
    states = walks.states[row, at]
    moves = (at[..., None] + torch.arange(skip, device=first.device)).flatten(1)
    actions = walks.actions[row, moves].unflatten(1, (frames, skip)).flatten(2)
    layouts = walks.layouts[:, None].expand(-1, frames, -1)
    return Batch(world.render(states, layouts), states, actions)


def make_walks(folder: Path, world: World, config: Config) -> None:
    """Makes the walks of a run, unless they are there: some physics is slow. A damaged file is made again."""
    if config.trajectories == 0 or _read(folder, config) is not None:
        return
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "walks"))
    states, actions, layouts = world.trajectories(config.trajectories, config.trajectory_steps, generator)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, states=states.numpy(), actions=actions.numpy(), layouts=layouts.numpy())
    atomic_write(folder / WALKS, buffer.getvalue())


def load_walks(folder: Path, config: Config, device: torch.device) -> Walks | None:
    """The walks of a run; none if every update has fresh ones. Raises ValueError if they are gone."""
    if config.trajectories == 0:
        return None
    found = _read(folder, config)
    if found is None:
        raise ValueError(f"{folder / WALKS} is missing or damaged; python -m vjepa.ac.train makes it again")
    return Walks(found.states.to(device), found.actions.to(device), found.layouts.to(device))


def _read(folder: Path, config: Config) -> Walks | None:
    try:
        with np.load(folder / WALKS, allow_pickle=False) as file:
            found = Walks(*(torch.from_numpy(file[name]) for name in ("states", "actions", "layouts")))
    except (*DAMAGED, KeyError):
        return None
    return found if found.actions.shape[:2] == (config.trajectories, config.trajectory_steps) else None

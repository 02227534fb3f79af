"""The network of a world, untrained or from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.config import user_error
from common.seeding import derive_seed
from muzero.config import SIZES, Config
from muzero.env import Space, space_of
from muzero.networks import Network, new_network
from muzero.targets import total_moves

STAGE = "train"
SNAPSHOTS = "snapshots"


def network_for(space: Space, config: Config) -> Network:
    """An untrained network for a world. Raises ValueError if the size does not fit it."""
    kind = "vector" if len(space.frame_shape) == 1 else "frames" if space.dtype == "uint8" else "board"
    fits = {"vector": ("vector",), "frames": ("frames",), "board": ("board", "vector")}[kind]
    if config.sizes.kind not in fits:
        names = ", ".join(name for name, sizes in SIZES.items() if sizes.kind in fits)
        raise ValueError(f"size {config.size} does not fit task {config.task}; those that do: {names}")
    if config.support is None and space.players == 1:
        raise ValueError(f"support none is for boards; task {config.task} has rewards")
    seed = derive_seed(config.seed, "network")
    return new_network(space.obs_shape, space.actions, space.encoding, config.sizes, config.support, seed)


def load_network(info: Mapping[str, Any], config: Config, device: torch.device) -> tuple[Network, int]:
    """The network of a finished run, and the updates that it has had.

    One line and exit code 2 if the run has not ended or does not fit.
    """
    folder, updates = info["folder"], 0
    network = network_for(space_of(config), config)
    total = total_moves(config)
    if total:
        found = checkpoint.load_final(folder / STAGE, total, device, info["meta"]["identity"])
        _load(folder, network, found)
        updates = found.state["state"]["updates"]
    return network.to(device).eval(), updates


def snapshots(folder: Path) -> list[int]:
    """After how many updates a run has kept its network, ascending."""
    return sorted(int(path.name) for path in (folder / SNAPSHOTS).glob("*") if path.name.isdigit())


def load_snapshot(info: Mapping[str, Any], updates: int, config: Config, device: torch.device) -> Network:
    """The network that a run had after so many updates; one line and exit code 2 if it is gone or does not fit."""
    folder = info["folder"]
    place = folder / SNAPSHOTS / str(updates)
    found = checkpoint.load_latest(place, device, info["meta"]["identity"])
    if found is None:
        user_error(f"{place} has no checkpoint")
    network = network_for(space_of(config), config)
    _load(folder, network, found)
    return network.to(device).eval()


def _load(folder: Path, network: Network, found: checkpoint.Checkpoint) -> None:
    try:
        checkpoint.load_module("network", network, found.tensors)
    except ValueError as error:
        user_error(f"{folder}: the checkpoint is of another game or size: {error}")

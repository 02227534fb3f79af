"""Work divided over the ranks of a torchrun job; one process without torchrun needs no process group."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from common.config import user_error

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is among `world_size`."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def job() -> tuple[int, int, int]:
    """Rank, number of ranks and rank on this machine, as torchrun says; (0, 1, 0) without it.

    A stray RANK of another program is no job: torchrun sets all of these. One line and exit code 2 for impossible ones.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in os.environ for name in names):
        return 0, 1, 0
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in names[:3])
    except ValueError:
        rank, world_size, local_rank = -1, 0, 0
    if not 0 <= local_rank <= rank < world_size:
        words = ", ".join(f"{name}={os.environ[name]}" for name in names[:3])
        user_error(f"{words} in the environment are not of a torchrun job")
    return rank, world_size, local_rank


def setup(device: str = "cpu") -> Ranks:
    """Who we are by torchrun's variables; joins its process group (CPU: gloo, CUDA: nccl) if there is one."""
    rank, world_size, local_rank = job()
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", local_rank if world_size > 1 else place.index or 0)
        if (place.index or 0) >= torch.cuda.device_count():
            user_error(f"rank {rank} needs {place}: this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(place)
    if world_size > 1 and not td.is_initialized():
        # PyTorch's first compiler or optimiser imports this module, whose default arguments would then hold the group:
        # its threads would outlive `close` and could abort the process at its exit.
        importlib.import_module("torch.distributed.nn.functional")

        # The other ranks wait while the first one collects or tests, which can take hours.
        td.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=7))
    return Ranks(rank, world_size, local_rank, place)


def is_main(ranks: Ranks) -> bool:
    """The rank that writes and speaks."""
    return ranks.rank == 0


def share(n: int, ranks: Ranks) -> slice:
    """This rank's contiguous part of n items; parts differ by at most one item."""
    return slice(n * ranks.rank // ranks.world_size, n * (ranks.rank + 1) // ranks.world_size)


def gather_rows(tensor: Tensor, n: int, ranks: Ranks) -> Tensor:
    """The full [n, ...] on every rank, in order, from each rank's `share(n)` rows; no gradient.

    Raises ValueError if the tensor has not the rows of this rank's share.
    """
    part = share(n, ranks)
    if tensor.shape[0] != part.stop - part.start:
        raise ValueError(f"rank {ranks.rank} gathers {tensor.shape[0]} rows, its share is {part.stop - part.start}")
    if ranks.world_size == 1:
        return tensor
    most = -(-n // ranks.world_size)
    padded = tensor.new_zeros((most, *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    td.all_gather(parts, padded)
    sizes = [share(n, Ranks(r, ranks.world_size, 0, ranks.device)) for r in range(ranks.world_size)]
    return torch.cat([rows[: size.stop - size.start] for rows, size in zip(parts, sizes, strict=True)])


def gather_lists(items: Sequence[T], ranks: Ranks) -> list[T]:
    """The items of every rank on every rank, those of the first rank first."""
    if ranks.world_size == 1:
        return list(items)
    parts: list[Any] = [None] * ranks.world_size
    td.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def broadcast(tensor: Tensor) -> Tensor:
    """The first rank's values, written in place on every rank."""
    if td.is_initialized():
        td.broadcast(tensor, src=0)
    return tensor


def barrier() -> None:
    """Waits until every rank is here."""
    if td.is_initialized():
        td.barrier()


def close() -> None:
    """Leaves the process group."""
    if td.is_initialized():
        td.destroy_process_group()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its mean over the ranks; one message for all of them."""
    if not td.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    td.all_reduce(flat)
    flat /= td.get_world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))

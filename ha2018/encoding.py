"""What V makes of all frames, on disk, and the batches of M made from it.

Latents are stored as the float16 mu and logvar of every frame, with its action and the lengths of the episodes: once
they are there, nothing needs the frames any more. z is drawn anew for each batch.

Shapes: B batch, T time, Z latent size, A action size.
Source: paper, appendix A.2; reference code: series.py, rnn_train.py, doomrnn.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.config import user_error
from common.files import read_checked, write_checked
from common.run import Run
from common.seeding import derive_seed
from ha2018 import data
from ha2018.config import Config
from ha2018.data import Frames
from ha2018.dream import FirstFrames
from ha2018.vision import VAE, sample_z

ENCODE_BATCH = 256
LATENT_EPISODES = 512  # in one file: what a kill can cost of the encoding
FIRST_FRAMES = "first_frames.safetensors"


@dataclass(frozen=True)
class Latents:
    """Encoded episodes, one after another: mu, logvar [N, Z] float16, action [N, A], lengths of the episodes."""

    mu: Tensor
    logvar: Tensor
    action: Tensor
    lengths: list[int]

    @property
    def first(self) -> Tensor:
        """Index of the first frame of each episode."""
        return torch.cumsum(torch.tensor([0, *self.lengths[:-1]]), 0)


@torch.no_grad()
def encode(run: Run, vae: VAE, frames: Frames, role: str, device: torch.device) -> None:
    """Store the latents of all frames as those of `role` ("train" or "holdout"); what is stored already stays."""
    (run.folder / "latents").mkdir(exist_ok=True)
    ends = np.cumsum(frames.lengths)
    with run.timed("encode") as tick, run.progress(len(frames), f"encode {role}", unit="frame") as bar:
        for number, first in enumerate(range(0, len(frames.lengths), LATENT_EPISODES)):
            lengths = frames.lengths[first : first + LATENT_EPISODES]
            end = int(ends[first + len(lengths) - 1])
            rows = np.arange(end - sum(lengths), end)
            path = latents_path(run.folder, role, number)
            if path.exists():
                bar.update(len(rows))
                continue
            mus, logvars = [], []
            for part in data.read_ahead(frames, np.array_split(rows, -(-len(rows) // ENCODE_BATCH))):
                mu, logvar = vae.encode(data.to_images(part, device))
                mus.append(mu.half().cpu())
                logvars.append(logvar.half().cpu())
                bar.update(len(part))
                tick()
            tensors = {
                "mu": torch.cat(mus),
                "logvar": torch.cat(logvars),
                "action": frames.actions[rows].reshape(len(rows), -1),
                "length": torch.tensor(lengths),
            }
            write_checked(path, safetensors.torch.save(tensors), latents_identity(run.identity, role, number))


def latents_path(folder: Path, role: str, number: int) -> Path:
    return folder / "latents" / f"{role}-{number:05d}.safetensors"


def latents_identity(run_identity: str, role: str, number: int) -> str:
    return f"{run_identity} {role} latents {number}"


def latents_files(episodes: int) -> int:
    """How many files the latents of so many episodes are in."""
    return -(-episodes // LATENT_EPISODES)


def has_latents(folder: Path, role: str, episodes: int) -> bool:
    """Whether the latents of all episodes of a role lie in a run folder."""
    return all(latents_path(folder, role, number).exists() for number in range(latents_files(episodes)))


def load_latents(run: Run, role: str, episodes: int) -> Latents:
    """The latents that `encode` stored; one line and exit code 2 for what is missing or damaged."""
    parts = []
    for number in range(latents_files(episodes)):
        path = latents_path(run.folder, role, number)
        try:
            parts.append(safetensors.torch.load(read_checked(path, latents_identity(run.identity, role, number))))
        except (OSError, ValueError) as error:
            again = f"remove it and {run.folder / FIRST_FRAMES}: the same train command encodes those frames again"
            user_error(f"{error}; {again}")
    mu, logvar, action, length = (
        torch.cat([part[name] for part in parts]) for name in ("mu", "logvar", "action", "length")
    )
    return Latents(mu, logvar, action, length.tolist())


def is_encoded(folder: Path) -> bool:
    """Whether V is trained to its end and all frames are encoded: a run with its first frames has both behind it."""
    return (folder / FIRST_FRAMES).exists()


def count_frames(run: Run, episodes: int) -> int:
    """How many frames the first `episodes` episodes have, without reading one."""
    if is_encoded(run.folder):
        return load_first_frames(run.folder, run.identity, torch.device("cpu"))[1]
    lengths: list[int] = []
    number = 0
    while len(lengths) < episodes:
        lengths += data.shard_lengths(data.shard_path(run.folder / "frames", number))
        number += 1
    return sum(lengths[:episodes])


def save_first_frames(run: Run, latents: Latents, count: int) -> None:
    """Store what dreams begin in, the first frames of the first `count` episodes, and the number of all frames."""
    rows = latents.first[:count]
    bank = FirstFrames.of(latents.mu[rows], latents.logvar[rows])
    tensors = {"mu": bank.mu, "logvar": bank.logvar, "frames": torch.tensor(len(latents.mu))}
    write_checked(run.folder / FIRST_FRAMES, safetensors.torch.save(tensors), first_frames_identity(run.identity))


def load_first_frames(folder: Path, run_identity: str, device: torch.device) -> tuple[FirstFrames, int]:
    """What `save_first_frames` stored; one line and exit code 2 if it is damaged."""
    try:
        content = read_checked(folder / FIRST_FRAMES, first_frames_identity(run_identity))
    except (OSError, ValueError) as error:
        user_error(f"{error}; remove it: the same train command makes it from the latents")
    stored = safetensors.torch.load(content)
    return FirstFrames(stored["mu"].to(device), stored["logvar"].to(device)), int(stored["frames"])


def first_frames_identity(run_identity: str) -> str:
    return f"{run_identity} first frames"


@dataclass(frozen=True)
class Batch:
    """Recorded steps for M: z [B, T, Z], action [B, T, A], restart [B, T], 1 on the first frame of an episode."""

    z: Tensor
    action: Tensor
    restart: Tensor


def memory_batches_per_epoch(frames: int, batch: int, length: int) -> int:
    """Whole batches of `batch` streams x `length` frames; ValueError if there is none."""
    count = frames // (batch * length)
    if count == 0:
        raise ValueError(f"M's batch of {batch} x {length} frames needs more than the {frames} collected")
    return count


def memory_updates(config: Config, frames: int) -> int:
    """Updates of M in all on so many frames; ValueError if they are fewer than a batch."""
    total = config.memory_epochs * memory_batches_per_epoch(frames, config.memory_batch, config.memory_length)
    return total if config.memory_updates is None else min(total, config.memory_updates)


class MemoryEpoch:
    """The stream of one epoch of M.

    The episodes, shuffled by (seed, epoch), form one stream, cut to a whole number of batches, folded to `batch` rows
    and read in chunks of `length` frames: chunk k goes on where chunk k - 1 ended, so the state of M is carried.
    CarRacing's episodes are all of one length: a chunk of that length is an episode, which begins with an empty state.
    Deviation D12: there the official code draws random episodes for each update.
    """

    def __init__(self, latents: Latents, batch: int, length: int, seed: int, epoch: int, device: torch.device) -> None:
        count = memory_batches_per_epoch(len(latents.mu), batch, length)
        order = np.random.default_rng(derive_seed(seed, "memory epoch", epoch)).permutation(len(latents.lengths))
        first = latents.first.tolist()
        stream = torch.cat([torch.arange(first[e], first[e] + latents.lengths[e]) for e in order])
        self.stream = stream[: count * batch * length].reshape(batch, count * length)
        self.is_first = torch.zeros(len(latents.mu))
        self.is_first[latents.first] = 1
        self.latents, self.length, self.seed, self.epoch, self.device = latents, length, seed, epoch, device

    def batch(self, k: int, mine: slice = slice(None)) -> Batch:
        """Chunk k, streams `mine`; z = mu + exp(logvar / 2) * noise with noise by (seed, epoch, k)."""
        rows = self.stream[:, k * self.length : (k + 1) * self.length]
        seed = derive_seed(self.seed, "memory noise", self.epoch, k)
        generator = torch.Generator(self.device).manual_seed(seed)
        noise = torch.randn(*rows.shape, self.latents.mu.shape[1], generator=generator, device=self.device)
        rows, noise = rows[mine], noise[mine]
        mu, logvar, action = self.latents.mu[rows], self.latents.logvar[rows], self.latents.action[rows]
        z = sample_z(mu.to(self.device).float(), logvar.to(self.device).float(), noise)
        return Batch(z, action.to(self.device), self.is_first[rows].to(self.device))

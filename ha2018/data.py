"""What random play leaves on disk, and the batches of V and M made from it.

Frames are stored losslessly as PNG inside shards of a few episodes: 10,000 Doom episodes take 15 GB instead of 38.
Latents are stored as the float16 mu and logvar of every frame; z is drawn anew for each batch.

Shapes: B batch, T time, Z latent size, A action size; frames [N, 64, 64, 3] uint8.
Source: paper, appendix A; reference code: extract.py, vae_train.py, series.py, rnn_train.py.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.files import atomic_write
from common.run import Run
from common.seeding import derive_seed
from ha2018.processes import Worlds
from ha2018.shards import SHARD_EPISODES, Play, play_shard
from ha2018.vision import VAE, sample_z

ENCODE_BATCH = 256
READ_THREADS = min(8, os.cpu_count() or 1)


def to_images(frames: np.ndarray, device: torch.device) -> Tensor:
    """frames [N, 64, 64, 3] uint8 -> [N, 3, 64, 64] float32 in [0, 1], as V takes them."""
    return torch.from_numpy(frames).to(device).float().div_(255).permute(0, 3, 1, 2)


def to_frames(images: Tensor) -> np.ndarray:
    """The inverse of `to_images`, rounded."""
    return (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().cpu().numpy()


# --- frames ---------------------------------------------------------------------------------------------------------


def collect(
    run: Run, folder: Path, worlds: Worlds, play: Play, episodes: int, min_frames: int, seed: int, png_level: int
) -> None:
    """Play until `episodes` episodes with more than `min_frames` frames lie in shards below `folder`.

    Episode k depends on (seed, k) alone, so neither the number of games nor an interruption changes the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, number = 0, 0
    with run.progress(episodes, "collect", unit="episode") as bar:
        while kept < episodes:
            # At least so many shards are still needed: asked for together, no process waits for another.
            shards = max(worlds.parallel, -(-(episodes - kept) // SHARD_EPISODES))
            numbers = range(number, number + shards)
            number += shards
            missing = [n for n in numbers if not shard_path(folder, n).exists()]
            shard = partial(play_shard, play=play, min_frames=min_frames, seed=seed, png_level=png_level)
            jobs = [partial(shard, number=n) for n in missing]
            contents = worlds.each(jobs)
            for n in numbers:
                if not shard_path(folder, n).exists():
                    atomic_write(shard_path(folder, n), next(contents))
                with safetensors.safe_open(shard_path(folder, n), "pt") as stored:
                    count = len(stored.get_tensor("length"))
                kept += count
                bar.update(min(count, episodes - bar.n))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


class Frames:
    """The frames of the first `episodes` kept episodes of a folder of shards, read in any order from disk."""

    def __init__(self, folder: Path, episodes: int, skip: int = 0) -> None:
        """`skip`: leave out that many episodes first (the training ones, for a held-out set)."""
        self.shards: list[tuple[np.ndarray, np.ndarray]] = []  # PNG bytes, offset of each frame
        self.lengths: list[int] = []
        actions, index = [], []
        seen, number = 0, 0
        while len(self.lengths) < episodes:
            shard = safetensors.torch.load_file(shard_path(folder, number))
            start, number = 0, number + 1
            if seen + len(shard["length"]) <= skip:
                seen += len(shard["length"])
                continue
            for length in shard["length"].tolist():
                if skip <= seen < skip + episodes:
                    frames = np.arange(start, start + length)
                    index.append(np.stack([np.full(length, len(self.shards)), frames], 1))
                    self.lengths.append(length)
                    actions.append(shard["action"][start : start + length])
                seen, start = seen + 1, start + length
            self.shards.append((shard["png"].numpy(), shard["offset"].numpy()))
        self.index = np.concatenate(index)  # [N, 2]: shard, frame in it
        self.actions = torch.cat(actions)  # [N] or [N, A]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Frames `rows` [n] -> [n, 64, 64, 3] uint8."""
        return np.stack([self._frame(*self.index[row]) for row in rows])

    def _frame(self, shard: int, frame: int) -> np.ndarray:
        png, offset = self.shards[shard]
        rgb = cv2.imdecode(png[offset[frame] : offset[frame + 1]], cv2.IMREAD_COLOR_RGB)
        if rgb is None:
            raise RuntimeError(f"frame {frame} of shard {shard} is damaged; remove the shard and collect again")
        return rgb


def read_ahead(frames: Frames, wanted: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """frames.read(rows) for each of `wanted`, in order; threads decode a few batches ahead of the consumer."""
    ahead: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for rows in wanted:
            ahead.append(pool.submit(frames.read, rows))
            if len(ahead) > 2 * READ_THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def vision_batches_per_epoch(frames: int, batch: int) -> int:
    """Whole batches of `batch` frames; ValueError if there is none."""
    if frames < batch:
        raise ValueError(f"V's batch of {batch} frames needs more than the {frames} collected")
    return frames // batch


def vision_batches(frames: Frames, batch: int, seed: int, first_update: int) -> Iterator[np.ndarray]:
    """Batches [B, 64, 64, 3] uint8 for ever, from `first_update` on, read ahead by a thread.

    Each epoch is a permutation of all frames by (seed, epoch); what does not fill a batch is left out of it.
    """
    per_epoch = vision_batches_per_epoch(len(frames), batch)

    def rows() -> Iterator[np.ndarray]:
        update = first_update
        while True:
            epoch, start = divmod(update, per_epoch)
            order = np.random.default_rng(derive_seed(seed, "vision epoch", epoch)).permutation(len(frames))
            for k in range(start, per_epoch):
                yield order[k * batch : (k + 1) * batch]
                update += 1

    return read_ahead(frames, rows())


# --- latents --------------------------------------------------------------------------------------------------------


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
def encode(run: Run, vae: VAE, frames: Frames, path: Path, device: torch.device) -> None:
    """Write the latents of all frames to `path`, unless they are there already."""
    if path.exists():
        return
    mus, logvars = [], []
    with run.progress(len(frames), "encode", unit="frame") as bar:
        rows = np.array_split(np.arange(len(frames)), -(-len(frames) // ENCODE_BATCH))
        for part in read_ahead(frames, rows):
            mu, logvar = vae.encode(to_images(part, device))
            mus.append(mu.half().cpu())
            logvars.append(logvar.half().cpu())
            bar.update(len(part))
    atomic_write(path, safetensors.torch.save({"mu": torch.cat(mus), "logvar": torch.cat(logvars)}))


def load_latents(frames: Frames, path: Path) -> Latents:
    """The latents that `encode` wrote, with the actions and lengths of their episodes."""
    stored = safetensors.torch.load_file(path)
    return Latents(stored["mu"], stored["logvar"], frames.actions.reshape(len(frames), -1), frames.lengths)


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

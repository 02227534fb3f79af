"""What random play leaves on disk, and the batches of V and M made from it.

Frames are stored losslessly as PNG inside shards of a few episodes: 10,000 Doom episodes take 15 GB instead of 38.
Latents are stored as the float16 mu and logvar of every frame, with its action and the lengths of the episodes: once
they are there, nothing needs the frames any more. z is drawn anew for each batch.

Shapes: B batch, T time, Z latent size, A action size; frames [N, 64, 64, 3] uint8.
Source: paper, appendix A; reference code: extract.py, vae_train.py, series.py, rnn_train.py.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.config import user_error
from common.files import read_checked, write_checked
from common.run import Run
from common.seeding import derive_seed
from ha2018.config import Config
from ha2018.dream import FirstFrames
from ha2018.processes import Games
from ha2018.shards import SHARD_EPISODES, Play, frame_positions, lengths_of, play_shard
from ha2018.vision import VAE, sample_z

ENCODE_BATCH = 256
LATENT_EPISODES = 512  # in one file: what a kill can cost of the encoding
READ_THREADS = min(8, os.cpu_count() or 1)
FIRST_FRAMES = "first_frames.safetensors"


def to_images(frames: np.ndarray, device: torch.device) -> Tensor:
    """frames [N, 64, 64, 3] uint8 -> [N, 3, 64, 64] float32 in [0, 1], as V takes them."""
    return torch.from_numpy(frames).to(device).float().div_(255).permute(0, 3, 1, 2)


def to_frames(images: Tensor) -> np.ndarray:
    """The inverse of `to_images`, rounded."""
    return (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().cpu().numpy()


# --- frames ---------------------------------------------------------------------------------------------------------


def collect(run: Run, games: Games, play: Play, config: Config) -> None:
    """Play until the episodes of training and holdout lie in shards below the run folder.

    Only episodes of more than `min_frames` frames are kept. Episode k depends on (seed, k) alone, so neither the number
    of games nor an interruption changes the data.
    """
    folder, wanted = run.folder / "frames", config.episodes + config.holdout_episodes
    folder.mkdir(parents=True, exist_ok=True)
    kept, number = 0, 0
    with run.timed("collect") as tick, run.progress(wanted, "collect", unit="episode") as bar:
        while kept < wanted:
            # At least so many shards are still needed: asked for together, no process waits for another.
            shards = max(games.parallel, -(-(wanted - kept) // SHARD_EPISODES))
            numbers = range(number, number + shards)
            number += shards
            shard = partial(
                play_shard, play=play, min_frames=config.min_frames, seed=config.seed, png_level=config.png_level
            )
            contents = games.each([partial(shard, number=n) for n in numbers if not shard_path(folder, n).exists()])
            for n in numbers:
                if not shard_path(folder, n).exists():
                    write_checked(shard_path(folder, n), next(contents), _shard_identity(run, n))
                count = len(_lengths(shard_path(folder, n)))
                kept += count
                bar.update(min(count, wanted - bar.n))
                tick()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _shard_identity(run: Run, number: int) -> str:
    return f"{run.identity} shard {number}"


def _lengths(path: Path) -> list[int]:
    try:
        return lengths_of(path)
    except FileNotFoundError:
        user_error(
            f"{path} is missing: V needs its frames; the same train command with --stage collect plays them again"
        )
    except (OSError, ValueError, KeyError) as error:
        user_error(f"{path} is damaged ({error}); remove it: the same train command plays its episodes again")


def count_frames(run: Run, episodes: int) -> int:
    """How many frames the first `episodes` episodes have, without reading one."""
    if is_encoded(run.folder):
        return load_first_frames(run.folder, run.identity, torch.device("cpu"))[1]
    lengths: list[int] = []
    number = 0
    while len(lengths) < episodes:
        lengths += _lengths(shard_path(run.folder / "frames", number))
        number += 1
    return sum(lengths[:episodes])


class Frames:
    """The frames of the first `episodes` kept episodes of a run, read in any order from disk."""

    def __init__(self, run: Run, episodes: int, skip: int = 0) -> None:
        """`skip`: leave out that many episodes first (the training ones, for a held-out set).

        Every shard is read once to check it; one line and exit code 2 for what is missing or damaged.
        """
        self.shards: list[tuple[Path, np.ndarray]] = []  # where each frame begins and ends in the file
        self.lengths: list[int] = []
        actions, index = [], []
        seen, number = 0, 0
        with run.progress(episodes, "check frames", unit="episode") as bar:
            while len(self.lengths) < episodes:
                path = shard_path(run.folder / "frames", number)
                start, number = 0, number + 1
                lengths = _lengths(path)
                if seen + len(lengths) <= skip:
                    seen += len(lengths)
                    continue
                shard = _checked_shard(run, number - 1)
                for length in shard["length"].tolist():
                    if skip <= seen < skip + episodes:
                        frames = np.arange(start, start + length)
                        index.append(np.stack([np.full(length, len(self.shards)), frames], 1))
                        self.lengths.append(length)
                        actions.append(torch.from_numpy(shard["action"][start : start + length].copy()))
                    seen, start = seen + 1, start + length
                self.shards.append((path, frame_positions(path)))
                bar.update(len(self.lengths) - bar.n)
        self.index = np.concatenate(index)  # [N, 2]: shard, frame in it
        self.actions = torch.cat(actions)  # [N] or [N, A]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Frames `rows` [n] -> [n, 64, 64, 3] uint8."""
        return np.stack([self._frame(*self.index[row]) for row in rows])

    def _frame(self, shard: int, frame: int) -> np.ndarray:
        path, position = self.shards[shard]
        begin, end = position[frame : frame + 2]
        png = np.fromfile(path, np.uint8, end - begin, offset=begin)
        rgb = cv2.imdecode(png, cv2.IMREAD_COLOR_RGB)
        if rgb is None:
            raise OSError(0, f"frame {frame} is damaged; remove the file and collect again", str(path))
        return rgb


def _checked_shard(run: Run, number: int) -> dict[str, np.ndarray]:
    """The tensors of a shard; one line and exit code 2 if it is damaged or of another place."""
    path = shard_path(run.folder / "frames", number)
    try:
        return safetensors.numpy.load(read_checked(path, _shard_identity(run, number)))
    except (OSError, ValueError) as error:
        if not run.identity:  # a run of an earlier version, whose shards have no checksum
            with_checksum = error
            try:
                shard = safetensors.numpy.load(path.read_bytes())
            except (OSError, SafetensorError):
                error = with_checksum
            else:
                if number == 0:
                    print(f"{path.parent}: shards of an earlier version, which have no checksums", file=sys.stderr)
                return shard
        user_error(f"{error}; remove it: the same train command plays its episodes again")


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


def vision_updates(config: Config, frames: int) -> int:
    """Updates of V in all on so many frames; ValueError if they are fewer than a batch."""
    if frames < config.vision_batch:
        raise ValueError(f"V's batch of {config.vision_batch} frames needs more than the {frames} collected")
    total = config.vision_epochs * (frames // config.vision_batch)
    return total if config.vision_updates is None else min(total, config.vision_updates)


def vision_batches(frames: Frames, batch: int, seed: int, first_update: int) -> Iterator[np.ndarray]:
    """Batches [B, 64, 64, 3] uint8 for ever, from `first_update` on, read ahead by a thread.

    Each epoch is a permutation of all frames by (seed, epoch); what does not fill a batch is left out of it.
    """
    per_epoch = len(frames) // batch

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
            for part in read_ahead(frames, np.array_split(rows, -(-len(rows) // ENCODE_BATCH))):
                mu, logvar = vae.encode(to_images(part, device))
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

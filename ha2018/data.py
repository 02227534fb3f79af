"""What random play leaves on disk, and the batches of V made from it; latents and the batches of M are in encoding.py.

Frames are stored losslessly as PNG inside shards of a few episodes: 10,000 Doom episodes take 15 GB instead of 38.

Shapes: B batch, A action size; frames [N, 64, 64, 3] uint8.
Source: paper, appendix A.1; reference code: extract.py, vae_train.py.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
from ha2018.processes import Games
from ha2018.shards import SHARD_EPISODES, Play, frame_positions, lengths_of, play_shard

READ_THREADS = min(8, os.cpu_count() or 1)


def to_images(frames: np.ndarray, device: torch.device) -> Tensor:
    """frames [N, 64, 64, 3] uint8 -> [N, 3, 64, 64] float32 in [0, 1], as V takes them."""
    return torch.from_numpy(frames).to(device).float().div_(255).permute(0, 3, 1, 2)


def to_frames(images: Tensor) -> np.ndarray:
    """The inverse of `to_images`, rounded."""
    return (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().cpu().numpy()


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
                count = len(shard_lengths(shard_path(folder, n)))
                kept += count
                bar.update(min(count, wanted - bar.n))
                tick()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _shard_identity(run: Run, number: int) -> str:
    return f"{run.identity} shard {number}"


def shard_lengths(path: Path) -> list[int]:
    """The lengths of the episodes in a shard; one line and exit code 2 if it is missing or damaged."""
    try:
        return lengths_of(path)
    except FileNotFoundError:
        user_error(
            f"{path} is missing: V needs its frames; the same train command with --stage collect plays them again"
        )
    except (OSError, ValueError, KeyError) as error:
        user_error(f"{path} is damaged ({error}); remove it: the same train command plays its episodes again")


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
                lengths = shard_lengths(path)
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

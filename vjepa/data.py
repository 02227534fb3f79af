"""Where clips come from, and the micro-batches of clips and masks that the training eats.

Sources: video files, arrays in .npz, and generated worlds. A clip is [F, H, W, C] uint8; C is 3 (RGB) or 1 (grey).
Shapes: m clips of a micro-batch.
Source: V-JEPA, appendix C; reference code: src/datasets/video_dataset.py.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import dist
from common.files import check_is_file
from common.program import RunError
from common.seeding import derive_seed
from common.workers import begin_worker
from vjepa.atari import TASKS as GAMES
from vjepa.atari import AtariClips
from vjepa.build import mask_kinds
from vjepa.config import Config
from vjepa.crops import augmented
from vjepa.digits import Digits
from vjepa.masks import Masks, random_tubes, sample_masks
from vjepa.scenes import Scenes
from vjepa.shapes import Shapes
from vjepa.statistics import IMAGENET, Statistics
from vjepa.videos import DamagedVideoError, VideoFiles
from vjepa.vit import Grid

READ_AHEAD = 4  # micro-batches per worker
# A damaged .npz file ends in whatever its reader happens to meet.
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
GENERATED = ("shapes", "digits", "physics", *GAMES)


class Clips(Protocol):
    """A collection of clips that can be read in any order, in any process."""

    channels: int
    statistics: Statistics

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, [F, H, W, channels] uint8; of a video the place `rng` says. Raises DamagedVideoError."""
        ...


class Arrays:
    """clips [N, F, H, W], [N, F, H, W, 1] or [N, F, H, W, 3] uint8, and optionally labels [N], in one .npz file."""

    def __init__(self, clips: np.ndarray, labels: np.ndarray | None, frames: int) -> None:
        """frames: of a clip, the first ones. Raises ValueError for other arrays."""
        if clips.ndim == 4:
            clips = clips[..., None]
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[4] not in IMAGENET or len(clips) == 0:
            raise ValueError(f"data: clips must be uint8 [N, F, H, W, 1 or 3], not {clips.dtype} {list(clips.shape)}")
        if clips.shape[1] < frames:
            raise ValueError(f"data: clips of {clips.shape[1]} frames are shorter than frames={frames}")
        labels = np.zeros(0, np.int64) if labels is None else labels
        if len(labels) and (labels.shape != clips.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
            raise ValueError(f"data: labels must be [{len(clips)}] whole numbers, not {list(labels.shape)}")
        self.content, self.labels, self.frames = clips, labels.astype(np.int64), frames
        self.channels = clips.shape[4]
        self.statistics = IMAGENET[self.channels]

    def __len__(self) -> int:
        return len(self.content)

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Clip `index`, from its beginning or from the place that `rng` says."""
        spare = self.content.shape[1] - self.frames
        start = 0 if rng is None or spare == 0 else int(rng.integers(spare + 1))
        return self.content[index, start : start + self.frames]

    def clips(self, index: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """`count` clips of `index` from evenly spaced places, or each from a random one of its part of them.

        [count, F, H, W, C].
        """
        spare = self.content.shape[1] - self.frames
        if rng is None or spare == 0:
            starts = [round(k * spare / max(1, count - 1)) for k in range(count)]
        else:
            starts = [int(rng.integers(k * spare // count, (k + 1) * spare // count + 1)) for k in range(count)]
        return np.stack([self.content[index, start : start + self.frames] for start in starts])


Labelled = Arrays | VideoFiles
State = Shapes | Digits | AtariClips


@dataclass(frozen=True)
class Splits:
    """What the encoder learns from, and what probes are trained and tested on.

    Of generated worlds that is another draw of the same world, of a game another play; of videos there may be nothing
    to test with. Physics has its pairs instead.
    """

    pretrain: Clips
    train: Labelled | State | None
    test: Labelled | State | None


def load_splits(config: Config) -> Splits:
    """The clips of a task. Raises ValueError if there are none."""
    if config.task not in GENERATED:
        return _given_clips(config)
    side, frames = config.size[0], config.frames
    if config.size[0] != config.size[1]:
        raise ValueError(f"size: frames of task {config.task} are square, not {config.size[0]} x {config.size[1]}")
    sizes = {"pretrain": config.clips, "train": config.probe_clips, "test": max(10, config.probe_clips // 4)}
    seeds = {name: derive_seed(config.seed, config.task, name) for name in sizes}
    if config.task == "physics":
        return Splits(Scenes(side, frames, config.clips, seeds["pretrain"]), None, None)
    if config.task == "digits":
        parts: list[Any] = [Digits(side, frames, n, seeds[name], name == "test") for name, n in sizes.items()]
    elif config.task in GAMES:
        game = config.task.removeprefix("atari-")
        parts = [AtariClips(game, side, frames, n, seeds[name]) for name, n in sizes.items()]
    else:
        parts = [Shapes(side, frames, n, seeds[name]) for name, n in sizes.items()]
    return Splits(*parts)


def _given_clips(config: Config) -> Splits:
    """The clips of files. Raises ValueError if there are none."""
    if not config.data:
        raise ValueError(f"task {config.task} needs data: a list file, a folder of videos, or an .npz file of clips")
    train = _read_given(config.data, config)
    test = _read_given(config.test_data, config, train) if config.test_data else None
    if test is not None and (not len(train.labels) or not len(test.labels)):
        raise ValueError("test_data: probes need labels in both data and test_data")
    if test is not None and test.channels != train.channels:
        raise ValueError(f"test_data: {test.channels} channels, data has {train.channels}")
    return Splits(train, train if test is not None else None, test)


def _read_given(name: str, config: Config, known: Labelled | None = None) -> Labelled:
    place = Path(name)
    try:
        if not place.exists():
            raise ValueError(f"data: there is no {place}")
        if place.suffix == ".npz":
            return _read_arrays(place, config.frames)
        step = None if config.fps is not None else config.frame_step
        classes = known.classes if isinstance(known, VideoFiles) else ()
        return VideoFiles(place, config.frames, step, config.fps, classes)
    except OSError as error:
        raise ValueError(f"data: {error.filename or place}: {error.strerror or error}") from error


def _read_arrays(path: Path, frames: int) -> Arrays:
    """An .npz file. Raises ValueError in one line for whatever else the file may be."""
    try:
        check_is_file(path)
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise ValueError("it is one array, without names")
        with content as file:
            if "clips" not in file.files:
                raise ValueError("it lacks an array, clips")
            arrays = {name: file[name] for name in ("clips", "labels") if name in file.files}
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data: {path} is no readable .npz file ({reason})") from error
    return Arrays(arrays["clips"], arrays.get("labels"), frames)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A micro-batch: clips [m, F, H, W, C] uint8, their masks, and the videos that could not be read."""

    clips: Tensor
    masks: Masks
    faults: tuple[str, ...]


def check_batch(clips: Clips, config: Config) -> None:
    """Raises ValueError if there are updates to make and the clips do not fill one batch."""
    if config.updates and len(clips) < config.batch_size:
        raise ValueError(f"a batch of {config.batch_size} clips needs more than the {len(clips)} there are")


class MicroBatches(Dataset[tuple[np.ndarray, ...]]):
    """Micro-batch k = update * micro_batches + part, a function of the seed and k alone.

    Every pass over the clips is a permutation; what does not fill an update is left out. All micro-batches of an update
    have masks of the same block sizes, as on the authors' GPUs, which all count from 0; places differ by clip.
    """

    def __init__(self, clips: Clips, config: Config, grid: Grid) -> None:
        self.clips, self.config, self.grid = clips, config, grid
        check_batch(clips, config)
        self.per_pass = len(clips) // config.batch_size
        self._pass, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, k: int) -> tuple[np.ndarray, ...]:
        config = self.config
        update, part = divmod(k, config.micro_batches)
        number, within = divmod(update, self.per_pass)
        if number != self._pass:
            rng = np.random.default_rng(derive_seed(config.seed, "epoch", number))
            self._pass, self._order = number, rng.permutation(len(self.clips))
        start = within * config.batch_size + part * config.micro_batch_size
        rng = np.random.default_rng(derive_seed(config.seed, "crops", k))
        faults: list[str] = []
        clips = [
            augmented(self._readable(int(index), rng, faults), config, rng)
            for index in self._order[start : start + config.micro_batch_size]
        ]
        masks = self.masks(update, k)
        # Plain arrays: tensors would each take a file descriptor on their way out of the worker.
        pairs = [mask.numpy() for pair in zip(masks.context, masks.target, strict=True) for mask in pair]
        return np.stack(clips), np.array(faults), *pairs

    def masks(self, update: int, k: int) -> Masks:
        """Of micro-batch k, which is part of that update."""
        config, seed = self.config, derive_seed(self.config.seed, "masks", k)
        if config.masking == "random-tube":
            rng = np.random.default_rng(seed)
            return random_tubes(config.tube_ratio, self.grid, config.micro_batch_size, rng)
        generator = torch.Generator().manual_seed(seed)
        return sample_masks(mask_kinds(config), self.grid, config.micro_batch_size, update, generator)

    def _readable(self, index: int, rng: np.random.Generator, faults: list[str]) -> np.ndarray:
        """Clip `index`, or the next one that can be read; the others are noted."""
        for k in range(len(self.clips)):
            try:
                return self.clips.read((index + k) % len(self.clips), rng)
            except DamagedVideoError as error:
                faults.append(str(error))
        raise RuntimeError("no video can be read")


def micro_batches(data: MicroBatches, ranks: dist.Ranks, first_update: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches of each update from `first_update` on, read ahead by worker processes, in order."""
    mine = dist.share(data.config.micro_batches, ranks)
    per_update, updates = data.config.micro_batches, data.config.updates
    numbers = [u * per_update + k for u in range(first_update, updates) for k in range(mine.start, mine.stop)]
    workers = data.config.workers
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=READ_AHEAD if workers else None,
        collate_fn=as_it_is,
        worker_init_fn=begin_worker,
        # The base seed of the workers; unused, but without this one the global generator would be consumed.
        generator=torch.Generator().manual_seed(0),
    )
    batches = iter(loader)
    for _ in range(first_update, updates):
        try:
            parts = [next(batches) for _ in range(mine.start, mine.stop)]
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(f"a process that reads clips died ({error}); the same command goes on") from error
        yield [_batch(*part) for part in parts]


def as_it_is(item: Any) -> Any:
    """For a DataLoader: what the data set gives, without tensors made of it."""
    return item


def _batch(clips: np.ndarray, faults: np.ndarray, *pairs: np.ndarray) -> Batch:
    tensors = [torch.from_numpy(mask) for mask in pairs]
    return Batch(torch.from_numpy(clips), Masks(tensors[::2], tensors[1::2]), tuple(map(str, faults)))

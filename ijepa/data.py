"""Where images come from, and the micro-batches of crops and masks that the training eats.

Sources: folders of images, arrays in .npz, digits and clothes, drawn shapes, frames of games. An image is [H, W, C]
uint8; C is 3 (RGB) or 1 (grey). Shapes: m images of a micro-batch, E context and M target masks.
Source: paper, appendix A.1; reference code: src/datasets/imagenet1k.py.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import dist
from common.program import RunError
from common.seeding import derive_seed
from common.workers import begin_worker
from ijepa.config import Config
from ijepa.crops import augmented, resize
from ijepa.digits import TESTED, digits
from ijepa.fashion import fashion
from ijepa.games import GAMES
from ijepa.images import DamagedImageError, ImageFiles, ImageFolder, has_classes
from ijepa.masks import MaskConfig, Masks, sample_masks
from ijepa.play import Play, load
from ijepa.shapes import Shapes
from ijepa.statistics import IMAGENET, Statistics

STATISTICS_FRAMES = 2048  # at most, to calculate a game's mean frame, or the mean of a task's pixels
PROBED = 10_000  # images of Fashion-MNIST that probes learn from, at most: with all, they would take hours
READ_AHEAD = 4  # micro-batches per worker


class Images(Protocol):
    """A collection of images that can be read in any order, in any process."""

    channels: int
    statistics: Statistics

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Image `index`, [H, W, channels] uint8. Raises DamagedImageError if it cannot be read."""
        ...


class Labelled(Images, Protocol):
    """Images with a table of class numbers: `labels` [N, factors] int64, one column for each of `factors`."""

    labels: np.ndarray
    factors: tuple[str, ...]


class Arrays:
    """images [N, H, W], [N, H, W, 1] or [N, H, W, 3] uint8, and labels [N] for the probes, in one .npz file."""

    factors: tuple[str, ...] = ("class",)

    def __init__(self, images: np.ndarray, labels: np.ndarray, statistics: Statistics | None = None) -> None:
        """statistics: to normalise by, ImageNet's if there are none. Raises ValueError for other arrays."""
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in IMAGENET or len(images) == 0:
            raise ValueError(f"data: images must be uint8 [N, H, W, 1 or 3], not {images.dtype} {list(images.shape)}")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"data: labels must be [{len(images)}] whole numbers, not {list(labels.shape)}")
        self.images, self.labels, self.channels = images, labels.astype(np.int64)[:, None], images.shape[3]
        self.statistics = statistics or IMAGENET[self.channels]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        return self.images[index]


class Frames:
    """Frames of random play, padded below to a whole number of 16 rows: [224, 160, 1]."""

    channels = 1

    def __init__(self, plays: Sequence[Play], statistics: Statistics) -> None:
        self.statistics = statistics
        self.plays = [play.frames for play in plays]
        self.ends = np.cumsum([len(frames) for frames in self.plays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int) -> np.ndarray:
        player = int(np.searchsorted(self.ends, index, side="right"))
        frame = self.plays[player][index - self.ends[player]]
        return padded(frame)[..., None]


def pretraining_play(folder: Path, config: Config) -> list[Play]:
    """The play that the encoder learnt from. Raises ValueError if it is damaged."""
    return load(folder, config.task, "pretrain", config.env_steps, config.seed)


def padded(frame: np.ndarray) -> np.ndarray:
    """frame [H, W] with black rows below, to a whole number of 16 rows."""
    return np.pad(frame, ((0, -len(frame) % 16), (0, 0)))


def frame_statistics(plays: Sequence[Play], config: Config) -> Statistics:
    """The mean frame of a game, and one standard deviation of what differs from it.

    Deviation D9: with one mean for all pixels, almost all that differs between patches would be where they are: a
    predictor that knows only the place has a hundredth of the error left. On crops there is no such place.
    """
    every = max(1, sum(len(play.frames) for play in plays) // STATISTICS_FRAMES)
    frames = np.stack([padded(frame) for play in plays for frame in play.frames[::every]]).astype(np.float32) / 255
    mean = frames.mean(0)
    std = (frames - mean).std() if not config.augment else frames.std()
    height, width = config.size
    image = resize(mean[..., None], height, width)
    std = std.reshape(1) / np.float32(config.input_scale)
    return Statistics(image if not config.augment else mean.mean(keepdims=True)[0], std)


@dataclass(frozen=True)
class Splits:
    """What the encoder learns from, and the labelled images, if any, that probes are trained and tested on."""

    pretrain: Images
    train: Labelled | None = None
    test: Labelled | None = None

    @property
    def shown(self) -> Images:
        """What pictures are drawn of."""
        return self.pretrain if self.test is None else self.test


def labelled(splits: Splits) -> tuple[Labelled, Labelled]:
    """The images that probes are trained and tested on. Raises ValueError if there are none."""
    if splits.train is None or splits.test is None:
        raise ValueError("data: probes need labels: name a folder with train/ and val/ class folders, or an .npz file")
    return splits.train, splits.test


def channels(splits: Splits | None) -> int:
    """Colour channels of a task's images; those of games have no splits."""
    return 1 if splits is None else splits.pretrain.channels


def load_splits(config: Config) -> Splits | None:
    """The images of a task, None for games. Raises ValueError if there are none."""
    if config.task in GAMES:
        if config.pixel_mean is not None:
            raise ValueError("pixel_mean: a game is normalised by its mean frame")
        return None
    if config.task in ("digits", "fashion"):
        return _grey_images(config)
    if config.task == "shapes":
        side = config.size[0]
        pretrain, train, test = (
            Shapes(side, count, derive_seed(config.seed, "shapes", name), statistics_of(config, IMAGENET[3]))
            for name, count in (
                ("pretrain", config.images),
                ("train", config.images // 2),
                ("test", min(2000, config.images // 2)),
            )
        )
        return Splits(pretrain, train, test)
    try:
        return _given_images(config)
    except OSError as error:
        raise ValueError(f"data: {error.filename or config.data}: {error.strerror or error}") from error


def _grey_images(config: Config) -> Splits:
    """Digits or clothes, normalised by their own mean and deviation. Raises ValueError if they are not there."""
    if config.task == "digits":
        images, labels = digits()
        parts = [(images[:-TESTED], labels[:-TESTED]), (images[-TESTED:], labels[-TESTED:])]
    else:
        found = fashion(config.data)
        parts = [found["train"], found["test"]]
    (images, labels), (test_images, test_labels) = (
        (pictures[:count], classes[:count])
        for (pictures, classes), count in zip(parts, (config.images, config.images // 4), strict=True)
    )
    statistics = statistics_of(config, pixel_statistics(images[..., None]))
    return Splits(
        Arrays(images, labels, statistics),
        Arrays(images[:PROBED], labels[:PROBED], statistics),
        Arrays(test_images, test_labels, statistics),
    )


def _given_images(config: Config) -> Splits:
    """The images of a folder or an .npz file. Raises ValueError or OSError if there are none.

    Without val/, or without classes, there is nothing for a probe, but all that pretraining needs.
    """
    path = Path(config.data)
    if not config.data:
        raise ValueError("task imagenet needs data: a folder of images, or an .npz file")
    if path.suffix != ".npz":
        statistics = statistics_of(config, IMAGENET[3])
        folder = path / "train" if (path / "train").is_dir() else path
        if has_classes(folder) and (path / "val").is_dir():
            train = ImageFolder(folder, statistics=statistics)
            return Splits(train, train, ImageFolder(path / "val", train.classes, statistics))
        return Splits(ImageFiles(folder, statistics))
    arrays = _read_arrays(path, ("images", "labels", "test_images", "test_labels"))
    train_arrays = Arrays(arrays["images"], arrays["labels"])
    test = Arrays(arrays["test_images"], arrays["test_labels"])
    if train_arrays.channels != test.channels:
        raise ValueError(f"data: images have {train_arrays.channels} channels, test_images {test.channels}")
    train_arrays.statistics = test.statistics = statistics_of(config, IMAGENET[train_arrays.channels])
    return Splits(train_arrays, train_arrays, test)


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz file. Raises ValueError in one line for whatever else the file may be."""
    if not path.is_file():  # nor a pipe, whose reading would never end
        raise ValueError(f"data: {path} is no readable .npz file (there is no such file)")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            raise ValueError("it is one array, without names")
        with content as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise ValueError(f"it lacks an array, {missing[0]}")
            return {name: file[name] for name in names}
    # A damaged archive ends in whatever its reader happens to meet.
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data: {path} is no readable .npz file ({reason})") from error


def pixel_statistics(images: np.ndarray) -> Statistics:
    """Mean and standard deviation of each channel of images [N, H, W, C] uint8, in [0, 1]."""
    pixels = images[:: max(1, len(images) // STATISTICS_FRAMES)].astype(np.float64) / 255
    return Statistics(pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)).clip(min=1e-6))


def statistics_of(config: Config, usual: Statistics) -> Statistics:
    """What images are normalised by: the config's numbers, or the `usual` ones; `input_scale` is in the deviation.

    Raises ValueError if the config has numbers for another number of channels.
    """
    mean, std = usual.mean, usual.std
    if config.pixel_mean is not None and config.pixel_std is not None:
        if len(config.pixel_mean) != len(mean):
            raise ValueError(f"pixel_mean: {len(config.pixel_mean)} numbers for images of {len(mean)} channels")
        mean, std = np.array(config.pixel_mean), np.array(config.pixel_std)
    return Statistics(mean, std / config.input_scale)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A micro-batch: images [m, H, W, C] uint8, its masks, and the images that could not be read."""

    images: Tensor
    masks: Masks
    faults: tuple[str, ...]


def check_batch(images: Images, config: Config) -> None:
    """Raises ValueError if there are updates to make and an epoch has not one whole batch."""
    if config.is_trained and len(images) < config.batch_size:
        raise ValueError(f"a batch of {config.batch_size} images needs more than the {len(images)} there are")


class MicroBatches(Dataset[tuple[np.ndarray, ...]]):
    """Micro-batch k = update * micro_batches + part, a function of the seed and k alone.

    Every epoch is a permutation; what does not fill an update is left out. All micro-batches of an update have masks
    of the same block sizes, as on the authors' GPUs, which all count from 0; places differ from image to image.
    """

    def __init__(self, images: Images, config: Config, mask_config: MaskConfig) -> None:
        self.images, self.config, self.mask_config = images, config, mask_config
        check_batch(images, config)
        self.per_epoch = len(images) // config.batch_size
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def updates(self) -> int:
        """Of the whole training."""
        if not self.config.is_trained:
            return 0
        return self.config.epochs * self.per_epoch if self.config.updates is None else self.config.updates

    def __getitem__(self, k: int) -> tuple[np.ndarray, ...]:
        config = self.config
        update, part = divmod(k, config.micro_batches)
        epoch, within = divmod(update, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(config.seed, "epoch", epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        start = within * config.batch_size + part * config.micro_batch_size
        rng = np.random.default_rng(derive_seed(config.seed, "crops", k))
        faults: list[str] = []
        images = [
            augmented(self._readable(int(index), faults), config, rng)
            for index in self._order[start : start + config.micro_batch_size]
        ]
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "masks", k))
        masks = sample_masks(self.mask_config, config.micro_batch_size, update, generator)
        # Plain arrays: tensors would each take a file descriptor on their way out of the worker.
        context, target = (torch.stack(group).numpy() for group in (masks.context, masks.target))
        return np.stack(images), context, target, np.array(faults)

    def _readable(self, index: int, faults: list[str]) -> np.ndarray:
        """Image `index`, or the next one that can be read; the others are noted."""
        for k in range(len(self.images)):
            try:
                return self.images.read((index + k) % len(self.images))
            except DamagedImageError as error:
                faults.append(str(error))
        raise RuntimeError("no image can be read")


def micro_batches(data: MicroBatches, ranks: dist.Ranks, first_update: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches of each update from `first_update` on, read ahead by worker processes, in order."""
    mine = dist.share(data.config.micro_batches, ranks)
    per_update = data.config.micro_batches
    numbers = [u * per_update + k for u in range(first_update, data.updates) for k in range(mine.start, mine.stop)]
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
    for _ in range(first_update, data.updates):
        try:
            parts = [next(batches) for _ in range(mine.start, mine.stop)]
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(f"a process that reads images died ({error}); the same command goes on") from error
        yield [_batch(*part) for part in parts]


def as_it_is(item: Any) -> Any:
    """For a DataLoader: what the data set gives, without tensors made of it."""
    return item


def _batch(images: np.ndarray, context: np.ndarray, target: np.ndarray, faults: np.ndarray) -> Batch:
    masks = Masks(list(torch.from_numpy(context)), list(torch.from_numpy(target)))
    return Batch(torch.from_numpy(images), masks, tuple(map(str, faults)))

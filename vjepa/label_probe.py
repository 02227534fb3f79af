"""The published test on labelled videos: an attentive probe on the tokens of several clips of a video.

Shapes: b videos, s clips of a video, N tokens of a clip, D width.
Source: V-JEPA, section 4 and appendix D; reference code: evals/video_classification_frozen/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from common.config import user_error
from common.faults import Faults
from common.precision import compute_dtype
from common.record import sample
from common.run import progress_bar
from common.seeding import derive_seed
from common.workers import begin_worker
from vjepa.build import new_model
from vjepa.config import Config
from vjepa.crops import random_crop, resize, to_input, views
from vjepa.data import Arrays, Labelled, Splits, as_it_is
from vjepa.jepa import JEPA, parameter_groups, set_schedule
from vjepa.probe import AttentiveProbe, new_probe
from vjepa.readout import CLIP_NORM, Recipe, probe_schedule
from vjepa.statistics import Statistics
from vjepa.videos import DamagedVideoError, VideoFiles
from vjepa.vit import VideoTransformer

CLIPS_AT_ONCE = 32
# Deviation D5: of the authors' augmentations, only the crops; no RandAugment, no erasing.
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def record(
    config: Config, splits: Splits, model: JEPA, device: torch.device, protocol: str, has_controls: bool
) -> dict[str, Any]:
    """Top-1 of an attentive probe on a finished run, and on the same encoder untrained."""
    if splits.train is None or splits.test is None:
        user_error(f"task {config.task} needs test_data, with labels, to be tested on")
    assert isinstance(splits.train, Arrays | VideoFiles)
    assert isinstance(splits.test, Arrays | VideoFiles)
    encoders = {"V-JEPA": model.target_encoder}
    if has_controls:
        encoders["untrained encoder"] = new_model(config, splits.pretrain.channels).target_encoder.to(device).eval()
    right = {}
    for name, encoder in encoders.items():
        probe = train_label_probe(encoder, splits.train, config, device, name)
        right[name] = correct(encoder, probe, splits.test, config, device, name)
    counts = np.bincount(splits.train.labels)
    majority = 100.0 * (splits.test.labels == counts.argmax())
    controls = {name: sample(values, protocol) for name, values in right.items() if name != "V-JEPA"}
    return {
        **sample(right["V-JEPA"], protocol),
        "metric": "top-1 accuracy",
        "unit": "%",
        "policy": f"attentive probe on the target encoder, {config.probe_segments} clips x {config.probe_views} views",
        "controls": controls | {"most frequent class": sample(majority, protocol)},
        "measurements": {},
    }


def train_label_probe(
    encoder: VideoTransformer, videos: Labelled, config: Config, device: torch.device, name: str
) -> AttentiveProbe:
    """An attentive probe on random crops of the training videos; each pass is another order and other crops."""
    heads = 16 if config.positions == "rotary" and encoder.size.width % 16 == 0 else encoder.size.heads
    recipe = Recipe(
        config.probe_epochs, min(config.probe_batch_size, len(videos)), config.probe_lr, config.probe_weight_decay,
        config.probe_depth, heads, device,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "attentive probe"))
    classes = int(videos.labels.max()) + 1
    width, is_first = encoder.size.width, config.positions == "sincos"
    probe = new_probe(width, heads, classes, recipe.depth, is_first, generator).to(device)
    per_epoch = len(videos) // recipe.batch_size
    schedule = probe_schedule(recipe, recipe.epochs * per_epoch)
    optimizer = torch.optim.AdamW(parameter_groups([probe]))
    parts = _Parts(videos, config, recipe.batch_size)
    faults, total = Faults(len(videos), "videos"), recipe.epochs * per_epoch
    with progress_bar(total, f"probe {name}", unit="update") as bar:
        for k, (clips, labels, names) in enumerate(_stream(parts, config, range(total * parts.count))):
            update, part = divmod(k, parts.count)
            faults.note(names)
            if part == 0:
                set_schedule(optimizer, schedule.lr_at(update), schedule.weight_decay_at(update))
                optimizer.zero_grad(set_to_none=True)
            if len(labels):
                tokens = _tokens(encoder, clips, videos.statistics, config, device)
                loss = F.cross_entropy(probe(tokens), torch.from_numpy(labels).to(device), reduction="sum")
                (loss / recipe.batch_size).backward()
            if part + 1 == parts.count:
                torch.nn.utils.clip_grad_norm_(probe.parameters(), CLIP_NORM)
                optimizer.step()
                bar.update()
    return probe.eval()


@torch.no_grad()
def correct(
    encoder: VideoTransformer, probe: AttentiveProbe, videos: Labelled, config: Config, device: torch.device, name: str
) -> np.ndarray:
    """100 where the most likely class is the label, else 0, of the videos that can be read.

    Probabilities are averaged over the views.
    """
    right: list[float] = []
    faults = Faults(len(videos), "videos")
    with progress_bar(len(videos), f"test {name}", unit="video") as bar:
        for clips, labels, names in _stream(_Views(videos, config), config, range(len(videos))):
            faults.note(names)
            bar.update()
            if len(labels):  # [views, s, F, H, W, C]: a view is a row of its own
                tokens = _tokens(encoder, clips, videos.statistics, config, device)
                chances = probe(tokens).softmax(1).mean(0)
                right.append(100.0 * (int(chances.argmax()) == int(labels[0])))
    return np.array(right)


@torch.no_grad()
def _tokens(
    encoder: VideoTransformer, clips: np.ndarray, statistics: Statistics, config: Config, device: torch.device
) -> Tensor:
    """clips [b, s, F, H, W, C] uint8 -> the tokens of all clips of a video, one after the other: [b, s*N, D]."""
    flat = torch.from_numpy(clips).flatten(0, 1)
    has_bfloat16 = device.type == "cuda" and compute_dtype(config.precision, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16):
        parts = [encoder(to_input(part, statistics, device)).float() for part in flat.split(CLIPS_AT_ONCE)]
    return torch.cat(parts).unflatten(0, clips.shape[:2]).flatten(1, 2)


class _Parts(Dataset[Any]):
    """Parts of updates, so large that their clips go through the encoder at once."""

    def __init__(self, videos: Labelled, config: Config, batch_size: int) -> None:
        self.videos, self.config, self.batch_size = videos, config, batch_size
        self.size = max(1, CLIPS_AT_ONCE // config.probe_segments)
        self.count = -(-batch_size // self.size)

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        config, (update, part) = self.config, divmod(k, self.count)
        epoch, within = divmod(update, len(self.videos) // self.batch_size)
        order = np.random.default_rng(derive_seed(config.seed, "probe epoch", epoch)).permutation(len(self.videos))
        rows = order[within * self.batch_size :][: self.batch_size][part * self.size : (part + 1) * self.size]
        rng = np.random.default_rng(derive_seed(config.seed, "probe crops", k))
        clips, labels, faults = [], [], []
        for row in rows:
            try:
                video = self.videos.clips(int(row), config.probe_segments, rng)
            except DamagedVideoError as error:
                faults.append(str(error))
                continue
            clips.append(np.stack([self._cropped(clip, rng) for clip in video]))
            labels.append(self.videos.labels[row])
        return np.stack(clips) if clips else np.zeros(0, np.uint8), np.array(labels, np.int64), faults

    def _cropped(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.config.augment:
            top, left, h, w = random_crop(clip.shape[1], clip.shape[2], CROP_SCALE, CROP_RATIO, rng)
            clip = clip[:, top : top + h, left : left + w]
        return resize(clip, self.config.size[0], self.config.size[1])


class _Views(Dataset[Any]):
    """All clips and views of a test video: [views, s, F, H, W, C]."""

    def __init__(self, videos: Labelled, config: Config) -> None:
        self.videos, self.config = videos, config

    def __getitem__(self, k: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        try:
            clips = self.videos.clips(k, self.config.probe_segments)
        except DamagedVideoError as error:
            return np.zeros(0, np.uint8), np.zeros(0, np.int64), [str(error)]
        seen = [views(clip, self.config, self.config.probe_views) for clip in clips]
        return np.stack([np.stack(view) for view in zip(*seen, strict=True)]), self.videos.labels[k : k + 1], []


def _stream(items: Dataset[Any], config: Config, numbers: range) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    return iter(
        DataLoader(
            items,
            batch_size=None,
            sampler=numbers,
            num_workers=config.workers,
            collate_fn=as_it_is,
            worker_init_fn=begin_worker,
            generator=torch.Generator().manual_seed(0),
        )
    )

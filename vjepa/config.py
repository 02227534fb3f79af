"""All settings of V-JEPA and V-JEPA 2. Defaults are V-JEPA's ViT-L/16; TASKS holds what differs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from common.precision import PRECISIONS
from vjepa.ablations import TARGETS
from vjepa.atari import TASKS as GAMES
from vjepa.jepa import DECAYS
from vjepa.masks import STRATEGIES
from vjepa.vit import POSITIONS, SIZES


@dataclass(frozen=True)
class Config:
    """Symbols: F frames of a clip, U frames and P pixels of a tubelet, Q predictor width."""

    task: str = setting("videos", "where the clips come from")
    seed: int = setting(0, "seed of everything", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device, e.g. cpu, cuda")
    workers: int = setting(2, "processes that read and crop clips; changes no number", low=0, high=256)
    data: str = setting("", "task videos: list file, folder of videos (or of class folders), or .npz with clips")
    test_data: str = setting("", "task videos: the same, with the labels that probes are tested on")
    init_from: str = setting("", "an official checkpoint, to go on from; with updates=0: in place of the training")

    # Clips (V-JEPA, appendix C; V-JEPA 2, table 9)
    frames: int = setting(16, "F, frames of a clip", low=1)
    frame_step: int = setting(4, "frames of the video from one to the next frame of a clip", low=1)
    fps: int | None = setting(None, "frames of a clip a second, in place of frame_step (V-JEPA 2: 4)", low=1)
    size: tuple[int, ...] = setting((224, 224), "height and width of what the encoder sees, in pixels", low=4)
    augment: bool = setting(True, "random resized crops; otherwise whole frames")
    crop_scale: tuple[float, ...] = setting((0.3, 1.0), "share of a frame that a crop shows", low=0.01, high=1)
    crop_ratio: tuple[float, ...] = setting((0.75, 1.35), "width / height of a crop", low=0.1, high=10)
    flip: bool = setting(True, "mirror half of the clips")

    # Networks (V-JEPA, section 3.4; V-JEPA 2, table 12)
    encoder: str = setting("large", "size of the vision transformer", choices=tuple(SIZES))
    tubelet: int = setting(2, "U, frames of a tubelet", low=1)
    patch: int = setting(16, "P, side of a tubelet in pixels", low=2)
    positions: str = setting("sincos", "sincos: tables, V-JEPA; rotary: V-JEPA 2", choices=POSITIONS)
    predictor_width: int = setting(384, "Q, width of the predictor", low=12)
    predictor_depth: int = setting(12, "blocks of the predictor", low=1)
    predictor_heads: int | None = setting(None, "heads of the predictor (none: the encoder's; V-JEPA 2: 12)", low=1)
    mask_tokens: int = setting(2, "learned tokens for what is hidden (V-JEPA 2: 10, of which it trains one)", low=1)

    # Masks (V-JEPA, section 3.2; short-range and long-range)
    masking: str = setting("multi-block", "how context and targets are chosen", choices=STRATEGIES)
    mask_blocks: tuple[int, ...] = setting((8, 2), "blocks of each kind of masks", low=1)
    mask_scale: tuple[float, ...] = setting((0.15, 0.7), "share of a frame in a block, of each kind", low=0.01, high=1)
    mask_time: tuple[float, ...] = setting((1.0, 1.0), "share of the clip in a block, of each kind", low=0.01, high=1)
    mask_ratio: tuple[float, ...] = setting((0.75, 1.5), "height / width of a block, lowest and highest", low=0.1)
    max_temporal_keep: float = setting(1.0, "share of the clip, from its start, the context lies in", low=0.01, high=1)
    tube_ratio: float = setting(0.9, "random-tube: share of the places that is hidden", low=0.01, high=0.99)
    # The choice other than ema is an ablation: pixels are table 1.
    target: str = setting("ema", "ema: moving average of the encoder; pixels: of the hidden tubelets", choices=TARGETS)

    # Training (V-JEPA, appendix C; V-JEPA 2, table 9)
    # Deviation D2: where the released configs differ from the text, they win.
    updates: int = setting(90_000, "updates; 0: untrained, a control", low=0)
    batch_size: int = setting(3072, "clips per update, over all processes", low=1)
    micro_batch_size: int = setting(24, "clips whose masks share one length: the share of a GPU in the paper", low=1)
    lr: float = setting(6.25e-4, "learning rate after the warm-up", low=0)
    lr_start: float = setting(2e-4, "at the beginning of the warm-up", low=0)
    lr_end: float = setting(1e-6, "at the end of the layout", low=0)
    warmup_share: float = setting(40 / 300, "share of the updates that are warm-up", low=0, high=1)
    decay: str = setting("cosine", "how the learning rate falls after the warm-up", choices=DECAYS)
    weight_decay: float = setting(0.04, "weight decay at the beginning", low=0)
    weight_decay_end: float = setting(0.4, "weight decay at the end", low=0)
    momentum: float = setting(0.998, "of the target encoder, at the beginning", low=0, high=1)
    momentum_end: float = setting(1.0, "of the target encoder, at the end", low=0, high=1)
    stretch: float = setting(1.25, "lay the schedules out for so many times the updates, and cut them", low=1)
    clip: float | None = setting(10.0, "largest norm of a gradient after the warm-up (none: V-JEPA 2)", low=0)
    precision: str = setting(
        "auto", "of the products in pretraining; auto: bfloat16, the paper's, where the device has it",
        choices=PRECISIONS,
    )  # fmt: skip

    # What is generated
    clips: int = setting(20_000, "generated tasks: clips for training", low=16)
    probe_clips: int = setting(
        4000, "generated tasks: clips that probes learn from; a quarter as many test them", low=40
    )
    pairs: int = setting(300, "task physics: pairs of videos of each block", low=2)

    # Probes (V-JEPA, appendix D)
    probe_epochs: int = setting(20, "training of an attentive probe", low=1)
    probe_batch_size: int = setting(256, "clips per update of an attentive probe", low=1)
    probe_lr: float = setting(1e-3, "learning rate of an attentive probe, which falls to 0", low=0)
    probe_weight_decay: float = setting(0.01, "weight decay of an attentive probe at the beginning", low=0)
    probe_segments: int = setting(8, "task videos: clips of a video that a probe sees (K400: 8, SSv2: 2)", low=1)
    probe_views: int = setting(3, "task videos: crops of a frame that a test averages over", low=1)
    probe_depth: int = setting(1, "blocks of an attentive probe (V-JEPA 2: 4)", low=1)

    # Housekeeping
    checkpoint_seconds: float = setting(1800.0, "seconds between checkpoints", low=0)

    def __post_init__(self) -> None:
        for name in ("size", "crop_scale", "crop_ratio", "mask_ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} takes two numbers, not {len(getattr(self, name))}")
        for name in ("crop_scale", "crop_ratio", "mask_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} must not exceed {high}")
        if not 0 < len(self.mask_blocks) == len(self.mask_scale) == len(self.mask_time):
            raise ValueError("mask_blocks, mask_scale and mask_time have a number for each kind of masks")
        if self.positions == "sincos" and self.masking == "multi-block" and self.mask_tokens < len(self.mask_blocks):
            raise ValueError(f"{len(self.mask_blocks)} kinds of masks need as many mask_tokens, not {self.mask_tokens}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update, over all processes."""
        return self.batch_size // self.micro_batch_size


# V-JEPA 2, table 9: constant after the warm-up, then a cool-down with more frames, and of a higher resolution.
_SECOND: Mapping[str, Any] = {
    "fps": 4,
    "size": (256, 256),
    "positions": "rotary",
    "predictor_heads": 12,
    "mask_tokens": 10,
    "encoder": "giant",
    "updates": 240_000,
    "lr": 5.25e-4,
    "lr_start": 1e-4,
    "lr_end": 5.25e-4,
    "warmup_share": 12_000 / 240_000,
    "weight_decay_end": 0.04,
    "momentum": 0.99925,
    "momentum_end": 0.99925,
    "clip": None,
    "probe_depth": 4,
}
_COOLDOWN: Mapping[str, Any] = {
    **_SECOND,
    "frames": 64,
    "size": (384, 384),
    "updates": 12_000,
    "warmup_share": 0.0,
    "lr_start": 5.25e-4,
    "lr_end": 1e-6,
    "decay": "linear",
    "micro_batch_size": 6,
}

# Generated frames: objects stand at a pixel, so nothing is cropped or mirrored.
_GENERATED: Mapping[str, Any] = {
    "size": (64, 64),
    "augment": False,
    "flip": False,
    "patch": 8,
    "encoder": "nano",
    "predictor_width": 64,
    "predictor_depth": 4,
    "updates": 10_000,
    "batch_size": 32,
    "micro_batch_size": 32,
    "momentum": 0.99,
    "probe_lr": 1e-3,
    "probe_batch_size": 64,
    "checkpoint_seconds": 60.0,
}
TASKS: dict[str, Mapping[str, Any]] = {
    "videos": {},
    "videos-2": _SECOND,
    "videos-2-cooldown": _COOLDOWN,
    "shapes": _GENERATED,
    "digits": {**_GENERATED, "frames": 20},
    "physics": _GENERATED,
    **dict.fromkeys(GAMES, _GENERATED),
}

# So narrow a network is faster in float32. Rotary positions: the entries of a table are larger than what the first
# weights make of pixels. No run has tested that choice alone.
_NARROW: Mapping[str, Any] = {
    "positions": "rotary",
    "predictor_heads": 4,
    "lr": 1e-3,
    "encoder": "pico",
    "predictor_width": 48,
    "predictor_depth": 2,
    "precision": "float32",
    "probe_epochs": 30,
}
# Shapes of one to two patches.
_SMALL: Mapping[str, Any] = {"frames": 8, "size": (24, 24), "patch": 4}

PRESETS = {
    "paper": Preset("ViT-L/16, 90,000 updates on VideoMix2M: 80.8 % of K400, 69.5 % of SSv2 with an attentive probe"),
    "gpu": Preset(
        "bouncing shapes, digits and physics on five times the clips of night: probes beat the same encoder untrained",
        {"task": "physics", "device": "cuda", "workers": 16, "encoder": "small", "updates": 20_000, "clips": 100_000,
         "batch_size": 128, "micro_batch_size": 128, "predictor_width": 192, "predictor_depth": 6,
         "positions": "rotary", "predictor_heads": 6, "pairs": 1000},
    ),
    "night": Preset(
        "physics: surprise at impossible events, beside an untrained and a pixel predictor; digits and shapes: probes "
        "beside the same encoder untrained",
        {"task": "physics", **_NARROW, "updates": 6000},
        # Well below physics, whose one seed has the night: there are three seeds, and an ablation.
        {
            "physics": {"pairs": 200},
            "shapes": {**_SMALL, "updates": 5000, "probe_clips": 4000},
            "digits": {"frames": 10, "updates": 2500, "probe_clips": 2000},
            **dict.fromkeys(GAMES, {"frames": 8, "updates": 2500, "probe_clips": 2000}),
        },
    ),
    "cpu": Preset(
        "bouncing shapes: position and velocity read from frozen features better than before the training",
        {"task": "shapes", **_NARROW, **_SMALL, "updates": 1500, "clips": 8000, "probe_clips": 2000},
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        {"encoder": "pico", "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2, "frames": 8,
         "size": (32, 32), "patch": 8, "updates": 24, "batch_size": 8, "micro_batch_size": 4, "workers": 1,
         "clips": 64, "probe_clips": 64, "probe_epochs": 2, "probe_batch_size": 16, "pairs": 6, "precision": "float32",
         "checkpoint_seconds": 0.0},
        {"digits": {"patch": 4}},  # so that a token is a cell of the map of places
    ),
}  # fmt: skip

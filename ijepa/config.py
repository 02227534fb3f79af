"""All settings of I-JEPA. Defaults are the paper's ViT-H/14 on ImageNet-1K; TASKS holds what differs elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from common.precision import PRECISIONS
from ijepa import games
from ijepa.ablations import TARGETS
from ijepa.masks import STRATEGIES
from ijepa.vit import SIZES


@dataclass(frozen=True)
class Config:
    """Symbols: M target blocks, E context blocks, P patch side, Q predictor width."""

    task: str = setting("imagenet", "where the images come from")
    seed: int = setting(0, "seed of everything", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device, e.g. cpu, cuda")
    workers: int = setting(2, "processes that read and crop images; changes no number", low=0, high=256)
    data: str = setting(
        "",
        "task imagenet: a folder of images, for probes with train/ and val/ class folders, or .npz with images and "
        "labels; task fashion: the folder of its four files (none: Debian's)",
    )
    init_from: str = setting("", "an official checkpoint, in place of the training; with updates: to go on from")

    # Images (appendix A.1)
    size: tuple[int, ...] = setting((224, 224), "height and width of what the encoder sees, in pixels", low=8)
    augment: bool = setting(True, "random resized crops; otherwise whole images")
    crop_scale: tuple[float, ...] = setting((0.3, 1.0), "share of an image that a crop shows", low=0.01, high=1)
    centre_share: float = setting(
        224 / 256, "with crops: share of the shorter side that probes see, in the middle", low=0.1, high=1
    )
    flip: bool = setting(False, "mirror half of the crops")
    pixel_mean: tuple[float, ...] | None = setting(
        None, "of each channel, in [0, 1] (none: ImageNet's; tasks digits and fashion: their own)", low=0, high=1
    )
    pixel_std: tuple[float, ...] | None = setting(None, "of each channel (none: as pixel_mean)", low=1e-6, high=1)
    input_scale: float = setting(1.0, "images are multiplied by this once they are normalised", low=1e-3, high=1e3)

    # Networks (appendix A.1)
    encoder: str = setting("huge", "size of the vision transformer", choices=tuple(SIZES))
    patch: int = setting(14, "P, side of a patch in pixels", low=2)
    predictor_width: int = setting(384, "Q, width of the predictor", low=4)
    predictor_depth: int = setting(12, "blocks of the predictor (the paper: 6 for base, 12, 16 for giant)", low=1)

    # Masks (appendix A.1, tables 6 to 10)
    masking: str = setting("multi-block", "how context and targets are chosen", choices=STRATEGIES)
    targets: int = setting(4, "M, target blocks of an image", low=1)
    contexts: int = setting(1, "E, context blocks of an image", low=1)
    target_scale: tuple[float, ...] = setting((0.15, 0.2), "share of the patches in a target block", low=0.01, high=1)
    target_ratio: tuple[float, ...] = setting((0.75, 1.5), "height / width of a target block", low=0.1, high=10)
    context_scale: tuple[float, ...] = setting((0.85, 1.0), "share of the patches in a context block", low=0.01, high=1)
    min_keep: int = setting(10, "a mask must have more patches than this", low=0)
    allow_overlap: bool = setting(False, "let the context see the targets")
    # The choices other than ema are ablations: pixels are table 7, the encoder itself is ours.
    target: str = setting(
        "ema", "ema: moving average; online: encoder itself; attached: that with gradient; pixels", choices=TARGETS
    )

    # Training (appendix A.1; where the released configs differ from the text, they win)
    # Deviation D2: released configs and code instead of the text.
    epochs: int = setting(300, "passes over all images", low=1)
    updates: int | None = setting(None, "so many updates instead of whole epochs; 0: untrained, a control", low=0)
    batch_size: int = setting(2048, "images per update, over all processes", low=1)
    micro_batch_size: int = setting(128, "images whose masks share one length: the share of a GPU in the paper", low=1)
    lr: float = setting(1e-3, "learning rate after the warm-up", low=0)
    lr_start: float | None = setting(None, "at the beginning of the warm-up (none: the paper's share, lr / 5)", low=0)
    lr_end: float | None = setting(None, "at the end (none: the paper's share, lr / 1000)", low=0)
    warmup_share: float = setting(40 / 300, "share of the updates that are warm-up", low=0, high=1)
    weight_decay: float = setting(0.04, "weight decay at the beginning", low=0)
    weight_decay_end: float = setting(0.4, "weight decay at the end", low=0)
    momentum: float = setting(0.996, "of the target encoder, at the beginning", low=0, high=1)
    momentum_end: float = setting(1.0, "of the target encoder, at the end", low=0, high=1)
    stretch: float = setting(1.0, "lay the schedules out for so many times the updates, and cut them", low=1)
    precision: str = setting(
        "auto",
        "of the products in pretraining; auto: bfloat16, the paper's, where the device has it",
        choices=PRECISIONS,
    )

    # What is generated
    images: int = setting(
        30_000,
        "task shapes: images drawn for training, half as many for the probes; tasks digits and fashion: the most that "
        "are taken for training, a quarter as many to test",
        low=100,
    )
    env_steps: int = setting(100_000, "games: agent steps of random play for the encoder, by eight players", low=64)
    probe_env_steps: int = setting(50_000, "games: agent steps of random play for the probes, by eight players", low=64)

    # Probes (appendix A.2; AtariARI)
    probe_epochs: int = setting(100, "longest training of a probe on a game's memory", low=1)
    linear_optimizer: str = setting("lars", "of a linear probe on labels", choices=("lars", "sgd"))
    linear_epochs: int = setting(50, "training of a linear probe on labels", low=1)
    linear_batch_size: int = setting(16_384, "images per update of a linear probe on labels", low=1)
    supervised_updates: int = setting(
        0, "tasks digits and fashion: updates of the same encoder on labels, the ceiling (0: none)", low=0
    )

    # Housekeeping
    # A checkpoint of ViT-H is 10 GB: at one a minute, writing would take as long as training.
    checkpoint_seconds: float = setting(1800.0, "seconds between checkpoints", low=0)

    def __post_init__(self) -> None:
        for name in ("size", "crop_scale", "target_scale", "target_ratio", "context_scale"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name} takes two numbers, not {len(getattr(self, name))}")
        for name in ("crop_scale", "target_scale", "target_ratio", "context_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} must not exceed {high}")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}")
        if (self.pixel_mean is None) != (self.pixel_std is None) or len(self.pixel_mean or ()) != len(
            self.pixel_std or ()
        ):
            raise ValueError("pixel_mean and pixel_std go together, one number for each channel")

    @property
    def is_trained(self) -> bool:
        """Whether there are updates at all: none on an official checkpoint, unless a number of them is asked for."""
        return not self.init_from if self.updates is None else self.updates > 0

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update, over all processes."""
        return self.batch_size // self.micro_batch_size


def _at_batch(batch: int) -> dict[str, Any]:
    """A smaller batch and the paper's learning rate times the square root of its share.

    At the paper's rate, the features of a game collapse to a few directions within some hundred small batches.
    """
    return {"batch_size": batch, "micro_batch_size": batch, "lr": float(f"{(batch / 2048) ** 0.5 * 1e-3:.3g}")}


# What a small network writes in a moment.
_OFTEN: Mapping[str, Any] = {"checkpoint_seconds": 60.0}

# Frames are 210 x 160 grey, padded to 224 x 160: 14 x 10 patches. Objects stand at a pixel, so nothing is cropped.
_GAME: Mapping[str, Any] = {
    "size": (224, 160),
    "augment": False,
    "patch": 16,
    "encoder": "tiny",
    "predictor_width": 192,
    "predictor_depth": 6,
    "epochs": 20,
    **_at_batch(64),
    **_OFTEN,
}
_SHAPES: Mapping[str, Any] = {
    "size": (64, 64),
    "augment": False,
    "patch": 8,
    "encoder": "tiny",
    "predictor_width": 96,
    "predictor_depth": 3,
    "min_keep": 4,
    "epochs": 10,
    **_at_batch(128),
    "linear_optimizer": "sgd",
    "linear_batch_size": 256,
    **_OFTEN,
}
# 28 x 28 grey pixels at patch 2: the paper's grid of 14 x 14 patches, so that its masks need no change.
_GREY: Mapping[str, Any] = {
    "size": (28, 28),
    "patch": 2,
    "centre_share": 1.0,
    "encoder": "tiny",
    "predictor_width": 96,
    "predictor_depth": 3,
    **_at_batch(64),
    "lr": 1e-3,
    "linear_optimizer": "sgd",
    "linear_batch_size": 256,
    **_OFTEN,
}
TASKS: dict[str, Mapping[str, Any]] = {
    "imagenet": {},
    # Deviation D13: of the four numbers of a patch, first weights of std 0.02 make a twentieth of the position table.
    # Digits leave most of an image black: a target that follows too soon forgets what cannot be predicted yet.
    "digits": {**_GREY, "input_scale": 15.0, "images": 4000, "epochs": 100},
    "fashion": {**_GREY, "input_scale": 5.0, "momentum": 0.99, "images": 60_000, "epochs": 20},
    "shapes": _SHAPES,
} | dict.fromkeys(games.GAMES, _GAME)

# So narrow a network is faster in float32.
_SMALL: Mapping[str, Any] = {
    "encoder": "nano",
    "predictor_width": 64,
    "predictor_depth": 2,
    "precision": "float32",
    **_at_batch(32),
    **_OFTEN,
}

# Rate and batch of the tasks of grey images, in place of those of games.
_GREY_SMALL: Mapping[str, Any] = {**_SMALL, **{name: _GREY[name] for name in ("batch_size", "micro_batch_size", "lr")}}
_GREY_NIGHT: Mapping[str, Any] = {**_GREY_SMALL, "predictor_width": 96, "supervised_updates": 2000}
_GREY_CPU: Mapping[str, Any] = {
    **_GREY_SMALL,
    "encoder": "pico",
    "predictor_width": 48,
    "crop_scale": (0.5, 1.0),
    "updates": 1500,
    "supervised_updates": 300,
}

# On few images, more updates on fewer of them at a time.
_DIGITS_CPU: Mapping[str, Any] = {
    **_GREY_CPU,
    "batch_size": 32,
    "micro_batch_size": 32,
    "updates": 1800,
    "supervised_updates": 200,
}
_GREY_SMOKE: Mapping[str, Any] = {"encoder": "pico", "predictor_width": 24, "updates": 12, "supervised_updates": 2}

PRESETS = {
    "paper": Preset("ViT-H/14, 300 epochs of ImageNet-1K: 79.3 % top-1 with a linear probe"),
    "gpu": Preset(
        "AtariARI at its full size, any of the 22 games: probes on I-JEPA beat those on a random network; their place "
        "beside pixel prediction, CPC, ST-DIM and supervised training",
        {"task": "pong", "device": "cuda", "workers": 16, **_at_batch(256)},
    ),
    "night": Preset(
        "AtariARI with its full play and a small encoder: probes on I-JEPA beat those on a random network; on drawn "
        "shapes, short runs that compare masks and targets",
        {"task": "pong", **_SMALL, "updates": 8_000},
        # Twenty minutes a run of drawn shapes, since an ablation is several. They bear half the paper's rate.
        {
            "digits": {"updates": 6000, **_GREY_NIGHT},
            "fashion": {"updates": 9000, **_GREY_NIGHT},
            "shapes": {
                "encoder": "pico",
                "predictor_width": 48,
                "updates": 10_000,
                "lr": 5e-4,
                "images": 12_000,
                "linear_epochs": 20,
            },
        },
    ),
    "cpu": Preset(
        "handwritten digits: whether probes on I-JEPA beat those on the same encoder untrained, and on pixels",
        {
            "task": "digits",
            **_SMALL,
            "updates": 700,
            "env_steps": 12_000,
            "probe_env_steps": 12_000,
            "probe_epochs": 60,
        },
        {"digits": _DIGITS_CPU, "fashion": _GREY_CPU},
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        {
            "encoder": "nano",
            "predictor_width": 64,
            "predictor_depth": 1,
            "updates": 24,
            "batch_size": 16,
            "micro_batch_size": 8,
            "workers": 1,
            "images": 200,
            "env_steps": 640,
            "probe_env_steps": 960,
            "probe_epochs": 2,
            "linear_epochs": 2,
            "checkpoint_seconds": 0.0,
        },
        {
            **dict.fromkeys(("digits", "fashion"), _GREY_SMOKE),
            **dict.fromkeys(games.GAMES, {"encoder": "pico", "patch": 32, "min_keep": 2}),
        },
    ),
}

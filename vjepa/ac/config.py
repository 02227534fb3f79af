"""All settings of V-JEPA 2-AC and of the planning benchmarks. Defaults are the published recipe of Two Rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from common.precision import PRECISIONS
from vjepa.ac.worlds.catalogue import WORLDS
from vjepa.vit import SIZES

MODELS = ("recipe", "vjepa2-ac")
PLANNERS = ("mppi", "cem")
OBJECTIVES = ("sum", "last")
JUDGED = ("end", "plan", "step")


@dataclass(frozen=True)
class Config:
    """A plan is made of model steps; a model step is `frame_skip` steps of the world."""

    task: str = setting("two-rooms", "the world")
    seed: int = setting(0, "seed of everything but the episodes of a test", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device, e.g. cpu, cuda")
    model: str = setting("recipe", "recipe: end to end; vjepa2-ac: a predictor on a frozen encoder", choices=MODELS)
    init_from: str = setting("", "vjepa2-ac: an official checkpoint, whose encoder is frozen in place of our own")

    # Data
    trajectories: int = setting(0, "random walks that all windows come from; 0: fresh ones for every update", low=0)
    trajectory_steps: int = setting(90, "steps of the world in a walk", low=2)
    frames: int = setting(17, "pictures of a window", low=2)
    frame_skip: int = setting(1, "steps of the world between them; their actions are one of the model", low=1)
    side: int = setting(65, "height and width of what the networks see, in pixels", low=8)

    # The recipe (EB-JEPA, Two Rooms)
    channels: tuple[int, ...] = setting((16, 32, 32), "recipe: of the encoder's stacks", low=1)
    width: int = setting(512, "recipe: numbers that stand for a picture", low=2)
    variance: float = setting(16.0, "recipe: weight of the variance term", low=0)
    covariance: float = setting(8.0, "recipe: weight of the covariance term", low=0)
    similarity: float = setting(12.0, "recipe: weight of the similarity of frames in time", low=0)
    inverse_dynamics: float = setting(1.0, "recipe: weight of the guessed actions", low=0)
    clip: float = setting(2.0, "recipe: largest norm of the gradient, of encoder and predictor each", low=0)

    # V-JEPA 2-AC
    encoder: str = setting("giant", "vjepa2-ac: size of the frozen encoder", choices=tuple(SIZES))
    patch: int = setting(16, "vjepa2-ac: side of a patch in pixels", low=2)
    encoder_updates: int = setting(0, "vjepa2-ac: of its V-JEPA 2 pretraining on the world's videos", low=0)
    encoder_lr: float = setting(5.25e-4, "vjepa2-ac: of that pretraining", low=0)
    ac_width: int = setting(1024, "vjepa2-ac: width of the predictor", low=12)
    ac_depth: int = setting(24, "vjepa2-ac: its blocks", low=1)
    ac_heads: int = setting(16, "vjepa2-ac: its heads", low=1)

    # Training
    updates: int = setting(3120, "of the world model; 0: untrained, a control", low=0)
    epochs: int = setting(12, "equal parts of them; the networks of the last ones are kept", low=1)
    batch_size: int = setting(384, "windows per update, over all processes", low=2)
    rollout_steps: int = setting(8, "predictions on predictions in the loss; 1: one step alone", low=1)
    lr: float = setting(1e-3, "learning rate after the warm-up", low=0)
    weight_decay: float = setting(1e-5, "weight decay", low=0)
    warmup_share: float = setting(0.1, "share of the updates that are warm-up", low=0, high=1)
    precision: str = setting(
        "auto",
        "of the products in training; auto: bfloat16, as published, where the device has it",
        choices=PRECISIONS,
    )

    # Planning
    planner: str = setting("mppi", "mppi or cem", choices=PLANNERS)
    samples: int = setting(200, "sequences of actions that an iteration tries", low=2)
    iterations: int = setting(20, "iterations of a plan", low=1)
    elites: int = setting(20, "best sequences that the next iteration is fitted to", low=2)
    horizon: int = setting(90, "model steps that a plan looks ahead, at most those left", low=1)
    execute: int = setting(1, "model steps done before the next plan", low=1)
    std: float = setting(2.0, "of the first samples", low=0)
    most: float | None = setting(None, "cem: largest norm of a sampled action (none: any)", low=0)
    has_mean: bool = setting(False, "cem: the first sample is the mean itself")
    objective: str = setting("sum", "distance to the goal over the whole plan, or at its end", choices=OBJECTIVES)

    # Test
    episodes: int = setting(20, "of the test, the same for every run", low=1)
    checkpoints: int = setting(3, "last epochs whose networks are tested", low=1)
    budget: int = setting(200, "steps of the world in an episode", low=1)
    judged: str = setting("end", "when the goal counts: at the end, after each plan, at every step", choices=JUDGED)

    # Housekeeping
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints", low=0)

    def __post_init__(self) -> None:
        if self.elites > self.samples:
            raise ValueError(f"elites {self.elites} are more than samples {self.samples}")
        if self.rollout_steps >= self.frames:
            raise ValueError(f"rollout_steps {self.rollout_steps} needs more than the {self.frames} frames of a window")
        if self.trajectory_steps < self.frames * self.frame_skip:
            raise ValueError(
                f"frames {self.frames} with frame_skip {self.frame_skip} need a walk of at least "
                f"{self.frames * self.frame_skip} steps, not trajectory_steps {self.trajectory_steps}"
            )
        if self.checkpoints > self.epochs:
            raise ValueError(f"checkpoints {self.checkpoints} are more than epochs {self.epochs}")
        if self.updates % self.epochs:
            raise ValueError(f"updates {self.updates} are no multiple of epochs {self.epochs}")
        if self.model == "vjepa2-ac" and self.side % self.patch:
            raise ValueError(f"side {self.side} is no multiple of patch {self.patch}")
        if self.model == "recipe" and (self.init_from or self.encoder_updates or self.task not in RECIPE_TASKS):
            raise ValueError("model recipe is for two-rooms and two-rooms-random, and has no frozen encoder")
        if self.init_from and self.encoder_updates:
            raise ValueError("init_from brings an encoder: encoder_updates must be 0")


RECIPE_TASKS = ("two-rooms", "two-rooms-random")

# V-JEPA 2-AC as published, under the protocol of a benchmark; DINO-WM's planner.
_AC: Mapping[str, Any] = {
    "model": "vjepa2-ac",
    "frames": 8,
    "frame_skip": 5,
    "side": 256,
    "updates": 94_500,
    "epochs": 1,
    "batch_size": 256,
    "rollout_steps": 2,
    "lr": 4.25e-4,
    "weight_decay": 0.04,
    "warmup_share": 4500 / 94_500,
    "planner": "cem",
    "samples": 300,
    "iterations": 10,
    "elites": 30,
    "horizon": 5,
    "execute": 5,
    "std": 1.0,
    "has_mean": True,
    "objective": "last",
    "episodes": 50,
    "checkpoints": 1,
}
TASKS: dict[str, Mapping[str, Any]] = {
    "two-rooms": {},
    "two-rooms-random": {},
    # Deviation D8: DINO-WM plans until the goal is reached, without end; here for 1,000 steps.
    "wall": {**_AC, "trajectories": 1920, "trajectory_steps": 50, "budget": 1000, "judged": "plan"},
    "tworoom-swm": {
        **_AC,
        "trajectories": 10_000,
        "trajectory_steps": 92,
        "iterations": 30,
        "budget": 50,
        "judged": "step",
    },
    "pointmaze": {**_AC, "trajectories": 2000, "trajectory_steps": 100, "budget": 1000, "judged": "plan"},
}
assert TASKS.keys() == WORLDS.keys()

_SMALL_AC: Mapping[str, Any] = {
    "side": 64,
    "patch": 8,
    "encoder": "nano",
    "ac_width": 128,
    "ac_depth": 4,
    "ac_heads": 4,
    "encoder_lr": 5e-4,
    "lr": 5e-4,
    "precision": "float32",
}
_NIGHT_AC: Mapping[str, Any] = {
    **_SMALL_AC,
    "patch": 16,
    "encoder_updates": 6000,
    "updates": 3000,
    "batch_size": 16,
    "episodes": 20,
    "budget": 200,
}
_SMOKE_AC: Mapping[str, Any] = {
    **_SMALL_AC,
    "patch": 16,
    "encoder": "pico",
    "ac_width": 48,
    "ac_depth": 1,
    "ac_heads": 3,
    "trajectories": 8,
    "frames": 4,
    "trajectory_steps": 24,
    "encoder_updates": 6,
    "batch_size": 4,
    "horizon": 2,
    "execute": 2,
    "rollout_steps": 2,
    "elites": 2,
    "budget": 20,
}
_AC_TASKS = ("wall", "tworoom-swm", "pointmaze")

_GPU_AC: Mapping[str, Any] = {
    **_NIGHT_AC,
    "patch": 8,
    "encoder": "tiny",
    "ac_width": 192,
    "ac_depth": 6,
    "ac_heads": 6,
    "batch_size": 64,
    "episodes": 50,
    "precision": "auto",
}
_CPU_AC: Mapping[str, Any] = {
    **_SMALL_AC,
    "frames": 6,
    "rollout_steps": 2,
    "encoder_updates": 200,
    "updates": 200,
    "batch_size": 8,
    "horizon": 5,
    "episodes": 10,
    "budget": 50,
}

# A ninetieth of the model steps of the published planner.
_REDUCED_PLANNER: Mapping[str, Any] = {
    "samples": 100,
    "iterations": 5,
    "elites": 10,
    "horizon": 40,
    "execute": 5,
    "episodes": 40,
    "checkpoints": 1,
}

PRESETS = {
    "paper": Preset("Two Rooms: 98 % with a fixed wall, 97 +- 2 % with random ones; the other worlds: a frozen ViT-g"),
    "gpu": Preset(
        "Two Rooms at its full size: 98 %, and 1 +- 1 % without inverse dynamics",
        {"device": "cuda"},
        dict.fromkeys(_AC_TASKS, _GPU_AC),
    ),
    "night": Preset(
        "wall: an encoder pretrained here, and plans that reach goals more often than a random policy",
        {"precision": "float32"},
        {
            **dict.fromkeys(_AC_TASKS, _NIGHT_AC),
            **dict.fromkeys(RECIPE_TASKS, {"batch_size": 48, "updates": 1200, **_REDUCED_PLANNER}),
        },
    ),
    "cpu": Preset(
        "plans reach goals more often than a random policy, and than those of an untrained model",
        {
            "side": 33,
            "channels": (8, 16, 16),
            "width": 128,
            "frames": 9,
            "batch_size": 48,
            "updates": 900,
            "epochs": 1,
            "precision": "float32",
            **_REDUCED_PLANNER,
        },
        dict.fromkeys(_AC_TASKS, _CPU_AC),
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        {
            "side": 17,
            "channels": (4, 4),
            "width": 16,
            "frames": 5,
            "rollout_steps": 3,
            "trajectory_steps": 20,
            "batch_size": 8,
            "updates": 24,
            "epochs": 3,
            "precision": "float32",
            "samples": 8,
            "iterations": 2,
            "elites": 4,
            "horizon": 6,
            "execute": 3,
            "episodes": 3,
            "checkpoints": 2,
            "budget": 12,
            "checkpoint_seconds": 0.0,
        },
        dict.fromkeys(_AC_TASKS, _SMOKE_AC),
    ),
}

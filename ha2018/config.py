"""All settings of World Models. Defaults are the paper's for Doom; TASKS holds what differs for CarRacing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from common.precision import PRECISIONS
from ha2018.controller import Controller

CAPS = {"doom": 2100, "car": 1000}  # steps of an episode at most, in the games as published


@dataclass(frozen=True)
class Config:
    """Symbols: V vision, M memory, C controller, Z latent size, H hidden size, K mixtures, tau temperature."""

    task: str = setting("doom", "the game")
    seed: int = setting(0, "seed of everything", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device of V, M and the dream, e.g. cpu, cuda")
    workers: int = setting(2, "processes that the real games run in; changes no number", low=1, high=256)

    # Random play (appendix A.1)
    longest_hold: int = setting(10, "longest hold of a random action, in tics", low=1, high=2100)
    # Deviation D15: the night preset of Doom varies it.
    vary_hold: bool = setting(False, "give each episode a longest hold of its own, log-uniform up to longest_hold")
    episodes: int = setting(10_000, "episodes V and M are trained on", low=1)
    # Deviation D8: the paper holds nothing out.
    holdout_episodes: int = setting(100, "further episodes, for the held-out losses of V and M alone", low=1)
    min_frames: int = setting(100, "an episode must have more frames than this to be kept", low=1)
    png_level: int = setting(1, "compression of stored frames; 0: less time, 2.5 times the disk", low=0, high=9)

    # V (appendix A.1)
    z_size: int = setting(64, "Z, latent size", low=1)
    # Deviation D3: epochs of V and M as in the text; the official code has 10 and 400.
    vision_epochs: int = setting(1, "passes over all frames", low=1)
    vision_updates: int | None = setting(None, "stop V after so many updates (none: whole epochs)", low=1)
    vision_batch: int = setting(100, "frames per update of V", low=1)
    vision_lr: float = setting(1e-4, "learning rate of Adam for V", low=0)
    kl_tolerance: float = setting(0.5, "floor of the KL term, nats per latent dimension", low=0)

    # M (appendix A.2)
    hidden_size: int = setting(512, "H, LSTM units", low=1)
    mixtures: int = setting(5, "K, Gaussians per latent dimension", low=1)
    memory_epochs: int = setting(20, "passes over all episodes", low=1)
    memory_updates: int | None = setting(None, "stop M after so many updates (none: whole epochs; 0: untrained)", low=0)
    memory_batch: int = setting(100, "streams side by side per update of M", low=1)
    memory_length: int = setting(500, "frames per update and stream; the last is only a target", low=2)
    memory_lr: float = setting(1e-3, "learning rate of Adam for M at the start", low=0)
    memory_lr_end: float = setting(1e-5, "learning rate that the decay tends to", low=0)
    memory_lr_decay: float = setting(0.99999, "factor per update on the distance to memory_lr_end", low=0, high=1)
    gradient_clip: float = setting(1.0, "every gradient element of M is cut to [-clip, clip]", low=0)
    # Deviation D17: larger in the night and cpu presets of Doom, which moves the risk of death that ends a dream.
    restart_weight: float = setting(10.0, "weight of the restart loss where a restart follows", low=0)

    # The dream (section 4)
    # Deviation D4: 1.15 as in the text and the published log; the official code has 1.25.
    temperature: float = setting(1.15, "tau, temperature of the dream", low=1e-3)
    first_frames: int = setting(1000, "encoded first frames that dreams begin in", low=1)
    max_steps: int = setting(2100, "longest episode in tics, dream and game", low=1)

    # C (appendix A.3, A.4)
    controller_inputs: str = setting("zch", "what C sees: zch for doom; zh or z for car", choices=("zch", "zh", "z"))
    controller_hidden: int = setting(0, "units of a hidden tanh layer of C, for car (0: none)", low=0)
    population: int = setting(64, "N, members of a generation; even, halves share their seeds", low=4)
    rollouts: int = setting(16, "R, episodes per member, in the dream (doom) or the game (car)", low=1)
    games: int = setting(64, "games stepped as one batch while C evolves in them (car)", low=1, high=4096)
    sigma0: float = setting(0.1, "initial standard deviation of CMA-ES", low=1e-6)
    generations: int = setting(1800, "generations of CMA-ES", low=1)
    trial_every: int = setting(25, "generations between trials of the CMA mean", low=1)
    trial_seeds: int = setting(64, "fixed seeds of such a trial, `rollouts` episodes each", low=1)

    # Test (table 2)
    test_episodes: int = setting(100, "fresh episodes of the real game", low=1)
    test_games: int = setting(16, "games stepped as one batch in the test; changes no number beyond rounding", low=1)

    # Housekeeping
    # Deviation D14: gpu, night and smoke choose auto.
    precision: str = setting(
        "float32",
        "of the products of V, of M in training and of dreams; auto: bfloat16 where the device has it",
        choices=PRECISIONS,
    )
    checkpoint_seconds: float = setting(30.0, "seconds between checkpoints inside a stage", low=0)

    def __post_init__(self) -> None:
        if self.population % 2:
            raise ValueError(f"population must be even, not {self.population}")
        if self.min_frames >= self.collected_steps:
            raise ValueError(f"min_frames {self.min_frames}: no episode has more than {self.collected_steps} frames")
        if self.task == "car" and self.memory_batch * self.memory_length > self.episodes * self.max_steps:
            raise ValueError(
                f"memory_batch {self.memory_batch} x memory_length {self.memory_length} frames are more than "
                f"{self.episodes} episodes of {self.max_steps} have"
            )
        if (self.task == "doom") != (self.controller_inputs == "zch"):
            raise ValueError(f"controller_inputs {self.controller_inputs} is not for task {self.task}")
        if self.task == "doom" and self.controller_hidden:
            raise ValueError("controller_hidden is for task car alone")
        if self.memory_lr_end > self.memory_lr:
            raise ValueError(f"memory_lr_end ({self.memory_lr_end}) must not exceed memory_lr ({self.memory_lr})")

    @property
    def collected_steps(self) -> int:
        """Steps after which an episode of the collection ends: Doom's are whole, CarRacing's all of one length."""
        return CAPS["doom"] if self.task == "doom" else self.max_steps

    @property
    def controller_params(self) -> int:
        """P, parameters of C."""
        return Controller(self.controller_inputs, self.controller_hidden).params(self.z_size, self.hidden_size)


TASKS: dict[str, Mapping[str, Any]] = {
    "doom": {},
    "car": {
        "min_frames": 1,
        "z_size": 32,
        "hidden_size": 256,
        "memory_length": 1000,
        "memory_lr_decay": 1.0,
        "temperature": 0.7,
        "max_steps": 1000,
        "controller_inputs": "zh",
    },
}

PRESETS = {
    "paper": Preset("the paper's sizes and budget: 1092 +- 556 in the real game at tau = 1.15"),
    "gpu": Preset(
        "doom: the paper's data and sizes at 300 of 1,800 generations, the level and order of the temperature table; "
        "car: the paper's sizes on a twentieth of its data, the published learning curve at equal environment steps",
        {"device": "cuda", "workers": 16, "generations": 300, "precision": "auto"},
        {
            "car": {
                "episodes": 500,
                "memory_epochs": 200,
                "first_frames": 500,
                "rollouts": 4,
                "games": 256,
                "generations": 60,
                "trial_every": 20,
                "trial_seeds": 16,
                "test_games": 100,
            }
        },
    ),
    # Deviation D18, for cpu too: sizes, V's share of an epoch, and the trials of C are those of a small budget.
    "night": Preset(
        "doom: a controller trained only in the dream survives longer in the real game than held random play, at five "
        "temperatures; car: the learning curves of z, z and h, and z and untrained h beside the published one",
        {
            # M must know what happens to a player who dithers, who stands still, and who stays at a wall: where it
            # does not, C thrives in the dream alone. So must V see fireballs while they are small: without them the
            # dream cannot tell what a move is good for.
            "longest_hold": 2100,
            "vary_hold": True,
            "episodes": 4000,
            "holdout_episodes": 32,
            "z_size": 32,
            "vision_epochs": 10,
            "vision_updates": 12_000,
            "vision_batch": 32,
            "vision_lr": 5e-4,
            "kl_tolerance": 2.0,
            "hidden_size": 256,
            "memory_epochs": 1000,
            "memory_updates": 3000,
            "memory_batch": 32,
            "memory_length": 256,
            "memory_lr": 5e-3,
            "memory_lr_end": 1e-4,
            "memory_lr_decay": 0.9985,
            "restart_weight": 20.0,
            "rollouts": 8,
            "precision": "auto",
            "generations": 40,
            "trial_every": 5,
            "trial_seeds": 32,
        },
        {
            "car": {
                "episodes": 200,
                "holdout_episodes": 8,
                "vision_updates": 6000,
                "kl_tolerance": 0.5,
                "hidden_size": 256,
                "memory_updates": 800,
                "memory_batch": 32,
                "memory_length": 250,
                "memory_lr_decay": 0.997,
                "first_frames": 200,
                "population": 32,
                "rollouts": 1,
                "games": 32,
                "generations": 50,
                "trial_every": 10,
                "trial_seeds": 16,
                "test_games": 50,
            }
        },
    ),
    "cpu": Preset(
        "doom: a controller trained only in the dream survives longer in the real game than uniform random play; "
        "car: evolution in the real environment improves on random play",
        {
            # Few episodes must show M more of the game than the paper's many: long holds lead to walls and stillness.
            "longest_hold": 60,
            "png_level": 0,
            "episodes": 400,
            "holdout_episodes": 16,
            "z_size": 32,
            "vision_epochs": 10,
            "vision_updates": 3000,
            "vision_batch": 16,
            "vision_lr": 5e-4,
            "kl_tolerance": 2.0,
            "hidden_size": 256,
            "memory_epochs": 1000,
            "memory_updates": 1000,
            "memory_batch": 32,
            "memory_length": 128,
            "memory_lr": 5e-3,
            "memory_lr_end": 1e-4,
            "memory_lr_decay": 0.997,
            "restart_weight": 200.0,
            "first_frames": 400,
            "population": 32,
            "rollouts": 8,
            "generations": 16,
            "trial_every": 4,
            "trial_seeds": 16,
        },
        {
            "car": {
                "episodes": 100,
                "holdout_episodes": 4,
                "vision_updates": 2000,
                "kl_tolerance": 0.5,
                "memory_updates": 300,
                "memory_length": 100,
                "max_steps": 400,
                "first_frames": 100,
                "population": 16,
                "rollouts": 2,
                "games": 32,
                "generations": 25,
                "trial_every": 5,
                "trial_seeds": 8,
                "test_games": 50,
            }
        },
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        {
            "episodes": 8,
            "holdout_episodes": 1,
            "vision_updates": 4,
            "vision_batch": 20,
            "vision_epochs": 10,
            "hidden_size": 32,
            "memory_updates": 6,
            "memory_epochs": 1000,
            "memory_batch": 4,
            "memory_length": 50,
            "first_frames": 8,
            "max_steps": 200,
            "population": 8,
            "rollouts": 2,
            "precision": "auto",
            "generations": 4,
            "trial_every": 2,
            "trial_seeds": 4,
            "test_episodes": 4,
            "test_games": 4,
            "checkpoint_seconds": 0.0,
        },
        {
            "car": {
                "memory_length": 30,
                "max_steps": 60,
                "population": 4,
                "rollouts": 1,
                "games": 4,
                "trial_seeds": 2,
            }
        },
    ),
}

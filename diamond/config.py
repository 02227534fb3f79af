"""All settings of DIAMOND. Defaults are the paper's and its released configuration, the same for all 26 games."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from diamond.denoiser import NoiseLaw
from diamond.sampler import SamplerSettings

GAMES = (
    *("alien", "amidar", "assault", "asterix", "bank_heist", "battle_zone", "boxing", "breakout", "chopper_command"),
    *("crazy_climber", "demon_attack", "freeway", "frostbite", "gopher", "hero", "jamesbond", "kangaroo", "krull"),
    *("kung_fu_master", "ms_pacman", "pong", "private_eye", "qbert", "road_runner", "seaquest", "up_n_down"),
)


def is_video(task: str) -> bool:
    """Whether a task is a world model of recorded play alone."""
    return task.startswith("video_") or task == "own"


@dataclass(frozen=True)
class Config:
    """Settings of one run."""

    task: str = setting("atari100k_breakout", "game, or video to model")
    seed: int = setting(0, "of every random number", low=0)
    device: str = setting("cpu", "cpu, cuda or cuda:<number>")
    data: str = setting("", "videos: a folder of recorded play, in place of the game; task own needs one")

    # Frames
    image_size: int = setting(64, "rows and columns of a frame", low=8)
    history: int = setting(4, "L, frames and actions that the denoiser sees", low=1)

    # Denoiser
    diffusion: str = setting("edm", "the paper's world model, or its rival", choices=("edm", "ddpm"))
    denoiser_cond: int = setting(256, "conditioning numbers", low=2)
    denoiser_channels: tuple[int, ...] = setting((64, 64, 64, 64), "of each level", low=1)
    denoiser_depths: tuple[int, ...] = setting((2, 2, 2, 2), "residual blocks of each level", low=1)
    sigma_data: float = setting(0.5, "standard deviation of frames", low=1e-3)
    sigma_offset: float = setting(0.3, "of the noise that a whole channel shares", low=0)
    sigma_loc: float = setting(-0.4, "mean of ln sigma in training")
    sigma_scale: float = setting(1.2, "standard deviation of ln sigma in training", low=0)
    extra_terms: int = setting(1, "terms of the loss on the model's own estimates", low=0)
    denoiser_clip: float = setting(1.0, "largest gradient norm", low=1e-9)

    # Sampler
    sampler_steps: int = setting(3, "denoising steps of a frame", low=1)
    sampler_order: int = setting(1, "1: Euler, 2: Heun", choices=(1, 2))
    sigma_min: float = setting(0.002, "lowest noise level", low=1e-9)
    sigma_max: float = setting(5.0, "highest noise level", low=1e-9)
    rho: float = setting(7.0, "how the levels crowd at the low end", low=1e-3)
    s_churn: float = setting(0.0, "noise added while sampling", low=0)

    # Reward and end
    reward_cond: int = setting(128, "conditioning numbers", low=1)
    reward_channels: tuple[int, ...] = setting((32, 32, 32, 32), "of each level", low=1)
    reward_depths: tuple[int, ...] = setting((2, 2, 2, 2), "residual blocks of each level", low=1)
    reward_lstm: int = setting(512, "recurrent units", low=1)
    reward_clip: float = setting(100.0, "largest gradient norm", low=1e-9)

    # Actor-critic
    policy_channels: tuple[int, ...] = setting((32, 32, 64, 64), "of each stage; each halves the frame", low=1)
    policy_lstm: int = setting(512, "recurrent units", low=1)
    policy_clip: float = setting(100.0, "largest gradient norm", low=1e-9)
    horizon: int = setting(15, "H, steps of an imagined episode and of an update", low=1)
    gamma: float = setting(0.985, "discount of a step", low=0, high=1)
    lam: float = setting(0.95, "lambda of the returns", low=0, high=1)
    value_weight: float = setting(1.0, "weight of the value loss", low=0)
    entropy_weight: float = setting(0.001, "eta, weight of the entropy in nats", low=0)
    is_imagined: bool = setting(True, "the policy learns in imagination; without: the same loss in the game itself")

    # Speed on a GPU
    use_fast: bool = setting(True, "imagined steps compiled and captured as a CUDA graph; without: the readable form")
    precision: str = setting(
        "float32", "of products in imagined frames, rewards and ends on a GPU", choices=("float32", "bfloat16")
    )

    # Training
    batch_size: int = setting(32, "segments, and imagined environments", low=1)
    lr: float = setting(1e-4, "learning rate of all three", low=0)
    warmup: int = setting(100, "updates of linear warm-up", low=0)
    weight_decay: float = setting(1e-2, "of denoiser and reward model; the policy has none", low=0)
    denoiser_updates: int = setting(400, "an epoch; 0 trains nothing, the first epoch included", low=0)
    denoiser_first: int = setting(10_000, "updates of the first epoch", low=0)
    reward_end_updates: int = setting(400, "an epoch; 0 trains nothing, the first epoch included", low=0)
    reward_end_first: int = setting(10_000, "updates of the first epoch", low=0)
    actor_critic_updates: int = setting(400, "an epoch; 0 trains nothing, the first epoch included", low=0)
    actor_critic_first: int = setting(5000, "updates of the first epoch", low=0)

    init_from: str | None = setting(None, "an official checkpoint, .pt or .safetensors, that the networks begin with")

    # Collection
    env_steps: int = setting(100_000, "decisions in the game, in all", low=1)
    collect_steps: int = setting(100, "decisions an epoch", low=1)
    collect_first: int = setting(5000, "decisions before the first epoch, at least", low=1)
    collect_most: int = setting(10_000, "decisions before the first epoch, at most", low=1)
    collect_rewards: int = setting(10, "steps whose reward is not the usual one that are waited for", low=0)
    epsilon: float = setting(0.01, "share of random actions in collection", low=0, high=1)
    # Deviation D3: not in the paper; its authors took the trick of IRIS for one game.
    collect_temperature: float = setting(1.0, "of the policy in collection", low=1e-6)
    age_weights: tuple[float, ...] = setting((0.1, 0.1, 0.1, 0.7), "of quarters of the episodes, oldest first", low=0)
    last_epochs: int = setting(50, "epochs without collection at the end", low=0)
    initial_batches: int = setting(256, "batches of first frames that are drawn at once", low=1)

    # Test
    test_games: int = setting(100, "games under the sampling policy", low=1)
    test_rollouts: int = setting(24, "imagined videos beside real ones", low=1)
    test_length: int = setting(500, "frames of such a video", low=1)

    # Housekeeping
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints", low=0)

    def __post_init__(self) -> None:
        for part in ("denoiser", "reward"):
            channels, depths = getattr(self, f"{part}_channels"), getattr(self, f"{part}_depths")
            if len(channels) != len(depths) or not channels:
                raise ValueError(f"{part}_channels has {len(channels)} levels, {part}_depths {len(depths)}")
        if not self.policy_channels:
            raise ValueError("policy_channels has no stage; at least one is needed")
        if self.denoiser_cond % (2 * self.history):
            raise ValueError(f"denoiser_cond {self.denoiser_cond} must be a multiple of 2 * history")
        if self.image_size % 2 ** len(self.policy_channels):
            raise ValueError(f"image_size {self.image_size} cannot be halved {len(self.policy_channels)} times")
        if self.sigma_max <= self.sigma_min:
            raise ValueError("sigma_max must be above sigma_min")
        if not self.collect_first <= self.collect_most <= self.env_steps:
            raise ValueError("collect_first, collect_most and env_steps must not fall")
        if self.data and not self.is_video:
            raise ValueError(f"data is for task own and the tasks video_*, not for {self.task}")
        if not self.is_imagined and self.is_video:
            raise ValueError(f"is_imagined false is for games that a policy plays, not for {self.task}")
        if self.init_from is not None and self.diffusion != "edm":
            raise ValueError(f"init_from: an official checkpoint is of diffusion edm, not {self.diffusion}")
        if abs(sum(self.age_weights) - 1) > 1e-6:
            raise ValueError(f"age_weights must add up to 1, not {sum(self.age_weights):g}")

    @property
    def game(self) -> str:
        """The game of the task. Raises ValueError for a task that is not in TASKS."""
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}")
        return self.task.removeprefix("atari100k_").removeprefix("video_")

    @property
    def is_video(self) -> bool:
        """Whether the task is a world model of recorded play alone."""
        return is_video(self.task)

    @property
    def is_recorded(self) -> bool:
        """Whether the play is read from `data`, so that no game is needed."""
        return self.task == "own" or bool(self.data)

    @property
    def later_updates(self) -> tuple[int, int, int]:
        """Updates an epoch of denoiser, reward and end model, and policy."""
        return self.denoiser_updates, self.reward_end_updates, self.actor_critic_updates

    @property
    def first_updates(self) -> tuple[int, int, int]:
        """Those of the first epoch; nothing for what is never trained."""
        return (
            self.denoiser_first if self.denoiser_updates else 0,
            self.reward_end_first if self.reward_end_updates else 0,
            self.actor_critic_first if self.actor_critic_updates else 0,
        )

    @property
    def law(self) -> NoiseLaw:
        """The noise of training."""
        return NoiseLaw(
            loc=self.sigma_loc, scale=self.sigma_scale, sigma_data=self.sigma_data, sigma_offset=self.sigma_offset
        )

    @property
    def sampler(self) -> SamplerSettings:
        """How a frame is sampled."""
        return SamplerSettings(
            self.sampler_steps, self.sigma_min, self.sigma_max, self.rho, self.sampler_order, self.s_churn
        )


# Deviation D6: not of an expert's play.
# A world model of play by the untrained policy, which is uniform random play: one epoch, no agent.
# Source: paper, section 5.1. No offset noise on either side: reference code, issue 36.
VIDEO = {
    "env_steps": 100_000,
    "collect_first": 100_000,
    "collect_most": 100_000,
    "last_epochs": 1,
    "denoiser_first": 120_000,
    "reward_end_updates": 0,
    "actor_critic_updates": 0,
    "epsilon": 0.0,
    "sigma_offset": 0.0,
}
SMALL_NETS: dict[str, Any] = {
    "denoiser_cond": 64,
    "denoiser_channels": (16, 16, 16),
    "denoiser_depths": (1, 1, 1),
    "reward_cond": 32,
    "reward_channels": (16, 16, 16),
    "reward_depths": (1, 1, 1),
    "reward_lstm": 64,
    "policy_channels": (16, 16, 16),
    "policy_lstm": 64,
}

TASKS: dict[str, Mapping[str, Any]] = {
    "atari100k_breakout": {},
    **{f"atari100k_{game}": {} for game in GAMES if game not in ("breakout", "freeway")},
    "atari100k_freeway": {"collect_temperature": 0.01},
    "catch": {"image_size": 16, **SMALL_NETS},
    **{f"video_{game}": VIDEO for game in GAMES},
    "video_coin": {**VIDEO, **SMALL_NETS, "image_size": 16},
    "own": VIDEO,
}


def videos(**values: Any) -> dict[str, dict[str, Any]]:
    """What a preset changes for every video; all its steps are collected before the one epoch."""
    steps = {"collect_first": values["env_steps"], "collect_most": values["env_steps"], "last_epochs": 1}
    alone = {"reward_end_updates": 0, "actor_critic_updates": 0, **steps, **values}
    return dict.fromkeys(filter(is_video, TASKS), alone)


def games(**values: Any) -> dict[str, dict[str, Any]]:
    """What a preset changes for every game that an agent plays."""
    return dict.fromkeys((task for task in TASKS if not is_video(task)), values)


# So few updates teach an agent nothing; they bound the time of a game that is named at a preset for videos.
AGENT_CPU: dict[str, Any] = {
    "horizon": 10,
    "env_steps": 1500,
    "collect_first": 1000,
    "collect_most": 1000,
    "last_epochs": 0,
    "lr": 3e-4,
    "denoiser_first": 300,
    "denoiser_updates": 10,
    "reward_end_first": 200,
    "reward_end_updates": 10,
    "actor_critic_first": 40,
    "actor_critic_updates": 5,
    "initial_batches": 16,
    "test_games": 2,
    "test_rollouts": 4,
    "test_length": 50,
}
# Four times the pixels of `catch`, half of its updates; no run has shown what they teach.
ATARI_NIGHT: dict[str, Any] = {
    "image_size": 32,
    **SMALL_NETS,
    "denoiser_first": 1500,
    "denoiser_updates": 20,
    "reward_end_first": 1500,
    "reward_end_updates": 15,
    "actor_critic_first": 150,
    "actor_critic_updates": 25,
    "test_games": 10,
    "test_length": 50,
}

PRESETS = {
    "paper": Preset("the paper's sizes, budget and protocol"),
    "gpu": Preset(
        "returns above random play after a tenth of the budget, one game, as far as half an hour goes; "
        "the drift of `cpu` at the paper's size",
        {
            "device": "cuda",
            "env_steps": 11_000,
            "collect_most": 5000,
            "denoiser_first": 3000,
            "denoiser_updates": 150,
            "reward_end_first": 3000,
            "reward_end_updates": 150,
            "actor_critic_first": 1500,
            "actor_critic_updates": 150,
            "last_epochs": 0,
            "initial_batches": 64,
            "test_games": 20,
        },
        videos(env_steps=20_000, denoiser_first=8000, test_length=1000),
    ),
    "night": Preset(
        "an agent trained only in imagination solves a small pixel game; the drift of `cpu` at a larger size; "
        "nothing of an agent of Atari",
        {
            "task": "catch",
            "batch_size": 16,
            "horizon": 10,
            "env_steps": 6000,
            "collect_first": 3000,
            "collect_most": 3000,
            "collect_steps": 100,
            "last_epochs": 10,
            "lr": 3e-4,
            "denoiser_first": 3000,
            "denoiser_updates": 40,
            "reward_end_first": 3000,
            "reward_end_updates": 30,
            "actor_critic_first": 300,
            "actor_critic_updates": 50,
            "initial_batches": 16,
            "test_rollouts": 8,
            "test_length": 6,
        },
        {
            **games(**ATARI_NIGHT),
            "catch": {},
            **videos(
                image_size=32,
                env_steps=10_000,
                denoiser_first=4000,
                **{**SMALL_NETS, "denoiser_channels": (24, 24, 32)},
                test_rollouts=20,
                test_length=1000,
            ),
        },
    ),
    "cpu": Preset(
        "with few denoising steps the paper's world model stays closer to real play than its DDPM twin; nothing of an "
        "agent",
        {
            "task": "video_pong",
            "image_size": 24,
            **SMALL_NETS,
            "denoiser_channels": (16, 24),
            "denoiser_depths": (1, 1),
            "env_steps": 4000,
            "collect_first": 4000,
            "collect_most": 4000,
            "batch_size": 16,
            "lr": 1e-3,
            "denoiser_first": 1600,
            "test_rollouts": 20,
        },
        {
            **games(**AGENT_CPU),
            "catch": {**AGENT_CPU, "image_size": 16},
            # A square is seen through more noise than the details of a game are. Levels at which both sides are still
            # possible must be met in training, or the model has a favourite side.
            "video_coin": {
                "image_size": 16,
                "sigma_loc": 0.6,
                "denoiser_first": 2000,
                "test_length": 96,
            },
        },
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        {
            "task": "atari100k_breakout",
            "image_size": 16,
            **SMALL_NETS,
            "batch_size": 2,
            "horizon": 3,
            "env_steps": 90,
            "collect_first": 40,
            "collect_most": 50,
            "collect_steps": 20,
            "collect_rewards": 1,
            "last_epochs": 1,
            "denoiser_first": 6,
            "denoiser_updates": 3,
            "reward_end_first": 4,
            "reward_end_updates": 3,
            "actor_critic_first": 4,
            "actor_critic_updates": 3,
            "initial_batches": 3,
            "warmup": 2,
            "test_games": 1,
            "test_rollouts": 2,
            "test_length": 5,
            "checkpoint_seconds": 0.5,
        },
        videos(env_steps=40),
    ),
}

"""All settings of MuZero. Defaults are the paper's for Atari; what its board games differ in stands in TASKS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Preset, setting
from muzero.networks import Sizes
from muzero.search import NORMALISATIONS, POLICIES

SIZES = {
    # Of the paper: 16 blocks of 256 planes; Atari's downsampling belongs to the kind.
    "atari": Sizes("frames", 256, 16, 256),
    "board": Sizes("board", 256, 16, 256),
    # For machines at hand.
    "atari-small": Sizes("frames", 64, 1, 64),
    "board-tiny": Sizes("board", 16, 1, 32, head_blocks=1, is_normalised=False, value_planes=2, scales_channels=True),
    "board-small": Sizes("board", 32, 2, 64),
    "board-medium": Sizes("board", 64, 4, 128),
    "vector-small": Sizes("vector", 64, 1, 64),
    "vector-medium": Sizes("vector", 128, 1, 128),
    "vector-large": Sizes("vector", 256, 1, 256),
}

ATARI57_GAMES = (
    "alien", "amidar", "assault", "asterix", "asteroids", "atlantis", "bank_heist", "battle_zone", "beam_rider",
    "berzerk", "bowling", "boxing", "breakout", "centipede", "chopper_command", "crazy_climber", "defender",
    "demon_attack", "double_dunk", "enduro", "fishing_derby", "freeway", "frostbite", "gopher", "gravitar", "hero",
    "ice_hockey", "jamesbond", "kangaroo", "krull", "kung_fu_master", "montezuma_revenge", "ms_pacman",
    "name_this_game", "phoenix", "pitfall", "pong", "private_eye", "qbert", "riverraid", "road_runner", "robotank",
    "seaquest", "skiing", "solaris", "space_invaders", "star_gunner", "surround", "tennis", "time_pilot", "tutankham",
    "up_n_down", "venture", "video_pinball", "wizard_of_wor", "yars_revenge", "zaxxon",
)  # fmt: skip
ATARI100K_GAMES = (
    "alien", "amidar", "assault", "asterix", "bank_heist", "battle_zone", "boxing", "breakout", "chopper_command",
    "crazy_climber", "demon_attack", "freeway", "frostbite", "gopher", "hero", "jamesbond", "kangaroo", "krull",
    "kung_fu_master", "ms_pacman", "pong", "private_eye", "qbert", "road_runner", "seaquest", "up_n_down",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Symbols: K unroll steps, n steps of a return, S half width of the support, T temperature."""

    task: str = setting("tictactoe", "the world")
    gym_id: str = setting("CartPole-v1", "for task gym: a gymnasium environment with vectors and discrete actions")
    seed: int = setting(0, "seed of everything", low=0, high=2**31 - 1)
    device: str = setting("cpu", "torch device, e.g. cpu, cuda")

    # Networks
    size: str = setting("atari", "size of the networks", choices=tuple(SIZES))
    support: int | None = setting(300, "S: values as 2 S + 1 categories (none: one number in [-1, 1])", low=1)

    # Search
    simulations: int = setting(50, "simulations per move", low=1)
    policy: str = setting("muzero", "pUCT, or the sequential halving of Gumbel MuZero", choices=POLICIES)
    normalisation: str = setting("tree", "values scaled by the tree (paper) or by each node", choices=NORMALISATIONS)
    counts_root: bool = setting(False, "the root's own value counts as a visit (paper's pseudocode: not)")
    noise_alpha: float = setting(0.25, "alpha of the Dirichlet noise at the root", low=1e-3)
    noise_fraction: float = setting(0.25, "share of the noise in the root's prior", low=0, high=1)
    max_considered: int = setting(16, "Gumbel: actions that compete at the root", low=1)
    c_scale: float = setting(0.1, "Gumbel: scale of values beside logits (0.1 Atari, 1.0 boards)", low=0)

    # Acting
    envs: int = setting(350, "worlds side by side, over all processes (paper: actors)", low=1)
    temperatures: tuple[float, ...] = setting(
        (1.0, 0.5, 0.25), "T of acting in the first half, third and last quarter of training", low=0
    )
    temperature_moves: int | None = setting(None, "moves of an episode with T; then the best (none: all)", low=0)

    # Targets
    discount: float = setting(0.997, "per agent step", low=0, high=1)
    td_steps: int | None = setting(10, "n: rewards before the bootstrap (none: to the end)", low=1)
    unroll_steps: int = setting(5, "K", low=1)

    # Replay
    batch_size: int = setting(1024, "positions per update, over all processes", low=1)
    # Deviation D4: the paper counts games, or sequences of 200 steps.
    replay_steps: int = setting(25_000_000, "agent steps remembered (paper: 125,000 sequences of 200)", low=1)
    first_steps: int = setting(100_000, "agent steps before the first update", low=1)
    # Deviation D11: the paper says 0.1, with which its million updates would take twice its 20 billion frames.
    samples_per_state: float = setting(0.2048, "how often each state is drawn; sets updates per agent step", low=1e-6)
    priority_exponent: float = setting(1.0, "alpha of the priorities (0: uniform)", low=0)
    priority_correction: float = setting(1.0, "beta of their importance weights", low=0)
    reanalyze: float = setting(0.0, "share of the positions searched again with the target network", low=0, high=1)
    target_updates: int = setting(1000, "updates between copies to the target network of Reanalyze", low=1)

    # Optimiser
    updates: int = setting(1_000_000, "of the whole run; 0: an untrained control", low=0)
    optimizer: str = setting("sgd", "sgd with momentum (paper) or adam", choices=("sgd", "adam"))
    lr: float = setting(0.05, "learning rate at the start", low=0)
    lr_decay_updates: int | None = setting(350_000, "updates in which it falls to a tenth (none: never)", low=1)
    momentum: float = setting(0.9, "of sgd", low=0, high=1)
    gradient_clip: float | None = setting(None, "largest norm of the gradient (none, as the paper: any)", low=1e-6)
    weight_decay: float = setting(1e-4, "c: weight of the penalty on parameters", low=0)
    value_weight: float = setting(1.0, "weight of the value loss (Reanalyze: 0.25)", low=0)

    # Test
    test_episodes: int = setting(1000, "episodes or games of a test", low=1)
    test_simulations: int | None = setting(None, "simulations per move in a test (none: as in training)", low=1)

    # Housekeeping
    snapshots: int = setting(10, "networks kept along the way, for the ladder", low=1)
    use_fast: bool = setting(True, "the search written for speed; without: the readable reference")
    checkpoint_seconds: float = setting(60.0, "seconds between checkpoints", low=0)

    def __post_init__(self) -> None:
        if len(self.temperatures) != 3:
            raise ValueError(f"temperatures must be three numbers, not {self.temperatures}")
        if self.momentum == 1:
            raise ValueError("momentum must be below 1")

    @property
    def sizes(self) -> Sizes:
        """The network's size. Raises ValueError if it does not fit the task."""
        return SIZES[self.size]


# The paper's columns for boards. Deviation D1: games that the paper does not play have Go's, and boards smaller than
# 19 x 19 a Dirichlet alpha in proportion to their moves.
_BOARD = {
    "size": "board",
    "support": None,
    "simulations": 800,
    "c_scale": 1.0,
    "envs": 3000,
    "temperatures": (1.0, 1.0, 1.0),
    "temperature_moves": 30,
    "discount": 1.0,
    "td_steps": None,
    "batch_size": 2048,
    "replay_steps": 100_000_000,
    "priority_exponent": 0.0,
    "lr_decay_updates": 400_000,
}
TASKS: dict[str, Mapping[str, Any]] = {
    "tictactoe": {**_BOARD, "noise_alpha": 1.0, "lr": 0.01},
    "connect4": {**_BOARD, "noise_alpha": 1.0, "lr": 0.01},
    "gomoku": {**_BOARD, "noise_alpha": 0.05, "lr": 0.01},
    "go9": {**_BOARD, "noise_alpha": 0.13, "lr": 0.01},
    "chess": {**_BOARD, "noise_alpha": 0.3, "lr": 0.1},
    "cartpole": {"size": "vector-medium", "priority_exponent": 0.0},
    "lunarlander": {"size": "vector-medium", "priority_exponent": 0.0},
    "gym": {"size": "vector-medium", "priority_exponent": 0.0},
    **{f"atari_{game}": {} for game in ATARI57_GAMES},
    # Source: EfficientZero, Appendix A and its code. Deviation D12: not all of it.
    **{
        f"atari100k_{game}": {
            "size": "atari-small",
            "envs": 1,
            "discount": 0.997**4,  # 0.997 of each frame
            "td_steps": 5,
            "batch_size": 256,
            "replay_steps": 100_000,
            "first_steps": 2_000,
            "samples_per_state": 256.0,
            "updates": 98_000,
            "noise_alpha": 0.3,
            "lr": 0.2,
            "lr_decay_updates": None,  # its first step down would come at update 100,000
            "gradient_clip": 5.0,
            "value_weight": 0.25,
            "priority_exponent": 0.6,
            "priority_correction": 0.4,
            "test_episodes": 32,
        }
        for game in ATARI100K_GAMES
    },
}

# Deviation D10: no penalty on weights. Adam scales its gradient together with the loss's, so that in the dynamics, to
# which little of the latter flows, the penalty would win.
_ADAM = {"optimizer": "adam", "lr_decay_updates": None, "weight_decay": 0.0, "counts_root": True}
# Deviation D10: rewards and values as categories, as outside of board games: learnt faster than one number, and the end
# of a game is a reward followed by nothing.
_TICTACTOE = {
    **_ADAM,
    "size": "vector-medium",
    "support": 1,
    "envs": 64,
    "simulations": 25,
    # The dynamics must know replies that good players seldom make: more noise, and no cooling.
    "noise_fraction": 0.5,
    "temperature_moves": None,
    "batch_size": 128,
    "lr": 3e-3,
    "lr_decay_updates": 12_000,
    "first_steps": 2_000,
    "samples_per_state": 8.0,
    "replay_steps": 50_000,
    "updates": 12_000,
    "test_episodes": 200,
}
_CONNECT4 = {
    **_ADAM,
    "size": "board-small",
    "envs": 64,
    "simulations": 50,
    "temperature_moves": 12,
    "batch_size": 128,
    "lr": 1e-3,
    "first_steps": 4_000,
    "samples_per_state": 4.0,
    "replay_steps": 300_000,
    "updates": 4_000,
    "test_episodes": 200,
}
# Boards that take longer: no update is due before the longest game can have ended.
_LARGE_BOARD = {
    **_CONNECT4,
    "envs": 16,
    "simulations": 16,
    "temperature_moves": 30,
    "batch_size": 64,
    "first_steps": 16 * 512,
    "samples_per_state": 2.0,
    "replay_steps": 50_000,
    "updates": 500,
    "test_episodes": 100,
}
_LARGE_BOARDS = ("gomoku", "go9", "chess")
_CONTROL = {
    **_ADAM,
    "size": "vector-small",
    "support": 30,
    "envs": 8,
    "simulations": 16,
    # Values must reach back from the end of the track within few updates.
    "td_steps": 50,
    "batch_size": 128,
    "lr": 1e-2,
    "lr_decay_updates": 4_000,
    "first_steps": 1_000,
    "samples_per_state": 16.0,
    "replay_steps": 100_000,
    "updates": 8_000,
    "test_episodes": 100,
}
_CONTROL_TASKS = ("cartpole", "lunarlander", "gym")
_TINY = {
    **_ADAM,
    "size": "board-tiny",
    "envs": 4,
    "simulations": 4,
    "batch_size": 8,
    "replay_steps": 400,
    "first_steps": 40,
    "samples_per_state": 2.0,
    "updates": 40,
    "lr": 1e-3,
    "test_episodes": 2,
    "snapshots": 2,
    "checkpoint_seconds": 0.5,
}
# The first updates come when the longest game has ended: before, there is nothing to learn from.
_TINY_BOARDS = {
    name: {"first_steps": 4 * moves, "replay_steps": 4 * moves, "simulations": 2}
    for name, moves in (("gomoku", 225), ("go9", 162), ("chess", 512))
}
_TINY_ATARI = {"size": "atari-small", "support": 10, "updates": 10, "batch_size": 2, "envs": 2, "replay_steps": 400}
PRESETS = {
    "paper": Preset("the paper's sizes, budget and protocol; boards that it does not play as its Go"),
    "gpu": Preset(
        "Atari 100k, tested by its published protocol, as far as 25 minutes go; connect four at four times the night's "
        "size",
        {"device": "cuda"},
        {
            "connect4": {**_CONNECT4, "size": "board-medium", "envs": 512, "batch_size": 512, "updates": 20_000},
            **dict.fromkeys(_LARGE_BOARDS, {**_LARGE_BOARD, "size": "board-medium", "updates": 8_000}),
            "tictactoe": _TICTACTOE,
            **dict.fromkeys(_CONTROL_TASKS, _CONTROL),
            **{f"atari100k_{game}": {"updates": 10_000, "samples_per_state": 64.0} for game in ATARI100K_GAMES},
        },
    ),
    "night": Preset(
        "connect four graded by exact values; tic-tac-toe without a loss; the pole held for 475 of 500 steps",
        {},
        {
            "tictactoe": {**_TICTACTOE, "updates": 40_000, "lr_decay_updates": 40_000},
            "connect4": {**_CONNECT4, "updates": 40_000},
            **dict.fromkeys(_LARGE_BOARDS, {**_LARGE_BOARD, "updates": 8_000}),
            **dict.fromkeys(_CONTROL_TASKS, _CONTROL),
        },
    ),
    "cpu": Preset(
        "tic-tac-toe from self-play: every reply of an opponent is tried, from either side",
        {},
        {
            "tictactoe": _TICTACTOE,
            "connect4": _CONNECT4,
            **dict.fromkeys(_LARGE_BOARDS, _LARGE_BOARD),
            **dict.fromkeys(_CONTROL_TASKS, {**_CONTROL, "updates": 4_000, "lr_decay_updates": 2_000}),
        },
    ),
    "smoke": Preset(
        "none: every line of the path runs, the numbers mean nothing",
        _TINY,
        {
            **dict.fromkeys(_CONTROL_TASKS, {"size": "vector-small", "support": 10, "td_steps": 5, "reanalyze": 0.5}),
            **_TINY_BOARDS,
            **{f"atari100k_{game}": _TINY_ATARI for game in ATARI100K_GAMES},
            **{f"atari_{game}": _TINY_ATARI for game in ATARI57_GAMES},
        },
    ),
}

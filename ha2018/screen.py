"""Take Cover without looking: how far fixed policies come, in the dream and in the game, before any C is trained.

    python -m ha2018.screen --run runs/ha2018/doom-paper-seed0

A dream in which standing still survives has nothing to teach, and a score in the game says little of a controller as
long as the best policy without eyes reaches it too. The command needs V and M alone, prints a table over the
temperatures of the paper and leaves it in screen.json. `evaluate` puts the same policies beside every C that it tests.

Shapes: E episodes, T steps; actions are scalars in [-1, 1].
Source: our own check of table 2 of the paper.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.config import Parser, user_error
from common.files import atomic_write
from common.program import program
from common.run import Run, progress_bar, run_config, seed_everything, usable_device
from common.seeding import derive_seed
from ha2018.agent import Agent, WorldModel, load_world_model
from ha2018.config import Config
from ha2018.dream import open_loop_returns
from ha2018.processes import Games
from ha2018.random_play import blind_return, no_actions, uniform_actions
from ha2018.rollout import open_games

TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)  # table 2
SWEEPS = (16, 32, 64, 128)  # tics from one side to the other and back
Policy = Callable[[int], Iterator[float]]  # the actions of the episode with that seed


def constant_actions(seed: int, action: float) -> Iterator[float]:
    """The same action at every tic; the seed is ignored."""
    while True:
        yield action


def sweep_actions(seed: int, period: int) -> Iterator[float]:
    """Right for half of the period, left for the other half; the seed is ignored."""
    while True:
        yield from [1.0] * (period // 2)
        yield from [-1.0] * (period - period // 2)


SWEEP_POLICIES: Mapping[int, Policy] = {period: partial(sweep_actions, period=period) for period in SWEEPS}
STEADY_POLICIES: Mapping[str, Policy] = {
    "still": no_actions,
    "left": partial(constant_actions, action=-1.0),
    "right": partial(constant_actions, action=1.0),
}
FIXED_POLICIES: Mapping[str, Policy] = {
    **STEADY_POLICIES,
    **{f"sweep {period}": policy for period, policy in SWEEP_POLICIES.items()},
    "uniform": uniform_actions,
}


def table(policy: Policy, seeds: Sequence[int], steps: int) -> np.ndarray:
    """The actions [E, T] of a policy in the episodes of these seeds."""
    return np.array([list(islice(policy(seed), steps)) for seed in seeds], np.float32)


@torch.no_grad()
def blind_actions(agent: Agent, seeds: Sequence[int], steps: int) -> np.ndarray:
    """What C does [E, T] when its eyes are shut: every z is standard normal noise, and M remembers that noise.

    What happens around it reaches it in no way, so that its actions can be drawn before the episode.
    """
    memory, device = agent.memory, agent.memory.bias.device
    streams = [torch.Generator().manual_seed(derive_seed(seed, "blind")) for seed in seeds]
    noise = torch.stack([torch.randn(steps, memory.z_size, generator=stream) for stream in streams], 1)
    state, restart = memory.initial_state(len(seeds)), torch.ones(len(seeds), device=device)
    actions = []
    for z in noise.to(device):
        action = agent.controller.action(agent.params, z, state)
        state = memory.step(z, action, restart, state)
        restart = torch.zeros_like(restart)
        actions.append(action[:, 0])
    return torch.stack(actions, 1).cpu().numpy()


def game_returns(actions: np.ndarray, seeds: Sequence[int], games: Games) -> list[float]:
    """Returns [E] of given actions [E, T] in the real game."""
    jobs = [partial(blind_return, seed=seed, actions=own) for seed, own in zip(seeds, actions, strict=True)]
    return list(games.each(jobs))


def dream_returns(
    actions: Mapping[str, np.ndarray], seeds: Sequence[int], model: WorldModel, temperature: float
) -> dict[str, list[float]]:
    """Returns [E] of given actions [E, T] of each name in the dream, all of them side by side."""
    every = torch.from_numpy(np.concatenate([*actions.values()]))
    dream = model.memory, model.first_frames, every, [*seeds] * len(actions), temperature, model.dtype
    parts: Sequence[Tensor] = open_loop_returns(*dream).split(len(seeds))
    return {name: part.tolist() for name, part in zip(actions, parts, strict=True)}


def best_sweep(config: Config, games: Games, episodes: int) -> int:
    """The period of the sweep that lasts longest in the real game, on episodes that no test has."""
    seeds = [derive_seed(config.seed, "screen", k) % 2**31 for k in range(episodes)]
    scores = {
        period: float(np.mean(game_returns(table(policy, seeds, config.max_steps), seeds, games)))
        for period, policy in SWEEP_POLICIES.items()
    }
    return max(scores, key=lambda period: scores[period])


def screen(model: WorldModel, config: Config, episodes: int) -> dict[str, dict[str, float]]:
    """Mean returns of the fixed policies: {policy: {"tau 0.10": …, "game": …}} over as many episodes each."""
    seeds = [derive_seed(config.seed, "screen", k) % 2**31 for k in range(episodes)]
    actions = {name: table(policy, seeds, config.max_steps) for name, policy in FIXED_POLICIES.items()}
    means: dict[str, dict[str, float]] = {name: {} for name in actions}
    with (
        open_games(config, config.workers) as games,
        progress_bar(len(TEMPERATURES) + len(actions), "screen", unit="column") as bar,
    ):
        for temperature in TEMPERATURES:
            for name, returns in dream_returns(actions, seeds, model, temperature).items():
                means[name][f"tau {temperature:.2f}"] = float(np.mean(returns))
            bar.update()
        for name, own in actions.items():
            means[name]["game"] = float(np.mean(game_returns(own, seeds, games)))
            bar.update()
    return means


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m ha2018.screen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="a run whose V and M are trained")
    parser.add_argument("--episodes", type=int, default=16, help="of each policy, in each dream and in the game")
    parser.add_argument("--device", help="torch device (default: that of the run)")
    options = parser.parse_args(argv)
    if not 1 <= options.episodes <= 10_000:
        user_error(f"--episodes {options.episodes}: 1 to 10000")
    config = run_config(Config, Run.load("ha2018", options.run))
    if config.task != "doom":
        user_error(f"{options.run} is a run of CarRacing, whose C is not trained in a dream; screen is for task doom")
    model = load_world_model(options.run, config, usable_device(options.device or config.device))
    seed_everything(config.seed, config.device)
    means = screen(model, config, options.episodes)
    columns = list(next(iter(means.values())))
    print("".join([f"{'tics survived':<14}", *(f"{column:>10}" for column in columns)]))
    for name, row in means.items():
        print("".join([f"{name:<14}", *(f"{row[column]:>10.0f}" for column in columns)]))
    content = {"episodes": options.episodes, "max_steps": config.max_steps, "means": means}
    atomic_write(options.run / "screen.json", (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    program(main)

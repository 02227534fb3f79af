"""The generations of C: CMA-ES on rollouts, its trials, its log and its checkpoints, and the controller that is kept.

Shapes: N population members, R rollouts per member, P parameters of C.
Source: paper, appendix A.4; reference code: train.py of each task.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import safetensors.torch
import torch

from common import dist
from common.files import write_checked
from common.precision import compute_dtype
from common.run import Run
from common.stage import Stage
from ha2018.agent import CONTROLLER
from ha2018.cma_es import Evolution, as_received_from_workers, as_sent_to_workers, cost, rollout_seeds
from ha2018.config import Config
from ha2018.dream import FirstFrames, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.memory import MDNRNN

# What is asked of rollouts: params [N, P], seeds [N]. What they answer: returns [N, R] and the environment steps taken.
Asked = tuple[np.ndarray, np.ndarray]
Answer = tuple[np.ndarray, int]
Rollouts = Callable[[np.ndarray, np.ndarray], Answer]


def save_controller(run: Run, ranks: dist.Ranks, params: np.ndarray) -> None:
    """The parameters [P] of C into the run folder: training has ended."""
    if dist.is_main(ranks):
        tensors = safetensors.torch.save({"params": torch.from_numpy(params)})
        write_checked(run.folder / CONTROLLER, tensors, f"{run.identity} controller")


def evolve(run: Run, config: Config, ranks: dist.Ranks, rollouts: Rollouts) -> np.ndarray:
    """`generations` with these rollouts, every rank rolling out its part of the population. Returns parameters [P]."""
    evolution = generations(run, config, ranks)
    try:
        asked = next(evolution)
        while True:
            asked = evolution.send(rollouts(*asked))
    except StopIteration as end:
        best: np.ndarray = end.value
        return best


def generations(run: Run, config: Config, ranks: dist.Ranks) -> Generator[Asked, Answer, np.ndarray]:
    """CMA-ES on the mean return of rollouts: yields what is to be rolled out, and is sent what came of it.

    Returns the parameters [P] of the CMA mean with the best trial.
    """
    where = "dream" if config.task == "doom" else "real"
    stage = Stage(run, "controller", config.generations, config.checkpoint_seconds, ranks)
    told = list(stage.extra["costs"].cpu().numpy()) if stage.first else []
    evolution = Evolution(config.controller_params, config.population, config.sigma0, config.seed, told)
    rng = np.random.RandomState(config.seed)
    for _ in range(stage.first):
        rollout_seeds(rng, config.population)
    best, best_trial = stage.extra.get("best"), stage.state.get("best_trial", -np.inf)
    for generation in stage.updates():
        solutions, seeds = evolution.ask(), rollout_seeds(rng, config.population)
        returns, env_frames = yield as_sent_to_workers(solutions), seeds
        returns = returns.mean(1)
        evolution.tell(solutions, cost(as_received_from_workers(returns), solutions))
        stage.log(generation, _generation_metrics(returns, env_frames, evolution), every=1)
        if (generation + 1) % config.trial_every == 0 or generation + 1 == config.generations:
            mean = evolution.mean
            trial, env_frames = yield np.tile(mean, (config.trial_seeds, 1)), np.arange(config.trial_seeds)
            numbers = {f"{where}_return": trial.mean(), f"{where}_std": trial.std()}
            run.log("controller trial", generation + 1, **numbers, **_spent(env_frames))
            if trial.mean() > best_trial:
                best, best_trial = torch.from_numpy(mean), float(trial.mean())
        if stage.due(generation):
            extra = {"costs": torch.from_numpy(np.stack(evolution.costs))} | ({} if best is None else {"best": best})
            stage.save(generation, extra, {"best_trial": best_trial} if best is not None else {})
    assert best is not None  # the last generation always has a trial
    return best.cpu().numpy()


def dream_returns(
    params: np.ndarray,
    seeds: np.ndarray,
    memory: MDNRNN,
    bank: FirstFrames,
    config: Config,
    ranks: dist.Ranks,
    fast: FastDream | None = None,
    temperatures: Sequence[float] | None = None,
) -> Answer:
    """Dream returns [N, R] of the controllers params [N, P], and no environment steps.

    The members are divided over the ranks. `fast` is used again from generation to generation. temperatures: [N], one
    of each member in the place of that of the config.
    """
    mine = dist.share(len(params), ranks)
    returns = rollout_returns(
        memory,
        bank,
        torch.from_numpy(params[mine]),
        seeds[mine].tolist(),
        config.rollouts,
        config.temperature if temperatures is None else temperatures[mine],
        config.max_steps,
        compute_dtype(config.precision, ranks.device),
        fast,
    )
    return dist.gather_rows(returns.to(ranks.device), len(params), ranks).cpu().numpy().astype(np.float64), 0


def _spent(env_frames: int) -> dict[str, float]:
    """Environment steps where there were any; dreams take none."""
    return {"env_frames": env_frames} if env_frames else {}


def _generation_metrics(returns: np.ndarray, env_frames: int, evolution: Evolution) -> dict[str, float]:
    """What the published history holds of a generation: returns [N] are means over the rollouts of a member."""
    population = {"mean": returns.mean(), "min": returns.min(), "max": returns.max(), "std": returns.std()}
    return {f"pop_{name}": float(value) for name, value in population.items()} | {
        "sigma_rms": evolution.sigma_rms,
        **_spent(env_frames),
    }

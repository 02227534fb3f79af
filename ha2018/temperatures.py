"""Train C at several temperatures in one process, on V and M of a finished run: all populations dream as one batch.

    python -m ha2018.temperatures --model-from runs/ha2018/doom-night-seed0 --preset night --temperatures 0.5 1 1.3

Each temperature has a run of its own, the one that `python -m ha2018.train --set temperature=T --model-from ...` makes
alone, and each command goes on with what the other has begun. It is meant for a GPU, which the dreams of one population
leave idle most of the time; the clock of each run counts the seconds of all.
Source: paper, section 4 and table 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common import dist
from common.config import from_dict, parse, to_dict, user_error
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_config, run_folder, seed_everything, usable_device
from ha2018 import world_model
from ha2018.agent import load_world_model
from ha2018.config import PRESETS, TASKS, Config
from ha2018.dream_fast import FastDream
from ha2018.evolution import Answer, Asked, dream_returns, generations, save_controller

# params [N, P], seeds [N], temperatures [N] -> returns [N, R] and the environment steps they took
Dreams = Callable[[np.ndarray, np.ndarray, Sequence[float]], Answer]


def evolve_together(
    evolutions: Mapping[float, Generator[Asked, Answer, np.ndarray]],
    dreams: Dreams,
    end: Callable[[float, np.ndarray], None],
) -> None:
    """Several `generations` by temperature; what they ask for at a time is dreamt as one batch.

    Each is told what it would be told alone, up to rounding; they need not stand at the same generation. `end` is given
    the temperature and the parameters [P] of each as it ends.
    """
    asked: dict[float, Asked] = {}

    def go_on(tau: float, answer: Answer | None) -> None:
        try:
            asked[tau] = next(evolutions[tau]) if answer is None else evolutions[tau].send(answer)
        except StopIteration as last:
            asked.pop(tau, None)
            end(tau, last.value)

    for tau in evolutions:
        go_on(tau, None)
    while asked:
        now = dict(asked)
        params, seeds = (np.concatenate(parts) for parts in zip(*now.values(), strict=True))
        counts = [len(part) for part, _ in now.values()]
        returns, env_frames = dreams(params, seeds, np.repeat(list(now), counts).tolist())
        for tau, part in zip(now, np.split(returns, np.cumsum(counts)[:-1]), strict=True):
            go_on(tau, (part, env_frames))


def train(runs: Mapping[float, Run], configs: Mapping[float, Config], ranks: dist.Ranks) -> None:
    """The controllers of all runs, each from where it stopped; V and M are those that the runs have taken over."""
    tau, config = next(iter(configs.items()))
    model = load_world_model(runs[tau].folder, config, ranks.device)
    fast = FastDream(model.memory, compute_dtype(config.precision, ranks.device))
    dream = partial(dream_returns, memory=model.memory, bank=model.first_frames, config=config, ranks=ranks, fast=fast)
    evolve_together(
        {tau: generations(run, configs[tau], ranks) for tau, run in runs.items()},
        lambda params, seeds, temperatures: dream(params, seeds, temperatures=temperatures),
        lambda tau, params: save_controller(runs[tau], ranks, params),
    )


def _configs(config: Config, temperatures: Sequence[float]) -> dict[float, Config]:
    """One of each temperature. Raises ValueError for one that cannot be, or that comes twice."""
    if len(set(temperatures)) < len(temperatures):
        raise ValueError("--temperatures: one of them comes twice")
    return {tau: from_dict(Config, to_dict(config) | {"temperature": tau}) for tau in temperatures}


def _folders(configs: Mapping[float, Config], options: argparse.Namespace) -> dict[float, Path]:
    """The run folders: --runs, or those of `ha2018.train`. Raises ValueError if they do not fit the temperatures."""
    if options.runs:
        if len(set(options.runs)) != len(configs):
            raise ValueError(f"--runs names {len(set(options.runs))} folders for {len(configs)} temperatures")
        return dict(zip(configs, options.runs, strict=True))
    chosen = vars(options)
    named = {tau: argparse.Namespace(**chosen | {"changed": options.changed | {"temperature": tau}}) for tau in configs}
    return {tau: run_folder("ha2018", config, named[tau]) for tau, config in configs.items()}


def _check(configs: Mapping[float, Config], source: Path) -> None:
    """One line and exit code 2 unless these controllers can be trained in the dream of `source`."""
    config = next(iter(configs.values()))
    if config.task != "doom":
        user_error(f"task {config.task}: only doom is learnt in a dream")
    world_model.check(source, config)
    if not world_model.takes_memory(run_config(Config, Run.load("ha2018", source)), config):
        user_error(f"--model-from {source}: M was made with other settings")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-from", type=Path, metavar="FOLDER", required=True, help="take V and M from this run")
    parser.add_argument("--temperatures", type=float, nargs="+", required=True, metavar="T", help="one run each")
    words = "the run folder of each temperature (default: that of ha2018.train)"
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="FOLDER", help=words)


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m ha2018.temperatures", description=__doc__ or "", extra=_options
    )
    usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        try:
            if options.run is not None or "temperature" in options.changed:
                raise ValueError("there are several runs: take --runs and --temperatures")
            configs = _configs(config, options.temperatures)
            folders = _folders(configs, options)
        except ValueError as error:
            user_error(str(error))
        if dist.is_main(ranks):
            _check(configs, options.model_from)
        # Those that are there first: what is wrong with one of them must end this before another is made.
        opened = {
            tau: Run.open("ha2018", configs[tau], options.preset, folders[tau])
            for tau in sorted(folders, key=lambda tau: not folders[tau].exists())
        }
        runs = {tau: opened[tau] for tau in configs}
        if dist.is_main(ranks):
            for tau, run in runs.items():
                world_model.adopt(run, options.model_from, configs[tau])
        dist.barrier()
        for run in runs.values():  # the other ranks have not made the folder
            run.identity = Run.load("ha2018", run.folder)["meta"]["identity"]
        seed_everything(config.seed, config.device)
        train(runs, configs, ranks)
        if dist.is_main(ranks):
            for run in runs.values():
                print(f"trained up to controller: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)

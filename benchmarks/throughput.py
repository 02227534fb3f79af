"""Speed of the shipped steps, imported and not copied: `python -m benchmarks.throughput [paper …] [--device cuda]`.

Every figure is the median of repeats after a warm-up. A peer is measured in the same run on the same machine.
Writes benchmarks/results/<paper>/throughput/<device>.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.envs.box2d.car_racing import CarRacing as GymnasiumCarRacing

from benchmarks import records
from benchmarks.rows import PAPERS
from common import dist
from common.run import (
    atomic_write,
    command_line,
    describe_device,
    git_revision,
    package_versions,
    usable_device,
)
from dreamerv3 import agent as dreamer_agent
from dreamerv3 import config as dreamer_config
from dreamerv3 import data as dreamer_data
from dreamerv3 import spaces as dreamer_spaces
from dreamerv3.learner import Learner
from dreamerv3.train import new_optimizer
from ha2018.config import Config
from ha2018.data import Batch
from ha2018.dream import FirstFrames, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.env import TakeCover, random_episode
from ha2018.memory import MDNRNN
from ha2018.processes import Worlds
from ha2018.racing import CarRacing
from ha2018.train import memory_step, vision_step
from ha2018.vision import VAE


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, fastest and slowest of the repeats."""

    median: float
    low: float
    high: float
    repeats: int


def timed(call: Callable[[], object], device: torch.device, repeats: int = 5, warmup: int = 1) -> Timing:
    """Time a call, waiting for the GPU if it runs on one."""
    seconds = []
    for k in range(warmup + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if k >= warmup:
            seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds), repeats)


def figure(name: str, unit: str, timing: Timing, amount: float = 0.0, **more: Any) -> dict[str, Any]:
    """A measurement of a speed record: a rate of `amount` per call, or without amount the call's own seconds."""

    def convert(seconds: float) -> float:
        value = amount / seconds if amount else seconds * (1000 if unit == "ms" else 1)
        return float(f"{value:.4g}")

    low, high = sorted((convert(timing.low), convert(timing.high)))
    empty = {"peer": None, "ratio": None, "published": None, "published_source": "", "note": ""}
    numbers = {"value": convert(timing.median), "low": low, "high": high, "repeats": timing.repeats}
    return {"name": name, "unit": unit, **numbers, **empty, **more}


def matmul_rate(device: torch.device) -> Timing:
    """Seconds of one 2048 x 2048 float32 matrix product; 2 * 2048^3 floating point operations."""
    a, b = torch.randn(2048, 2048, device=device), torch.randn(2048, 2048, device=device)
    return timed(lambda: a @ b, device, repeats=15, warmup=3)


# --- ha2018 -------------------------------------------------------------------------------------------------------

HISTORY = "published 108 s per generation: 195,352 s for 1,800 generations on 64 cores (doomrnn/log)"


def ha2018(device: torch.device) -> list[dict[str, Any]]:
    """Dream, game, V and M at the paper's sizes for Doom."""
    config = Config()
    torch.manual_seed(0)
    memory = _endless_memory(config).to(device)
    product = matmul_rate(device)
    gflops = 2 * 2048**3 / product.median / 1e9
    found = [figure("float32 matrix product 2048", "GFLOP/s", product, 2 * 2048**3 / 1e9)]

    rollouts, steps = config.population * config.rollouts, 96
    dream = timed(lambda: _generation(memory, config, steps, device), device)
    rate = rollouts * steps / dream.median
    single, processes = _one_at_a_time(config)
    flops = 2 * sum(p.numel() for p in (memory.kernel, memory.output_w))
    found += [
        figure(
            "dream, 64 x 16 rollouts as one batch",
            "steps/s",
            dream,
            rollouts * steps,
            peer=f"the same M one rollout at a time, {processes} CPU processes: {single:,.0f} steps/s",
            ratio=round(rate / single, 2),
        ),
        figure(
            "dream, share of the matrix product rate",
            "GFLOP/s",
            dream,
            rollouts * steps * flops / 1e9,
            peer=f"float32 matrix product, {gflops:,.0f} GFLOP/s",
            ratio=round(rate * flops / 1e9 / gflops, 3),
        ),
    ]
    generation = timed(lambda: _generation(memory, config, 900, device), device, repeats=3, warmup=0)
    found.append(
        figure(
            "full-size generation, 64 x 16 rollouts of 900 steps",
            "s",
            generation,
            published=108.0,
            published_source=HISTORY,
            note="900 steps: the published population mean at the end",
        )
    )
    found += [_vision(config, device), _memory(config, device), _game(), *_racing()]
    return found


def _endless_memory(config: Config) -> MDNRNN:
    """An M that never predicts a restart, so that every rollout takes all steps."""
    memory = MDNRNN(config.z_size, 1, config.hidden_size, config.mixtures, predicts_restart=True)
    with torch.no_grad():
        memory.output_w[:, 0], memory.output_b[0] = 0, -20
    return memory


def _generation(memory: MDNRNN, config: Config, steps: int, device: torch.device) -> None:
    bank = FirstFrames(torch.zeros(100, config.z_size, device=device), torch.zeros(100, config.z_size, device=device))
    params = 0.1 * torch.randn(config.population, config.controller_params)
    seeds = [*range(config.population // 2)] * 2
    rollout_returns(memory, bank, params, seeds, config.rollouts, config.temperature, steps)


def _one_at_a_time(config: Config) -> tuple[float, int]:
    """Dream steps per second with one rollout per process and one process per core, as in 2018."""
    processes = multiprocessing.cpu_count()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(_single_rollout, [(config, 50)] * processes)
        rates = pool.map(_single_rollout, [(config, 1500)] * processes, chunksize=1)
    return sum(rates), processes


@torch.no_grad()
def _single_rollout(job: tuple[Config, int]) -> float:
    """Steps per second of the fast step with a batch of one, random numbers included."""
    config, steps = job
    torch.set_num_threads(1)
    dream = FastDream(_endless_memory(config), config.temperature)
    dream.begin(torch.zeros(1, config.z_size), 0.1 * torch.randn(1, config.controller_params))
    start = time.perf_counter()
    for _ in range(steps):
        dream.advance(torch.rand(1, config.z_size), torch.randn(1, config.z_size))
    return steps / (time.perf_counter() - start)


def _vision(config: Config, device: torch.device) -> dict[str, Any]:
    vae = VAE(config.z_size).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.vision_lr, fused=True)
    images = torch.rand(config.vision_batch, 3, 64, 64, device=device)
    noise = torch.randn(config.vision_batch, config.z_size, device=device)
    timing = timed(lambda: vision_step(vae, optimizer, images, noise, config), device, repeats=9, warmup=2)
    return figure("V update, 100 frames", "ms", timing)


def _memory(config: Config, device: torch.device) -> dict[str, Any]:
    memory = _endless_memory(config).to(device)
    optimizer = torch.optim.Adam(memory.parameters(), lr=config.memory_lr, fused=True)
    shape = (config.memory_batch, config.memory_length)
    z, action = torch.randn(*shape, config.z_size, device=device), torch.rand(*shape, 1, device=device)
    batch = Batch(z, action, (torch.rand(shape, device=device) < 1 / 308).float())
    state = memory.initial_state(config.memory_batch)
    timing = timed(lambda: memory_step(memory, optimizer, batch, state, config), device, repeats=3)
    return figure(
        "M update, 100 x 500 frames",
        "ms",
        timing,
        published=590.0,
        published_source="about 0.59 s per step on a P100 (doomrnn/trainlog/gpu_jobs.log.txt)",
    )


def _game() -> dict[str, Any]:
    """Random play with the official preprocessing, as in data collection."""
    games = multiprocessing.cpu_count()
    with Worlds(TakeCover, games, games) as worlds:
        jobs = [partial(_length, seed=seed) for seed in range(4 * games)]
        lengths = worlds.each(jobs)
        timing = timed(lambda: worlds.each(jobs), torch.device("cpu"), repeats=3, warmup=0)
    return figure(f"Take Cover at 160 x 120, {games} games side by side", "steps/s", timing, sum(lengths))


def _length(game: TakeCover, seed: int) -> int:
    return len(random_episode(game, seed, 10)[0])


def _racing() -> list[dict[str, Any]]:
    """CarRacing on one core with the frames as gymnasium shows them, and with what V sees of them."""
    seed, steps = 0, 250
    # Half throttle and slow bends, as in the data collection.
    actions = np.array([(0.1 * np.sin(t / 20), 0.5, 0) for t in range(steps)], np.float32)
    theirs, ours = GymnasiumCarRacing(), CarRacing()

    def gymnasium() -> None:
        theirs.reset(seed=seed)
        for action in actions:
            theirs.step(action)

    def play(look: Callable[[], object]) -> None:
        ours.reset(seed)
        for action in actions:
            ours.step(action)
            look()

    cpu = torch.device("cpu")
    peer = timed(gymnasium, cpu, repeats=3)
    rate = steps / peer.median
    found = []
    for name, look in (("frames of 96 x 96", lambda: ours.frame), ("what V sees", ours.observe)):
        timing = timed(partial(play, look), cpu)
        words = f"gymnasium's own frames, {rate:,.0f} steps/s"
        ratio = round(steps / timing.median / rate, 1)
        found.append(figure(f"CarRacing with {name}, one core", "steps/s", timing, steps, peer=words, ratio=ratio))
    return found


# --- dreamerv3 ----------------------------------------------------------------------------------------------------

DREAMER_SOURCE = "another project's table for one GB200, bfloat16: the authors' JAX code 22.0 ms"


def dreamerv3(device: torch.device) -> list[dict[str, Any]]:
    """One update at batch 16 x 64: from vectors at size 1m, on a GPU also from images at 12m and 200m."""
    found = [_dreamer_update("1m", device, is_image=False, use_fast=True)]
    plain = _dreamer_update("1m", device, is_image=False, use_fast=False)
    words = f"the readable form of the same update: {plain['value']} ms"
    found[0] |= {"peer": words, "ratio": round(plain["value"] / found[0]["value"], 2)}
    if device.type == "cuda":
        found[0] |= {"published": 22.0, "published_source": DREAMER_SOURCE}
        found += [_dreamer_update(size, device, is_image=True, use_fast=True) for size in ("12m", "200m")]
    return [*found, _dreamer_act(device)]


def _dreamer_agent(size: str, is_image: bool, use_fast: bool) -> dreamer_agent.Agent:
    image = {"image": dreamer_spaces.ObsSpace("image", (64, 64, 3))}
    vectors = {name: dreamer_spaces.ObsSpace("float", (n,)) for name, n in (("position", 3), ("velocity", 2))}
    actions = dreamer_spaces.ActionSpace(18 if is_image else 1, is_discrete=is_image)
    config = dreamer_config.Config(size=size, use_fast=use_fast)
    return dreamer_agent.new_agent(image if is_image else vectors, actions, config)


def _dreamer_update(size: str, device: torch.device, *, is_image: bool, use_fast: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    agent = _dreamer_agent(size, is_image, use_fast).to(device)
    config, sizes, shape = agent.config, agent.world.rssm.sizes, (agent.config.batch_size, agent.config.batch_length)
    flags = torch.zeros(shape, dtype=torch.bool, device=device)
    obs = {name: torch.randn(*shape, *space.shape, device=device) for name, space in agent.world.encoder.spaces.items()}
    if is_image:
        obs = {"image": torch.randint(256, (*shape, 64, 64, 3), device=device, dtype=torch.uint8)}
    action = torch.randint(18, shape, device=device) if is_image else torch.rand(*shape, 1, device=device)
    batch = dreamer_data.Batch(
        obs=obs,
        prev_action=action,
        reward=torch.randn(shape, device=device),
        is_first=torch.rand(shape, device=device) < 0.01,
        is_last=flags,
        is_terminal=flags,
        start_h=torch.zeros(shape[0], sizes.deter, device=device),
        start_z=torch.zeros(shape[0], sizes.stoch, dtype=torch.uint8, device=device),
    )
    noise = agent.draw_noise(*shape, torch.Generator(device).manual_seed(0))
    learner = Learner(agent, new_optimizer(agent, config), config, dist.setup(str(device)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing = timed(lambda: learner.update(batch, noise), device, repeats=7, warmup=3 if device.type == "cuda" else 2)
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most" if device.type == "cuda" else ""
    world = "64 x 64 images" if is_image else "vectors"
    form = "" if use_fast else ", readable form"
    return figure(f"update, size {size}, {world}, 16 x 64{form}", "ms", timing, note=peak)


def _dreamer_act(device: torch.device) -> dict[str, Any]:
    agent, count = _dreamer_agent("1m", False, True).to(device), 16
    state, action = agent.world.rssm.initial_state(count), torch.zeros(count, 1, device=device)
    obs = {name: torch.randn(count, *s.shape, device=device) for name, s in agent.world.encoder.spaces.items()}
    uniform, noise = (part.to(device) for part in agent.draw_act_noise(count, torch.Generator().manual_seed(0)))
    is_first = torch.zeros(count, dtype=torch.bool, device=device)
    timing = timed(lambda: agent.act(state, action, obs, is_first, uniform, noise), device, repeats=15, warmup=3)
    return figure(f"acting, size 1m, vectors, {count} worlds", "steps/s", timing, count)


SUITES = {"ha2018": ha2018, "dreamerv3": dreamerv3}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").strip())
    parser.add_argument("paper", nargs="*", help=f"one or more of {', '.join(SUITES)}; default: all")
    parser.add_argument("--device", help="torch device; default: cuda where there is one, else cpu")
    options = parser.parse_args(argv)
    unknown = [name for name in options.paper if name not in SUITES]
    if unknown:
        print(f"throughput: error: unknown paper {unknown[0]}; known: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    np.random.seed(0)
    for paper in options.paper or [name for name in PAPERS if name in SUITES]:
        name = describe_device(str(device))
        record = {
            "schema": records.SCHEMA,
            "paper": paper,
            "device": name,
            "revision": git_revision(),
            "packages": package_versions(),
            "command": command_line(),
            "measurements": SUITES[paper](device),
        }
        records.check_speed(record)
        path = records.FOLDER / paper / "throughput" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
        for row in record["measurements"]:
            peer = f"   {row['ratio']} x {row['peer']}" if row["peer"] else ""
            print(f"{row['name']:<55} {row['value']:>10,.4g} {row['unit']}{peer}")
        print(f"recorded: {path.relative_to(records.FOLDER.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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

from benchmarks import records
from benchmarks.rows import PAPERS
from common.run import (
    atomic_write,
    command_line,
    describe_device,
    git_revision,
    package_versions,
    usable_device,
)
from ha2018.config import Config
from ha2018.data import Batch
from ha2018.dream import FirstFrames, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.env import Worlds, random_episode
from ha2018.memory import MDNRNN
from ha2018.train import memory_step, vision_step
from ha2018.vision import VAE
from ijepa.build import build, mask_config, schedule
from ijepa.config import Config as IJEPAConfig
from ijepa.jepa import JEPA, new_optimizer
from ijepa.masks import Masks, sample_masks
from ijepa.ram_probe import Probes
from ijepa.train import micro_step, train_step
from ijepa.vit import Attention, Block


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
    found += [_vision(config, device), _memory(config, device), _game()]
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
    with Worlds(games, 2100) as worlds:
        lengths: list[int] = []

        def play(seed: int) -> Callable[[Any], int]:
            return lambda game: len(random_episode(game, seed, 10)[0])

        def episodes() -> None:
            lengths[:] = worlds.each([play(seed) for seed in range(4 * games)])

        timing = timed(episodes, torch.device("cpu"), repeats=3)
    return figure(f"Take Cover at 160 x 120, {games} games side by side", "steps/s", timing, sum(lengths))


# --- ijepa --------------------------------------------------------------------------------------------------------


def ijepa(device: torch.device) -> list[dict[str, Any]]:
    """Pretraining updates on random images, mask sampling, and the probes of AtariARI."""
    torch.manual_seed(0)
    product = matmul_rate(device)
    gflops = 2 * 2048**3 / product.median / 1e9
    found = [figure("float32 matrix product 2048", "GFLOP/s", product, 2 * 2048**3 / 1e9)]
    small = IJEPAConfig(
        size=(64, 64), patch=8, encoder="small", predictor_depth=6, min_keep=4, batch=64, micro_batch=64
    )
    cases = [("ViT-S/8 at 64 px, batch 64", small)]
    if device.type == "cuda":
        base = IJEPAConfig(patch=16, encoder="base", predictor_depth=6, batch=256, micro_batch=256)
        cases += [("ViT-B/16 at 224 px, batch 256", base)]
        cases += [("ViT-H/14 at 224 px, batch 64", IJEPAConfig(batch=64, micro_batch=64))]
    for name, config in cases:
        step, flops = _jepa_update(config, device)
        timing = timed(step, device, repeats=5, warmup=3)
        peer = None
        if device.type == "cpu":
            peer = timed(_jepa_update(config, device, is_written_out=True)[0], device, repeats=5, warmup=1).median
        found += [
            figure(
                f"pretraining update, {name}",
                "images/s",
                timing,
                config.batch,
                peer=None
                if peer is None
                else f"the same with attention and optimiser written out: {config.batch / peer:,.1f} images/s",
                ratio=None if peer is None else round(peer / timing.median, 2),
            ),
            figure(
                f"pretraining update, {name}, share of the float32 matrix product rate",
                "GFLOP/s",
                timing,
                flops / 1e9,
                peer=f"float32 matrix product, {gflops:,.0f} GFLOP/s",
                ratio=round(flops / timing.median / 1e9 / gflops, 3),
            ),
        ]
    masks = mask_config(IJEPAConfig(), (16, 16))
    sampling = timed(lambda: sample_masks(masks, 128, 0, torch.Generator().manual_seed(0)), torch.device("cpu"))
    return [*found, figure("masks of 128 images, 16 x 16 patches", "ms", sampling), _ram_probes()]


def _jepa_update(
    config: IJEPAConfig, device: torch.device, is_written_out: bool = False
) -> tuple[Callable[[], object], float]:
    """One update on fixed images and masks, and its floating point operations in matrix products.

    is_written_out: attention as softmax(q k) v and AdamW tensor by tensor, as in the authors' code.
    """
    model = build(config, 3).to(device)
    masks = sample_masks(mask_config(config, model.encoder.grid), config.batch, 0, torch.Generator().manual_seed(0))
    images = torch.randn(config.batch, 3, *config.size, device=device)
    rates, optimizer, is_cuda = schedule(config, 1000), new_optimizer(model), device.type == "cuda"
    if is_written_out:
        groups = [{**group, "fused": False, "foreach": False} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, foreach=False)
        for module in model.modules():
            if isinstance(module, Attention):
                module.forward = partial(_written_out, module)  # type: ignore[method-assign]
            elif isinstance(module, Block):
                module.last = partial(_cut, module)  # type: ignore[method-assign]
    step = torch.compile(micro_step, dynamic=True) if is_cuda else micro_step
    batches = [(images, masks.to(device))]

    def update() -> None:
        train_step(model, optimizer, batches, rates, 5, bfloat16=is_cuda and config.bfloat16, step=step)

    return update, _jepa_flops(model, config, masks)


def _cut(block: Block, x: torch.Tensor, count: int) -> torch.Tensor:
    return block(x)[:, -count:]


def _written_out(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def _jepa_flops(model: JEPA, config: IJEPAConfig, masks: Masks) -> float:
    """Of the matrix products of one update: the target encoder once, the rest three times for its gradient."""
    size, patches = model.encoder.size, model.encoder.grid[0] * model.encoder.grid[1]
    known, asked = masks.context[0].shape[1], masks.target[0].shape[1]

    def transformer(tokens: int, width: int, hidden: int, depth: int) -> float:
        return depth * tokens * (8 * width**2 + 4 * width * hidden + 4 * tokens * width)

    pixels = 2 * patches * 3 * config.patch**2 * size.width
    target = transformer(patches, size.width, size.hidden, size.depth) + pixels
    context = transformer(known, size.width, size.hidden, size.depth) + pixels
    narrow = config.predictor_width
    predicted = transformer(known + asked, narrow, 4 * narrow, config.predictor_depth)
    predicted += 2 * (known + asked) * narrow * size.width
    return config.batch * (target + 3 * (context + config.targets * predicted))


def _ram_probes() -> dict[str, Any]:
    """Updates of six probes on 256 features, as for Pong."""
    probes = Probes(256, 6, torch.Generator().manual_seed(0))
    x, labels = torch.randn(64, 256), torch.randint(256, (64, 6))

    def updates() -> None:
        for _ in range(50):
            probes.step(x, labels, range(6))

    return figure("AtariARI, six linear probes, batch 64", "updates/s", timed(updates, torch.device("cpu")), 50)


SUITES = {"ha2018": ha2018, "ijepa": ijepa}


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

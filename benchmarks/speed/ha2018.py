"""World Models: dream, games, V and M at the paper's sizes."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.speed.timing import Timing, figure, matmul_rate, timed
from common import dist
from common.graph import WARM_UPS
from common.precision import compute_dtype
from ha2018.config import Config
from ha2018.controller import doom_action
from ha2018.dream import Dream, FirstFrames, rollout_returns
from ha2018.dream_fast import FastDream
from ha2018.encoding import Batch
from ha2018.env import TakeCover
from ha2018.memory import MDNRNN, mdn_nll, restart_loss
from ha2018.processes import Games
from ha2018.random_play import doom_episode
from ha2018.train import new_memory_learner, new_vision_learner
from ha2018.vision import VAE

HISTORY = "published 108 s per generation: 195,352 s for 1,800 generations on 64 cores (doomrnn/log)"
CONFIG = Config()
STEPS = 900  # of a rollout: the published population mean at the end
TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)  # of table 2
REPEATS = 5  # of the peer that dreams one rollout at a time
SMOKE = {
    "CONFIG": replace(
        CONFIG, z_size=8, hidden_size=16, population=8, rollouts=2, memory_batch=4, memory_length=8, vision_batch=4
    ),
    "STEPS": 20,
    "REPEATS": 0,
}


def measure_dream(device: torch.device) -> list[dict[str, Any]]:
    """The dream at the paper's sizes for Doom."""
    config = CONFIG
    torch.manual_seed(0)
    memory = _endless_memory(config).to(device)
    before = matmul_rate(device)
    repeats = min(REPEATS, 1) if device.type == "cuda" else REPEATS  # of processes that have no use of the GPU
    single, processes = _one_at_a_time(config, _readable_rollout, repeats)
    single_fast, _ = _one_at_a_time(config, _fast_rollout, repeats)
    # A whole generation takes long enough to meet the machine's faster and slower moments, as its peers do.
    rollouts, steps = config.population * config.rollouts, STEPS
    exact, generation = (
        timed(_generation(memory, config, steps, device, dtype), device, repeats=3, warmup=int(device.type == "cuda"))
        for dtype in (torch.float32, compute_dtype("auto", device))
    )
    after = matmul_rate(device)
    rate, exact_rate = rollouts * steps / generation.median, rollouts * steps / exact.median
    precision = f"products in {str(compute_dtype('auto', device)).removeprefix('torch.')}"
    gflops = 2 * 2048**3 / min(before.median, after.median) / 1e9  # the faster, so the share is not flattered
    flops = 2 * sum(p.numel() for p in (memory.kernel, memory.output_w))
    together = _temperatures(memory, device, generation) if device.type == "cuda" else []
    return [
        *together,
        figure("float32 matrix product 2048, before the dream", "GFLOP/s", before, 2 * 2048**3 / 1e9),
        figure("float32 matrix product 2048, after the dream", "GFLOP/s", after, 2 * 2048**3 / 1e9),
        figure(
            "full-size generation, 64 x 16 rollouts of 900 steps",
            "s",
            generation,
            published=108.0,
            published_source=HISTORY,
            note=f"{precision}; 900 steps: the published population mean at the end",
        ),
        figure(
            "dream, 64 x 16 rollouts as one batch",
            "steps/s",
            generation,
            rollouts * steps,
            peer=f"the same M one rollout at a time, {processes} CPU processes: {single:,.0f} steps/s",
            ratio=round(rate / single, 2),
            note=f"{precision}; the peer as in 2018: one process per core, float32, the readable step of dream.py",
        ),
        figure(
            "dream, 64 x 16 rollouts, beside the fast step with one rollout",
            "steps/s",
            generation,
            rollouts * steps,
            peer=f"dream_fast.py with a batch of one, {processes} CPU processes: {single_fast:,.0f} steps/s",
            ratio=round(rate / single_fast, 2),
            note=f"{precision}; the peer in float32",
        ),
        figure(
            "dream, 64 x 16 rollouts as one batch, float32",
            "steps/s",
            exact,
            rollouts * steps,
            peer=f"the same M one rollout at a time, {processes} CPU processes: {single:,.0f} steps/s",
            ratio=round(exact_rate / single, 2),
            note="as in the paper preset",
        ),
        figure(
            "dream in float32, share of the matrix product rate",
            "GFLOP/s",
            exact,
            rollouts * steps * flops / 1e9,
            peer=f"float32 matrix product, {gflops:,.0f} GFLOP/s",
            ratio=round(exact_rate * flops / 1e9 / gflops, 3),
        ),
    ]


def _temperatures(memory: MDNRNN, device: torch.device, single: Timing) -> list[dict[str, Any]]:
    """A generation of each temperature of table 2, all as one batch."""
    count = len(TEMPERATURES)
    each = replace(CONFIG, population=count * CONFIG.population)
    temperatures = [tau for tau in TEMPERATURES for _ in range(CONFIG.population)]
    call = _generation(memory, each, STEPS, device, compute_dtype("auto", device), temperatures)
    timing = timed(call, device, repeats=3, warmup=1)
    return [
        figure(
            f"full-size generations of {count} temperatures as one batch, 900 steps",
            "s",
            timing,
            peer=f"one after another: {count * single.median:.2f} s",
            ratio=round(count * single.median / timing.median, 2),
        )
    ]


def measure_vision(device: torch.device) -> list[dict[str, Any]]:
    """An update of V at the paper's sizes."""
    torch.manual_seed(0)
    return [_vision(CONFIG, device)]


def measure_memory(device: torch.device) -> list[dict[str, Any]]:
    """An update of M at the paper's sizes."""
    torch.manual_seed(0)
    return _memory(CONFIG, device)


def measure_games(device: torch.device) -> list[dict[str, Any]]:
    """Both games, on the processor whatever the device."""
    return [_game(), *_racing()]


def _endless_memory(config: Config) -> MDNRNN:
    """An M that never predicts a restart, so that every rollout takes all steps."""
    memory = MDNRNN(config.z_size, 1, config.hidden_size, config.mixtures, predicts_restart=True)
    with torch.no_grad():
        memory.output_w[:, 0], memory.output_b[0] = 0, -20
    return memory


def _generation(
    memory: MDNRNN,
    config: Config,
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float | Sequence[float] = CONFIG.temperature,
) -> Callable[[], object]:
    """A whole generation, as training has it: its graphs are captured once and serve all of them."""
    bank = FirstFrames(torch.zeros(100, config.z_size, device=device), torch.zeros(100, config.z_size, device=device))
    params = 0.1 * torch.randn(config.population, config.controller_params)
    seeds = [k % (CONFIG.population // 2) for k in range(config.population)]  # common random numbers
    fast = FastDream(memory, dtype)
    dream = memory, bank, params, seeds, config.rollouts, temperature, steps, dtype, fast
    return lambda: rollout_returns(*dream)


Rollout = Callable[[Config, int], float]


def _one_at_a_time(config: Config, rollout: Rollout, repeats: int) -> tuple[float, int]:
    """Dream steps per second with one rollout per process and one process per core; 1 if that is not measured."""
    processes = multiprocessing.cpu_count()
    if not repeats:
        return 1.0, processes
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(rollout, [(config, 50)] * processes)
        rates = [sum(pool.starmap(rollout, [(config, 2000)] * processes, chunksize=1)) for _ in range(repeats)]
    return statistics.median(rates), processes


@torch.no_grad()
def _readable_rollout(config: Config, steps: int) -> float:
    """Steps per second of dream.py with a batch of one, random numbers included."""
    torch.set_num_threads(1)
    dream = Dream(_endless_memory(config), config.temperature, steps)
    params = 0.1 * torch.randn(config.controller_params)
    obs = dream.reset(torch.zeros(1, config.z_size))
    start = time.perf_counter()
    for _ in range(steps):
        obs, _, _ = dream.step(doom_action(params, obs), torch.rand(1, config.z_size), torch.randn(1, config.z_size))
    return steps / (time.perf_counter() - start)


@torch.no_grad()
def _fast_rollout(config: Config, steps: int) -> float:
    """The same of dream_fast.py."""
    torch.set_num_threads(1)
    dream = FastDream(_endless_memory(config))
    dream.begin(torch.zeros(1, config.z_size), 0.1 * torch.randn(1, config.controller_params), config.temperature)
    start = time.perf_counter()
    for _ in range(steps):
        dream.advance(torch.rand(1, config.z_size), torch.randn(1, config.z_size))
    return steps / (time.perf_counter() - start)


def _vision(config: Config, device: torch.device) -> dict[str, Any]:
    vae = VAE(config.z_size).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.vision_lr, fused=True)
    images = torch.rand(config.vision_batch, 3, 64, 64, device=device)
    noise = torch.randn(config.vision_batch, config.z_size, device=device)
    learner = new_vision_learner(vae, optimizer, config, _alone(device))
    timing = timed(partial(learner, images, noise), device, repeats=9, warmup=_warm_ups(device, 2))
    return figure("V update, 100 frames", "ms", timing)


def _memory(config: Config, device: torch.device) -> list[dict[str, Any]]:
    """An update of M in float32, where the device has it in bfloat16 too, and with torch's own LSTM and autograd."""
    shape = (config.memory_batch, config.memory_length)
    z, action = torch.randn(*shape, config.z_size, device=device), torch.rand(*shape, 1, device=device)
    batch = Batch(z, action, (torch.rand(shape, device=device) < 1 / 308).float())
    peer = timed(_torch_lstm_update(config, batch), device, repeats=3)
    found = []
    for dtype in dict.fromkeys((torch.float32, compute_dtype("auto", device))):
        memory = _endless_memory(config).to(device)
        optimizer = torch.optim.Adam(memory.parameters(), lr=config.memory_lr, fused=True)
        precise = replace(config, precision=str(dtype).removeprefix("torch."))
        learner = new_memory_learner(memory, optimizer, precise, _alone(device))
        update = partial(learner, batch, memory.initial_state(config.memory_batch))
        timing = timed(update, device, repeats=3, warmup=_warm_ups(device, 1))
        found.append(
            figure(
                f"M update, 100 x 500 frames, products in {str(dtype).removeprefix('torch.')}",
                "ms",
                timing,
                peer=f"torch.nn.LSTM and autograd, float32: {1000 * peer.median:,.0f} ms",
                ratio=round(peer.median / timing.median, 2),
                published=590.0,
                published_source="about 0.59 s per step on a P100 (doomrnn/trainlog/gpu_jobs.log.txt)",
            )
        )
    return found


def _alone(device: torch.device) -> dist.Ranks:
    return dist.Ranks(0, 1, 0, device)


def _warm_ups(device: torch.device, on_cpu: int) -> int:
    """On a GPU those before a capture, and the capture."""
    return WARM_UPS + 1 if device.type == "cuda" else on_cpu


def _torch_lstm_update(config: Config, batch: Batch) -> Callable[[], None]:
    """The same update as a user of torch would write it; its LSTM is spared the dropping of states at restarts."""
    device = batch.z.device
    memory = _endless_memory(config).to(device)  # its output layer and losses alone
    lstm = torch.nn.LSTM(memory.input_size, config.hidden_size, batch_first=True).to(device)
    parameters = [memory.output_w, memory.output_b, *lstm.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.memory_lr, fused=True)

    def update() -> None:
        h, _ = lstm(memory.inputs(batch.z, batch.action, batch.restart)[:, :-1])
        prediction = memory.predict(h)
        assert prediction.restart_logit is not None
        loss = mdn_nll(prediction, batch.z[:, 1:])
        loss = loss + restart_loss(prediction.restart_logit, batch.restart[:, 1:], config.restart_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_value_(parameters, config.gradient_clip)
        optimizer.step()

    return update


def _game() -> dict[str, Any]:
    """Random play with the official preprocessing, as in data collection."""
    count = multiprocessing.cpu_count()
    with Games(TakeCover, count, count) as games:
        jobs = [partial(_length, seed=seed) for seed in range(4 * count)]
        lengths = list(games.each(jobs))
        timing = timed(lambda: list(games.each(jobs)), torch.device("cpu"), repeats=3, warmup=0)
    return figure(f"Take Cover at 160 x 120, {count} games side by side", "steps/s", timing, sum(lengths))


def _length(game: TakeCover, seed: int) -> int:
    return len(doom_episode(game, seed, 10)[0])


def _racing() -> list[dict[str, Any]]:
    """CarRacing on one core with the frames as gymnasium shows them, and with what V sees of them."""
    from gymnasium.envs.box2d.car_racing import CarRacing as GymnasiumCarRacing  # here: the rest needs no game

    from ha2018.racing import CarRacing

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

"""Planning at work: at each state a plan, a few of its actions, and a plan again.

Shapes: E episodes, S numbers of a state, A of a model's action, H model steps.
Source: V-JEPA 2, section 3.2; EB-JEPA (arXiv 2602.03604); DINO-WM (arXiv 2411.04983), section 4.
"""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import run as runs
from common.files import atomic_write
from vjepa.ac import audit
from vjepa.ac.config import Config
from vjepa.ac.imagination import Imagination, cost_of
from vjepa.ac.planner import EpisodeNoise, Plan, anywhere, cem, mppi, within_norm
from vjepa.ac.worlds.world import Episodes, World
from vjepa.data import DAMAGED

SHARPNESS = 0.005


@torch.no_grad()
def plan_once(
    imagination: Imagination, world: World, episodes: Episodes, state: Tensor, goal: Tensor, step: int, config: Config
) -> Plan:
    """The plan of each episode at a step of the world: state [E, S], goal [E, ...] latents -> actions [E, H, A]."""
    left = -(-(config.budget - step) // config.frame_skip)
    horizon, size = min(config.horizon, left), config.frame_skip * world.action_size
    noise = EpisodeNoise(episodes.seeds, step, (config.samples, horizon, size), state.device)
    present = imagination.encode(world.render(state, episodes.layout))
    cost = cost_of(imagination, present, state, goal, config.objective)
    mean = torch.zeros(len(state), horizon, size, device=state.device)
    std = torch.full_like(mean, config.std)
    counts = {"iterations": config.iterations, "elites": config.elites}
    if config.planner == "mppi":
        return mppi(cost, noise, mean, std, noise.choice, **counts, sharpness=SHARPNESS)
    bound = anywhere if config.most is None else within_norm(config.most)
    return cem(cost, noise, mean, std, **counts, bound=bound, has_mean=config.has_mean)


@torch.no_grad()
def play_plans(imagination: Imagination, world: World, episodes: Episodes, config: Config) -> Tensor:
    """The trace [E, budget + 1, S] of planning, acting and planning again; all episodes are planned as one batch.

    An episode that has reached a goal that counts on the way is planned no further; its last state is repeated.
    """
    goal = imagination.encode(world.render(episodes.goal, episodes.layout))
    pushes = audit.push_noise(episodes, config.budget)
    trace = episodes.start[:, None].repeat(1, config.budget + 1, 1)
    step = 0
    running = torch.arange(len(trace), device=trace.device)
    while step < config.budget and len(running):
        part = Episodes(
            episodes.start[running],
            episodes.goal[running],
            episodes.layout[running],
            tuple(episodes.seeds[k] for k in running.tolist()),
        )
        state = trace[running, step]
        plan = plan_once(imagination, world, part, state, goal[running], step, config)
        moves = plan.actions[:, : config.execute].unflatten(2, (config.frame_skip, -1)).flatten(1, 2)
        is_there = torch.zeros(len(running), dtype=torch.bool, device=trace.device)
        for move in moves[:, : config.budget - step].unbind(1):
            after = world.step(state, move, part.layout, pushes[running, step])
            state = torch.where(is_there[:, None], state, after)
            step += 1
            trace[running, step:] = state[:, None]
            if config.judged == "step":
                is_there |= world.distance(state, part.goal) < world.radius
        if config.judged == "plan":
            is_there = world.distance(state, part.goal) < world.radius
        running = running[~is_there]
    return trace


def play_all(
    imagination: Imagination, world: World, episodes: Episodes, config: Config, name: str, kept: Path | None = None
) -> tuple[Tensor, float]:
    """`play_plans` of all episodes, and the seconds they took: on a GPU as one batch, on a CPU one after the other.

    Rounding in a matrix product depends on how many rows it has. One by one, each product of an episode has the same
    shape whatever the test holds beside it, so its plans are the same bit for bit; and on a CPU it costs nothing.
    kept: a folder for the traces of finished episodes, so that an interrupted test goes on.
    """
    count = len(episodes.start)
    size = 1 if episodes.start.device.type == "cpu" else count
    traces, total = [], 0.0
    with runs.progress_bar(count, name, unit="episode") as bar:
        for first in range(0, count, size):
            part = episodes.select(slice(first, first + size))
            path = None if kept is None else kept / f"{first}.npz"
            found = None if path is None else _read_trace(path, part, config)
            if found is None:
                start = time.monotonic()
                trace = play_plans(imagination, world, part, config).cpu()  # waits for the device
                found = trace, time.monotonic() - start
                if path is not None:
                    _write_trace(path, *found)
            traces.append(found[0])
            total += found[1]
            bar.update(len(part.start))
    return torch.cat(traces), total


def _write_trace(path: Path, trace: Tensor, seconds: float) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, states=trace.numpy(), seconds=np.float64(seconds))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, buffer.getvalue())


def _read_trace(path: Path, episodes: Episodes, config: Config) -> tuple[Tensor, float] | None:
    """None if there is none, or no whole one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            trace, seconds = torch.from_numpy(file["states"]), float(file["seconds"])
    except (*DAMAGED, KeyError):
        return None
    wanted = (len(episodes.start), config.budget + 1, episodes.start.shape[1])
    is_ours = trace.shape == wanted and torch.equal(trace[:, 0], episodes.start.cpu())
    return (trace, seconds) if is_ours else None


def judged_every(config: Config) -> int:
    """Steps of the world between two looks at the goal; 0: at the end alone."""
    return {"end": 0, "step": 1, "plan": config.execute * config.frame_skip}[config.judged]

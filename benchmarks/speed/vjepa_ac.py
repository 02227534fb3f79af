"""Planning with V-JEPA 2-AC and the recipe of Two Rooms: rollouts, plans, updates; a part of `speed/vjepa.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.speed.timing import figure, timed
from common import dist
from common.precision import compute_dtype
from vjepa.ac import build, play, train
from vjepa.ac.config import PRESETS, TASKS, Config
from vjepa.ac.data import batch_of
from vjepa.ac.imagination import cost_of
from vjepa.ac.worlds.catalogue import new_world
from vjepa.ac.worlds.world import Episodes, new_episodes, seeds_of_test

EPISODES = {"cpu": 1, "cuda": 20}  # planned as one batch
WINDOWS = {"cpu": 16, "cuda": 384}


def measure_planning(device: torch.device) -> list[dict[str, Any]]:
    """Two Rooms at its published sizes: candidate rollouts a second, one plan, one update."""
    config = Config(**{**PRESETS["paper"].values, **TASKS["two-rooms"]})
    world, count = new_world(config.task), EPISODES[device.type]
    model = build.new_model(config, world).to(device)
    imagination = build.imagination_of(model.eval(), world, config)
    drawn = new_episodes(world, seeds_of_test(count))
    start, goal, layout = (part.to(device) for part in (drawn.start, drawn.goal, drawn.layout))
    episodes = Episodes(start, goal, layout, drawn.seeds)
    with torch.no_grad():
        latents = imagination.encode(world.render(goal, layout))
        present = imagination.encode(world.render(start, layout))
    cost = cost_of(imagination, present, start, latents, config.objective)
    actions = torch.randn(count, config.samples, config.horizon, world.action_size, device=device)
    rollouts = timed(partial(torch.no_grad()(cost), actions), device, repeats=7, warmup=2)
    plan = timed(partial(play.plan_once, imagination, world, episodes, start, latents, 0, config), device, repeats=3)
    size = f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads"
    words = f"horizon {config.horizon}, {count} episode{'s' if count > 1 else ''} at once"
    found = [
        figure(f"Two Rooms, candidates, {words}", "rollouts/s", rollouts, count * config.samples, note=size),
        figure(f"Two Rooms, a plan of {config.iterations} iterations, {words}", "ms", plan, note=size),
    ]
    return [*found, _update(config, device, size)]


def _update(config: Config, device: torch.device, size: str) -> dict[str, Any]:
    """One update with its data, which are made anew each time."""
    windows, world = WINDOWS[device.type], new_world(config.task)
    config = Config(**{**vars(config), "batch_size": windows})
    model = build.new_model(config, world).to(device)
    optimizer, schedule, ranks = train.optimizer_of(model), build.new_schedule(config), dist.setup(str(device))
    losses = torch.compile(train.model_losses) if device.type == "cuda" else train.model_losses
    dtype = compute_dtype(config.precision, device)
    updates = iter(range(config.updates))

    def update() -> None:
        number = next(updates)
        batch = batch_of(world, config, None, "speed", number, ranks)
        train.train_step(model, optimizer, batch, world, config, schedule, number, dtype=dtype, losses=losses)

    timing = timed(update, device, repeats=5, warmup=2)
    return figure(f"Two Rooms, an update on {windows} windows with its data", "ms", timing, note=size)

"""V-JEPA: pretraining updates of both generations, mask sampling, and planning in Two Rooms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.pretraining import beside, beside_cases, pretraining
from benchmarks.speed.timing import figure, timed
from common import dist
from common.precision import compute_dtype
from vjepa.ac import build as plan_build
from vjepa.ac import play
from vjepa.ac import train as plan_train
from vjepa.ac.config import Config as PlanConfig
from vjepa.ac.data import batch_of
from vjepa.ac.imagination import cost_of
from vjepa.ac.worlds.catalogue import new_world
from vjepa.ac.worlds.world import Episodes, new_episodes, seeds_of_test
from vjepa.build import mask_kinds, new_model, new_schedule
from vjepa.config import TASKS, Config
from vjepa.jepa import JEPA, new_optimizer
from vjepa.masks import Masks, sample_masks
from vjepa.train import compile_blocks, train_step
from vjepa.vit import Attention, Block, Rotation, rotate

CPU = torch.device("cpu")
SMALL = Config(
    frames=8, size=(64, 64), patch=8, encoder="tiny", predictor_width=96, predictor_depth=4, predictor_heads=3,
    batch_size=8, micro_batch_size=8,
)  # fmt: skip
SECOND_SMALL = replace(SMALL, positions="rotary", clip=None)
LARGE = Config(batch_size=24)
GIANT = Config(**{**TASKS["videos-2"], "batch_size": 8, "micro_batch_size": 8})
PLAN = PlanConfig()
_TINY = replace(
    SMALL, encoder="pico", predictor_width=24, predictor_depth=1, predictor_heads=2, batch_size=2, micro_batch_size=2
)
SMOKE = {
    **dict.fromkeys(("SMALL", "SECOND_SMALL", "LARGE", "GIANT"), _TINY),
    "PLAN": replace(
        PLAN, side=17, channels=(4, 4), width=16, frames=5, rollout_steps=3, horizon=4, samples=8, elites=2,
        iterations=2,
    ),
    "WINDOWS": {"cpu": 2, "cuda": 2},
}  # fmt: skip
EPISODES = {"cpu": 1, "cuda": 20}  # planned as one batch
WINDOWS = {"cpu": 16, "cuda": 384}


def measure(device: torch.device) -> list[dict[str, Any]]:
    """Pretraining updates on random clips at a small size, and mask sampling."""
    kinds, generator = mask_kinds(Config()), torch.Generator().manual_seed(0)
    sampling = timed(lambda: sample_masks(kinds, (8, 14, 14), 24, 0, generator), CPU)
    sampled = figure("masks of 24 clips, 8 x 14 x 14 tokens", "ms", sampling)
    if device.type == "cuda":
        return [sampled]
    found = [*_pretraining(SMALL, device, has_rate=True), *_pretraining(SECOND_SMALL, device)]
    return [*found, sampled]


def measure_large(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, pretraining updates of V-JEPA's ViT-L/16."""
    return _pretraining(LARGE, device, has_rate=True) if device.type == "cuda" else []


def measure_giant(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, pretraining updates of V-JEPA 2's ViT-g/16."""
    return _pretraining(GIANT, device) if device.type == "cuda" else []


def _pretraining(case: Config, device: torch.device, has_rate: bool = False) -> list[dict[str, Any]]:
    return pretraining(_update, case, _title(case), "clips", device, has_rate)


def measure_beside(checkouts: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """The pretraining update of V-JEPA in turns with that of the authors' code, on the same masks and device."""
    found = []
    for checkout in checkouts.items():
        for case, theirs in beside_cases(SMALL, (LARGE,), device):
            model = new_model(case, 3)
            found.append(
                beside(
                    checkout,
                    case,
                    theirs,
                    device,
                    update=_update(case, device)[0],
                    model=model,
                    masks=_masks(case, model),
                    small=small_updates,
                    words=_title(case),
                    unit="clips",
                    more={"frames": case.frames},
                )
            )
    return found


def small_updates(precision: str) -> None:
    """Build the learner that is measured beside others and make a few updates, for their memory."""
    update, _ = _update(replace(SMALL, precision=precision), CPU)
    for _ in range(3):
        update()


def _title(config: Config) -> str:
    name = "V-JEPA" if config.positions == "sincos" else "V-JEPA 2"
    letter = config.encoder if config.encoder == "tiny" else config.encoder[0].upper()
    return f"{name} ViT-{letter}/{config.patch} at {config.frames} x {config.size[0]} px, batch {config.batch_size}"


def _masks(config: Config, model: JEPA) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return sample_masks(mask_kinds(config), model.encoder.grid, config.batch_size, 0, generator)


def _update(config: Config, device: torch.device, is_written_out: bool = False) -> tuple[Callable[[], object], float]:
    """One update on fixed clips and masks, and its floating point operations in matrix products.

    is_written_out: attention as softmax(q k) v and AdamW tensor by tensor.
    """
    model = new_model(config, 3).to(device)
    masks = _masks(config, model)
    clips = torch.randn(config.batch_size, 3, config.frames, *config.size, device=device)
    rates, optimizer = new_schedule(config, 1000), new_optimizer(model)
    if is_written_out:
        groups = [{**group, "fused": False, "foreach": False} for group in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, foreach=False)
        for module in model.modules():
            if isinstance(module, Attention):
                module.forward = partial(_written_out, module)  # type: ignore[method-assign]
            elif isinstance(module, Block):
                module.forward = partial(_cut, module)  # type: ignore[method-assign]
    elif device.type == "cuda":
        compile_blocks(model)
    batches = [(clips, masks.to(device))]

    def update() -> None:
        train_step(model, optimizer, batches, rates, 5, dtype=compute_dtype(config.precision, device))

    return update, _flops(model, config, masks)


def _cut(
    block: Block,
    x: torch.Tensor,
    by: Rotation | None = None,
    mask: torch.Tensor | None = None,
    last: int | None = None,
) -> torch.Tensor:
    """All tokens of a block, then the last ones."""
    x = x + block.attn(block.norm1(x), by, mask)
    x = x + block.mlp(block.norm2(x))
    return x if last is None else x[:, -last:]


def _written_out(attention: Attention, x: torch.Tensor, by: Rotation | None, mask: torch.Tensor | None) -> torch.Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    if by is not None:
        q, k = rotate(q, by), rotate(k, by)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def _flops(model: JEPA, config: Config, masks: Masks) -> float:
    """Of the matrix products of one update: the target encoder once, the rest three times for its gradient."""
    size, tokens = model.encoder.size, math.prod(model.encoder.grid)

    def transformer(tokens: int, width: int, hidden: int, depth: int) -> float:
        return depth * tokens * (8 * width**2 + 4 * width * hidden + 4 * tokens * width)

    pixels = 2 * 3 * config.tubelet * config.patch**2 * size.width
    total = transformer(tokens, size.width, size.hidden, size.depth) + tokens * pixels
    narrow = config.predictor_width
    for context, target in zip(masks.context, masks.target, strict=True):
        known, asked = context.shape[1], target.shape[1]
        total += 3 * (transformer(known, size.width, size.hidden, size.depth) + known * pixels)
        total += 3 * transformer(known + asked, narrow, 4 * narrow, config.predictor_depth)
        total += 3 * 2 * (known + asked) * narrow * size.width
    return config.batch_size * total


def measure_planning(device: torch.device) -> list[dict[str, Any]]:
    """Two Rooms at its published sizes: candidate rollouts a second, one plan, one update of the world model."""
    config, count = PLAN, EPISODES[device.type]
    world = new_world(config.task)
    model = plan_build.new_model(config, world).to(device)
    imagination = plan_build.imagination_of(model.eval(), world, config)
    drawn = new_episodes(world, seeds_of_test(count))
    start, goal, layout = (part.to(device) for part in (drawn.start, drawn.goal, drawn.layout))
    episodes = Episodes(start, goal, layout, drawn.seeds)
    actions = torch.randn(count, config.samples, config.horizon, world.action_size, device=device)
    with torch.no_grad():
        wanted, present = (imagination.encode(world.render(state, layout)) for state in (goal, start))
        cost = cost_of(imagination, present, start, wanted, config.objective)
        rollouts = timed(partial(cost, actions), device, repeats=7, warmup=2)
    plan = timed(partial(play.plan_once, imagination, world, episodes, start, wanted, 0, config), device, repeats=3)
    note = f"{sum(p.numel() for p in model.parameters()):,} parameters, {torch.get_num_threads()} threads"
    words = f"horizon {config.horizon}, {count} episode{'s' if count > 1 else ''} at once"
    return [
        figure(f"Two Rooms, candidates, {words}", "rollouts/s", rollouts, count * config.samples, note=note),
        figure(f"Two Rooms, a plan of {config.iterations} iterations, {words}", "ms", plan, note=note),
        _plan_update(config, device, note),
    ]


def _plan_update(config: PlanConfig, device: torch.device, note: str) -> dict[str, Any]:
    """One update with its walks, which are new each time."""
    config, world = replace(config, batch_size=WINDOWS[device.type]), new_world(config.task)
    model = plan_build.new_model(config, world).to(device)
    optimizer, schedule = plan_train.optimizer_of(model), plan_build.new_schedule(config)
    losses = plan_train.compiled_losses() if device.type == "cuda" else plan_train.model_losses
    options: dict[str, Any] = {"dtype": compute_dtype(config.precision, device), "losses": losses}
    ranks, numbers = dist.setup(str(device)), iter(range(config.updates))

    def update() -> None:
        number = next(numbers)
        batch = batch_of(world, config, None, "speed", number, ranks)
        plan_train.train_step(model, optimizer, batch, world, config, schedule, number, **options)

    timing = timed(update, device, repeats=5, warmup=2)
    return figure(f"Two Rooms, an update on {config.batch_size} windows with their walks", "ms", timing, note=note)

"""MuZero: the search on the model of the speed anchor, self-play of connect four, and the training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.peer import ORIGINS, compared, started
from benchmarks.speed.timing import figure, in_turns, peak_memory, seconds_of, timed
from common import dist
from muzero import search
from muzero.agent import network_for
from muzero.config import PRESETS, TASKS, Config
from muzero.data import Replay, Rules
from muzero.env import make_worlds
from muzero.search import Model, Outcome, Result, Root, Settings
from muzero.self_play import Player, run_search
from muzero.train import new_optimizer, train_step
from muzero.unroll import Batch

BATCHES = (1, 64, 512)
SIMULATIONS, ACTIONS, HIDDEN, DISCOUNT = 50, 18, 64, 0.997
POLICIES = ("muzero", "gumbel")
BOARDS: dict[str, Any] = {}  # changes to the night's connect four
SMOKE = {
    "BATCHES": (2,),
    "SIMULATIONS": 4,
    "BOARDS": {"size": "board-tiny", "envs": 2, "simulations": 2, "batch_size": 4},
}


@dataclass(frozen=True)
class Anchor:
    """A small model, so that the tree and not the network is measured: one hidden layer, linear heads."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    heads: Tensor  # reward, value, logits

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome:
        seen = embedding @ self.first[:HIDDEN] + F.embedding(action, self.first[HIDDEN:]) + self.first_bias
        state = torch.tanh(torch.relu(seen) @ self.second + self.second_bias)
        out = state @ self.heads
        return Outcome(out[:, 0], torch.full_like(out[:, 0], DISCOUNT), out[:, 2:], out[:, 1], state)

    def root(self, embedding: Tensor) -> Root:
        """The heads at a given state."""
        out = embedding @ self.heads
        return Root(out[:, 2:], out[:, 1], embedding)


def anchor(device: torch.device) -> Anchor:
    """Random weights of fixed seed."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((HIDDEN + ACTIONS, HIDDEN), (HIDDEN,), (HIDDEN, HIDDEN), (HIDDEN,), (HIDDEN, 2 + ACTIONS))
    weights = [0.2 * torch.randn(*shape, generator=generator) for shape in shapes]
    return Anchor(*(weight.to(device) for weight in weights))


def settings_of(policy: str) -> Settings:
    """Fifty simulations by the conventions of mctx."""
    return Settings(simulations=SIMULATIONS, policy=policy, normalisation="node", counts_root=True)


def case(policy: str, batch: int, device: torch.device) -> tuple[Root, Model, Settings, Tensor]:
    """Roots with noise: all that a search is given."""
    model, rng = anchor(device), np.random.default_rng(0)
    root = model.root(torch.from_numpy(np.tanh(rng.normal(size=(batch, HIDDEN))).astype(np.float32)).to(device))
    drawn = rng.dirichlet(np.full(ACTIONS, 0.3), batch) if policy == "muzero" else rng.gumbel(size=(batch, ACTIONS))
    return root, model, settings_of(policy), torch.from_numpy(drawn.astype(np.float32)).to(device)


def one_search(parts: tuple[Root, Model, Settings, Tensor], *, use_fast: bool = True) -> Result:
    """What is timed."""
    return run_search(*parts, use_fast=use_fast)


def measure(device: torch.device) -> list[dict[str, Any]]:
    """Simulations per second, beside the readable form."""
    found = []
    for policy in POLICIES:
        for batch in BATCHES:
            parts = case(policy, batch, device)
            fast = timed(partial(one_search, parts), device, repeats=15, warmup=3)
            slow = timed(partial(search.search, *parts), device, repeats=3)
            rate = batch * SIMULATIONS / slow.median
            found.append(
                figure(
                    f"{policy} search, {SIMULATIONS} simulations, {ACTIONS} actions, batch {batch}",
                    "simulations/s",
                    fast,
                    batch * SIMULATIONS,
                    peer=f"the readable search.py: {rate:,.0f} simulations/s",
                    ratio=round(slow.median / fast.median, 2),
                    note=f"hidden state of {HIDDEN}, float32, {torch.get_num_threads()} threads",
                )
            )
    return found


def measure_connect4(device: torch.device) -> list[dict[str, Any]]:
    """Self-play and the training step of connect four."""
    preset = PRESETS["night"]
    values = {**TASKS["connect4"], **preset.by_task["connect4"], "task": "connect4", "device": str(device), **BOARDS}
    config = Config(**values)
    worlds = make_worlds(config, range(config.envs))
    network = network_for(worlds.space, config).to(device)
    replay = Replay(worlds.space, worlds.count, 1000, Rules(-1.0, None, config.unroll_steps, 0.0, 0.0, True))
    player = Player(network, worlds, replay, config, dist.setup(str(device)))
    moves = iter(range(10**9))
    play = timed(lambda: player.step(next(moves), 0), device, repeats=7, warmup=3)
    batch, steps = config.batch_size, config.unroll_steps + 1
    shape = (batch, steps)
    data = Batch(
        obs=torch.rand(batch, *worlds.space.obs_shape, device=device),
        actions=torch.randint(worlds.space.actions, (batch, steps - 1), device=device),
        value=torch.rand(shape, device=device),
        reward=torch.zeros(shape, device=device),
        policy=torch.full((*shape, worlds.space.actions), 1 / worlds.space.actions, device=device),
        policy_mask=torch.ones(shape, device=device),
        mask=torch.ones(shape, device=device),
        weights=torch.ones(batch, device=device),
    )
    optimizer = new_optimizer(network, config)
    update = timed(partial(train_step, network, optimizer, data, config, 0), device, repeats=9, warmup=3)
    size = f"{config.size}, {sum(p.numel() for p in network.parameters()):,} parameters"
    return [
        figure(
            f"self-play of connect four, {config.envs} boards, {config.simulations} simulations a move",
            "moves/s",
            play,
            config.envs,
            note=size,
        ),
        figure(f"training step of connect four, batch {batch}, K = {steps - 1}", "ms", update, note=size),
    ]


def measure_beside(checkouts: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """The search in turns with those of peers, compiled, on the same weights and sizes."""
    sizes = [(policy, batch) for policy in POLICIES for batch in BATCHES]
    return [_beside(name, path, *size, device) for name, path in checkouts.items() for size in sizes]


def _beside(name: str, path: Path, policy: str, batch: int, device: torch.device) -> dict[str, Any]:
    parts = case(policy, batch, device)
    weights = vars(anchor(device))
    order = {
        "policy": policy,
        "batch": batch,
        "simulations": SIMULATIONS,
        "discount": DISCOUNT,
        "embedding": parts[0].embedding.cpu().tolist(),
        "weights": {field: value.cpu().tolist() for field, value in weights.items()},
    }
    with started(name, path, order) as peer:
        calls: list[Callable[[], float]] = [partial(seconds_of, partial(one_search, parts)), peer.update]
        ours, theirs = in_turns(calls, repeats=15, warmup=3)
        who = ORIGINS[name].repository.split("/")[1]
        row = f"{policy} search, {SIMULATIONS} simulations, batch {batch}, beside {who}"
        count = sum(value.numel() for value in weights.values())
        return compared(row, "simulations/s", ours, theirs, peer, count, peak_memory(), batch * SIMULATIONS)

"""Reanalyze: old positions searched again with a target network, for fresh policies and values.

B positions, K unroll steps. Source: paper, Appendix H.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muzero import targets
from muzero.config import Config
from muzero.data import Picks, Replay
from muzero.search import Settings
from muzero.self_play import LearnedModel, root_noise, run_search
from muzero.unroll import Batch

Array = NDArray[Any]


@torch.no_grad()
def refreshed(
    batch: Batch,
    picks: Picks,
    replay: Replay,
    model: LearnedModel,
    settings: Settings,
    config: Config,
    rng: np.random.Generator,
) -> Batch:
    """The batch with new targets for a share `config.reanalyze` of its positions; model: of the target network."""
    chosen = np.flatnonzero(rng.random(len(picks)) < config.reanalyze)
    if not len(chosen):
        return batch
    some = Picks(picks.step[chosen], picks.lane[chosen], picks.probability[chosen])
    policy, value = batch.policy.clone(), batch.value.clone()
    rows = torch.from_numpy(chosen)
    policy[rows] = _policies(some, replay, model, settings, config, rng).to(policy.device)
    if replay.rules.td_steps is not None:
        value[rows] = torch.from_numpy(_values(some, replay, model)).to(value)
    return replace(batch, policy=policy, value=value)


def _policies(
    picks: Picks, replay: Replay, model: LearnedModel, settings: Settings, config: Config, rng: np.random.Generator
) -> torch.Tensor:
    """[B, K + 1, A]: searches at every unrolled position that has one, 0 elsewhere."""
    unroll = replay.rules.unroll_steps
    row = picks.step % replay.rows
    left, is_cut = replay.end[row, picks.lane] - picks.step, replay.is_cut[row, picks.lane]
    mask = targets.policy_mask(left, is_cut, unroll)
    position, k = np.nonzero(mask)
    steps, lanes = picks.step[position] + k, picks.lane[position]
    legal = replay.arrays["legal"][steps % replay.rows, lanes]
    device = next(model.network.parameters()).device
    obs = torch.from_numpy(replay.observe(steps, lanes)).to(device)
    noise = torch.from_numpy(root_noise(legal, config, rng)).to(device)
    root = model.root(obs, torch.from_numpy(legal).to(device))
    found = run_search(root, model, settings, noise, use_fast=config.use_fast)
    policy = torch.zeros(*mask.shape, legal.shape[1], device=device)
    policy[torch.from_numpy(position), torch.from_numpy(k)] = found.policy
    return policy


def _values(picks: Picks, replay: Replay, model: LearnedModel) -> Array:
    """z [B, K + 1], bootstrapped from the network's own values in place of the stored ones."""
    rules = replay.rules
    assert rules.td_steps is not None
    window = replay.window(picks, replay.length(picks))
    values, left = window["values"], window["left"]
    columns = np.minimum(np.arange(rules.unroll_steps + 1) + rules.td_steps, np.maximum(left, 0)[:, None])
    position = np.repeat(np.arange(len(picks)), columns.shape[1])
    column = columns.reshape(-1)
    # The state at the end of an episode by its rules has no observation, and no value either.
    exists = (column < left[position]) | window["is_cut"][position]
    position, column = position[exists], column[exists]
    device = next(model.network.parameters()).device
    obs = torch.from_numpy(replay.observe(picks.step[position] + column, picks.lane[position])).to(device)
    values[position, column] = model.root(obs, None).value.cpu().numpy()
    return replay.value_targets(picks, values)

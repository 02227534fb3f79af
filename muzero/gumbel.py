"""Gumbel MuZero: sequential halving at the root, completed values, the improved policy.

B batch, A actions. Source: Danihelka et al., ICLR 2022, Sections 3 to 5 and Appendix D.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LOWEST = -1e9  # floor of a root score, so that an allowed action never ties with one that is not
SMALLEST_RANGE = 1e-8


def halving_visits(considered: int, simulations: int) -> list[int]:
    """How often the action that simulation t visits has been visited before, if `considered` actions compete.

    Each phase gives the survivors the same number of visits and then drops half of them, down to two; with one or no
    competitor every simulation visits the same action. Source: Gumbel paper, Algorithm 1 (sequential halving).
    """
    if considered <= 1:
        return list(range(simulations))
    rounds = (considered - 1).bit_length()  # log2, rounded up
    found: list[int] = []
    done, survivors = 0, considered
    while len(found) < simulations:
        each = max(1, simulations // (rounds * survivors))
        found += [visits for visits in range(done, done + each) for _ in range(survivors)]
        done, survivors = done + each, max(2, survivors // 2)
    return found[:simulations]


@functools.cache
def halving_table(most_considered: int, simulations: int, device: torch.device | None = None) -> Tensor:
    """[most_considered + 1, simulations] int32: row m is `halving_visits` of m actions. Do not change it in place."""
    rows = [halving_visits(m, simulations) for m in range(most_considered + 1)]
    return torch.tensor(rows, dtype=torch.int32, device=device).view(most_considered + 1, simulations)


def mixed_value(raw_value: Tensor, q: Tensor, visits: Tensor, prior: Tensor) -> Tensor:
    """v_mix [B]: the network's value [B] and the visited actions' q [B, A] weighted by the prior [B, A].

    (v + N * sum_visited(p q) / sum_visited(p)) / (1 + N), N all visits. Source: Gumbel paper, Eq. 33.
    """
    smallest = torch.finfo(prior.dtype).tiny
    weight = torch.where(visits > 0, prior.clamp(min=smallest), torch.zeros_like(prior))
    mass = weight.sum(-1)
    visited = (weight * q).sum(-1) / torch.where(mass > 0, mass, torch.ones_like(mass))
    total = visits.sum(-1)
    return (raw_value + total * visited) / (1 + total)


def completed_values(
    raw_value: Tensor,
    q: Tensor,
    visits: Tensor,
    prior: Tensor,
    *,
    c_visit: float = 50.0,
    c_scale: float = 0.1,
    is_rescaled: bool = True,
    is_mixed: bool = True,
) -> Tensor:
    """sigma(completed q) [B, A]: visited actions keep q, the others get v_mix (or the raw value).

    is_rescaled: to [0, 1] over all actions before. sigma(q) = (c_visit + max_b N(b)) c_scale q.
    Source: Gumbel paper, Eq. 8 and 10.
    """
    filler = mixed_value(raw_value, q, visits, prior) if is_mixed else raw_value
    completed = torch.where(visits > 0, q, filler[:, None])
    if is_rescaled:
        low, high = completed.amin(-1, keepdim=True), completed.amax(-1, keepdim=True)
        completed = (completed - low) / (high - low).clamp(min=SMALLEST_RANGE)
    return (c_visit + visits.amax(-1, keepdim=True)) * c_scale * completed


def root_scores(gumbel: Tensor, logits: Tensor, sigma_q: Tensor, visits: Tensor, wanted: Tensor) -> Tensor:
    """g + logits + sigma(q) [B, A] of the actions with exactly `wanted` [B] visits, -inf elsewhere."""
    scores = gumbel + (logits - logits.amax(-1, keepdim=True)) + sigma_q
    return scores.clamp(min=LOWEST).masked_fill(visits != wanted[:, None], -torch.inf)


def interior_scores(logits: Tensor, sigma_q: Tensor, visits: Tensor) -> Tensor:
    """softmax(logits + sigma(q)) - N(a) / (1 + sum N) [B, A]: below the root, no randomness.

    Source: Gumbel paper, Eq. 14.
    """
    return (logits + sigma_q).softmax(-1) - visits / (1 + visits.sum(-1, keepdim=True))

"""Models with a known answer for the search: a table of transitions, and the small network of the speed anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muzero.search import Outcome, Root

Case = Mapping[str, np.ndarray]


@dataclass
class Table:
    """State = index [B] into arrays [N, A] and [N]."""

    next_state: Tensor
    reward: Tensor
    discount: Tensor
    logits: Tensor
    value: Tensor

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome:
        reached = self.next_state[embedding, action].long()
        return Outcome(
            self.reward[embedding, action],
            self.discount[embedding, action],
            self.logits[reached],
            self.value[reached],
            reached,
        )

    def root(self, states: Tensor, invalid: Tensor | None = None) -> Root:
        return Root(self.logits[states], self.value[states], states, invalid)


def table(case: Case, prefix: str = "", discount: float | None = None) -> Table:
    def field(name: str) -> Tensor:
        return torch.from_numpy(case[f"{prefix}model__{name}"])

    discounts = field("discount") if discount is None else torch.full_like(field("reward"), discount)
    return Table(field("next_state"), field("reward"), discounts, field("prior_logits"), field("value"))


def random_table(states: int, actions: int, discount: float, seed: int) -> Table:
    """Rewards, values and logits without exact ties; a tenth of the transitions end the episode."""
    generator = torch.Generator().manual_seed(seed)
    shape = (states, actions)
    ends = torch.rand(shape, generator=generator) < 0.1
    return Table(
        torch.randint(states, shape, generator=generator),
        torch.randn(shape, generator=generator),
        torch.where(ends, 0.0, discount),
        torch.randn(shape, generator=generator),
        torch.randn(states, generator=generator),
    )


@dataclass
class Anchor:
    """h' = tanh(W2 relu(W1 [h, one-hot a] + b1) + b2), linear heads."""

    weights: Mapping[str, Tensor]
    discount: float

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome:
        w = self.weights
        seen = torch.cat([embedding, F.one_hot(action.long(), w["wp"].shape[1]).to(embedding.dtype)], 1)
        state = torch.tanh(torch.relu(seen @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"])
        discount = torch.full_like(state[:, 0], self.discount)
        return Outcome((state @ w["wr"])[:, 0], discount, state @ w["wp"], (state @ w["wv"])[:, 0], state)

    def root(self, embedding: Tensor) -> Root:
        return Root(embedding @ self.weights["wp"], (embedding @ self.weights["wv"])[:, 0], embedding)


def anchor(case: Case) -> Anchor:
    weights = {name[3:]: torch.from_numpy(case[name]) for name in case if name.startswith("w__")}
    return Anchor(weights, float(case["discount"]))

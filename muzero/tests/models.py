"""Models with a known answer for the search: a table of transitions, and the small network of the speed anchor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muzero.search import Outcome, Root
from muzero.transform import scale_hidden

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


class Linear:
    """h, g and f of one linear layer each, with weights [out, in] from a case."""

    def __init__(self, case: Case) -> None:
        names = [name[3:] for name in case if name.startswith("w__")]
        self.weights = {name: torch.from_numpy(case[f"w__{name}"]).requires_grad_() for name in names}

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}_w"], self.weights[f"{name}_b"])

    def represent(self, obs: Tensor) -> Tensor:
        return scale_hidden(self._layer("rep", obs))

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        actions = self.weights["dyn_w"].shape[1] - state.shape[1]
        seen = torch.cat([state, F.one_hot(action, actions).to(state.dtype)], 1)
        reached = scale_hidden(torch.tanh(self._layer("dyn", seen)))
        return reached, self._layer("rew", reached)

    def predict(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._layer("pol", state), self._layer("val", state)


# The names of muzero-general's layers, as patterns, and ours.
OFFICIAL = (
    (r"representation_network\.conv\.", "representation.0.conv."),
    (r"representation_network\.bn\.", "representation.0.norm."),
    (r"representation_network\.resblocks\.(\d)\.", r"representation.1.\1."),
    (r"dynamics_network\.conv\.", "transition.0.conv."),
    (r"dynamics_network\.bn\.", "transition.0.norm."),
    (r"dynamics_network\.resblocks\.(\d)\.", r"transition.1.\1."),
    (r"dynamics_network\.conv1x1_reward\.", "reward.conv."),
    (r"dynamics_network\.fc\.0\.", "reward.hidden."),
    (r"dynamics_network\.fc\.2\.", "reward.out."),
    (r"prediction_network\.resblocks\.(\d)\.", r"before_heads.\1."),
    (r"prediction_network\.conv1x1_(\w+)\.", r"\1.conv."),
    (r"prediction_network\.fc_(\w+)\.0\.", r"\1.hidden."),
    (r"prediction_network\.fc_(\w+)\.2\.", r"\1.out."),
    (r"representation_network\.0\.", "representation.0."),
    (r"dynamics_encoded_state_network\.", "transition."),
    (r"dynamics_reward_network\.", "reward."),
    (r"prediction_(\w+)_network\.", r"\1."),
    (r"\.conv1\.", ".first.conv."),
    (r"\.bn1\.", ".first.norm."),
    (r"\.conv2\.", ".conv."),
    (r"\.bn2\.", ".norm."),
)


def load_official(network: nn.Module, case: Case) -> None:
    """The weights of a case, under muzero-general's names, into our network; all but counters of batch norm."""
    wanted = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    found = {}
    for name in [name for name in case if name.startswith("w__")]:
        ours = name[3:]
        for pattern, replacement in OFFICIAL:
            ours = re.sub(pattern, replacement, ours)
        found[ours] = torch.from_numpy(case[name])
    assert found.keys() == wanted
    network.load_state_dict(found, strict=False)

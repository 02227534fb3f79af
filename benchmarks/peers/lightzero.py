"""opendilab/LightZero: its compiled trees on the small model of the speed anchor, which a simulation calls once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.peers.line import Line

TREES = Path("lzero/mcts/ctree")
PB_C_BASE, PB_C_INIT = 19652, 1.25
VALUE_DELTA = 0.01  # its default
NOISE = 0.25
CONSIDERED = 16
NOBODY = -1  # the player to move, where there is one player


def main() -> None:
    """Build the search that the order names, then run it once an order."""
    line = Line()
    order = line.start()
    torch.set_num_threads(order["threads"])
    is_gumbel = order["policy"] == "gumbel"
    folder, name = ("ctree_gumbel_muzero", "gmz_tree") if is_gumbel else ("ctree_muzero", "mz_tree")
    # By the file: the package itself imports all that its agents need.
    sys.path.insert(0, str(Path(order["checkout"]) / TREES / folder))
    tree: Any = importlib.import_module(name)
    weights = {key: torch.tensor(value) for key, value in order["weights"].items()}
    start = torch.tensor(order["embedding"])
    batch, hidden = start.shape
    simulations, discount = order["simulations"], order["discount"]
    players, everything = [NOBODY] * batch, [list(range(weights["heads"].shape[1] - 2))] * batch
    rng = np.random.default_rng(0)

    def outputs(state: torch.Tensor) -> tuple[list[float], list[float], list[list[float]]]:
        reward, value, logits = (state @ weights["heads"]).split([1, 1, len(everything[0])], 1)
        return reward.flatten().tolist(), value.flatten().tolist(), logits.tolist()

    @torch.no_grad()
    def search() -> list[list[int]]:
        roots = tree.Roots(batch, everything)
        _, values, logits = outputs(start)
        noises = rng.dirichlet(np.full(len(everything[0]), 0.3), batch).tolist()
        found = ([0.0] * batch, values, logits) if is_gumbel else ([0.0] * batch, logits)
        roots.prepare(NOISE, noises, *found, players)
        bounds = tree.MinMaxStatsList(batch)
        bounds.set_delta(VALUE_DELTA)
        states = torch.empty(simulations + 1, batch, hidden)
        states[0] = start
        for k in range(simulations):
            results = tree.ResultsWrapper(batch)
            if is_gumbel:
                leaf = tree.batch_traverse(roots, simulations, CONSIDERED, discount, results, players.copy())
            else:
                leaf = tree.batch_traverse(roots, PB_C_BASE, PB_C_INIT, discount, bounds, results, players)
            steps, elements, actions, turns = leaf
            seen = states[torch.tensor(steps), torch.tensor(elements)] @ weights["first"][:hidden]
            seen += F.embedding(torch.tensor(actions), weights["first"][hidden:]) + weights["first_bias"]
            states[k + 1] = torch.tanh(torch.relu(seen) @ weights["second"] + weights["second_bias"])
            back = tree.batch_back_propagate if is_gumbel else tree.batch_backpropagate
            back(k + 1, discount, *outputs(states[k + 1]), bounds, results, turns)
        visits: list[list[int]] = roots.get_distributions()
        return visits

    total = sum(map(sum, search()))
    if total != batch * simulations:
        raise RuntimeError(f"{total} visits of the roots' actions, not {batch * simulations}")
    facts = {
        "parameters": sum(value.numel() for value in weights.values()),
        "form": f"trees in C++ on one thread, the model in torch {torch.__version__}, float32",
        "unlike": "draws its noise inside the call",
    }
    line.serve(facts, search)


if __name__ == "__main__":
    main()

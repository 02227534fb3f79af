"""The search for a GPU: no loop and no shape depends on data, so that all of it can be captured as one CUDA graph.

Where the other forms walk down a tree and back up, this one asks every node at once which child it would choose, and
follows those pointers by doubling: after log2(M) steps each pointer leads to the end of its path. The same doubling
composes the rewards and discounts along a path into one affine map of the leaf's value, and marks the nodes on it.
Same mathematics and same order of decisions as `search.py`, to which tests hold it, on a CPU too.
B trees, M nodes of each so far, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common import eager
from muzero import gumbel as seq
from muzero.search import (
    Model,
    Result,
    Root,
    Settings,
    Tree,
    empty_tree,
    expand,
    exploration,
    prepare,
    root_actions,
    scaled_by_node,
    scaled_by_tree,
    summarise,
)

WARM_UPS = 3  # searches before a graph is captured


def choices(tree: Tree, nodes: int, settings: Settings) -> Tensor:
    """[B, M]: the action that each of the first `nodes` nodes would select, were it below the root."""
    batch, _, actions = tree.children_logits.shape

    def rows(x: Tensor) -> Tensor:
        return x[:, :nodes].reshape(batch * nodes, *x.shape[2:])

    logits, visits = rows(tree.children_logits), rows(tree.children_visits)
    q = rows(tree.children_rewards) + rows(tree.children_discounts) * rows(tree.children_values)
    if settings.policy == "gumbel":
        sigma_q = seq.completed_values(
            rows(tree.raw_values),
            q,
            visits,
            logits.softmax(-1),
            c_visit=settings.c_visit,
            c_scale=settings.c_scale,
            is_rescaled=settings.is_rescaled,
            is_mixed=settings.is_mixed,
        )
        return seq.interior_scores(logits, sigma_q, visits).argmax(-1).view(batch, nodes)
    if settings.normalisation == "node":
        scaled = scaled_by_node(q, visits, rows(tree.node_values))
    else:
        low, high = (bound.repeat_interleave(nodes) for bound in (tree.low, tree.high))
        scaled = scaled_by_tree(q, visits, low, high)
    bonus = exploration(logits.softmax(-1), visits, rows(tree.node_visits), settings.c1, settings.c2)
    return (scaled + bonus).argmax(-1).view(batch, nodes)


def at(x: Tensor, action: Tensor) -> Tensor:
    """x [B, M', A] at one action [B, M] of each of the first M nodes."""
    return x[:, : action.shape[1]].gather(2, action[..., None])[..., 0]


def doublings(nodes: int) -> int:
    """Steps after which every pointer among so many nodes has reached its end."""
    return max(1, (nodes - 1).bit_length())


def simulate(
    tree: Tree, depth: Tensor, simulation: int, root: Root, model: Model, settings: Settings, noise: Tensor | None
) -> None:
    """One simulation of every tree, in place; depth [B, M] of the nodes."""
    nodes = simulation + 1
    batch, device = len(root.value), root.value.device
    rows = torch.arange(batch, device=device)
    action = choices(tree, nodes, settings)
    action[:, 0] = root_actions(tree, simulation, root, settings, noise)
    child = at(tree.children_index, action).long()
    stops = (child < 0) | (depth[:, :nodes] + 1 >= settings.depth)
    here = torch.arange(nodes, device=device).expand(batch, nodes)
    jump = torch.where(stops, here, child)
    # Along the pointers: to the end of each path, and which nodes the root's own path goes through.
    jumps = [jump]
    passed = (here == 0).to(root.value.dtype)
    for _ in range(doublings(nodes)):
        passed = passed.scatter_add(1, jumps[-1], passed).clamp(max=1)
        jumps.append(jumps[-1].gather(1, jumps[-1]))
    is_on_path = passed > 0
    node = jumps[-1][:, 0]
    last = action[rows, node]
    out = model(tree.embeddings[rows, node], last)
    leaf = expand(tree, node, last, simulation, out)
    depth[rows, leaf] = depth[rows, node] + 1

    # G = r + d G' of each step, composed along the path; at its end stands the leaf's value.
    reward, discount = at(tree.children_rewards, action), at(tree.children_discounts, action)
    end = reward[rows, node] + discount[rows, node] * out.value
    constant, factor = reward.masked_fill(stops, 0.0), discount.masked_fill(stops, 1.0)
    for jump in jumps[:-1]:
        constant = constant + factor * constant.gather(1, jump)
        factor = factor * factor.gather(1, jump)
    total = constant + factor * end[:, None]

    visits, values = tree.node_visits[:, :nodes], tree.node_values[:, :nodes]
    values.copy_(torch.where(is_on_path, (values * visits + total) / (visits + 1), values))
    visits += is_on_path
    reached = torch.where(stops, leaf[:, None], child)
    _put(tree.children_values, action, tree.node_values.gather(1, reached), is_on_path)
    _put(tree.children_visits, action, at(tree.children_visits, action) + 1, is_on_path)
    q = reward + discount * at(tree.children_values, action)
    top = settings.discount * tree.node_values[:, 0]
    lowest = q.masked_fill(~is_on_path, torch.inf).amin(1)
    highest = q.masked_fill(~is_on_path, -torch.inf).amax(1)
    tree.low.copy_(torch.minimum(tree.low, torch.minimum(lowest, top)))
    tree.high.copy_(torch.maximum(tree.high, torch.maximum(highest, top)))


def _put(x: Tensor, action: Tensor, value: Tensor, where: Tensor) -> None:
    """Write value [B, M] at one action of each of the first M nodes, at the nodes in `where`."""
    part = x[:, : action.shape[1]]
    part.scatter_(2, action[..., None], torch.where(where, value, at(x, action))[..., None])


@torch.no_grad()
def search(root: Root, model: Model, settings: Settings, noise: Tensor | None = None) -> Result:
    """As `search.search`."""
    tree = empty_tree(root, prepare(root, settings, noise), settings)
    depth = torch.zeros_like(tree.parents)
    for simulation in range(settings.simulations):
        simulate(tree, depth, simulation, root, model, settings, noise)
    return summarise(tree, root, settings, noise)


class Captured:
    """The search of one model at one size, recorded once as a CUDA graph and replayed.

    `model` must keep its weights where they are: whoever changes them writes into the same tensors. The result lies in
    the graph's memory and is overwritten by the next search. Where no graph can be made, each search runs as it is.
    Not yet run on a GPU.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captures = True
        self.inputs: tuple[Tensor, ...] = ()
        self.result: Result | None = None

    def __call__(self, root: Root, noise: Tensor) -> Result:
        """Search from these roots, which must all have the first call's shape, with the moves allowed at each."""
        invalid = torch.zeros_like(root.logits, dtype=torch.bool) if root.invalid is None else root.invalid
        given = (root.logits, root.value, root.embedding, invalid, noise)
        if self.graph is None and self.captures:
            self.captures = self._capture(given)
        if self.graph is None:
            return self._run(given)
        assert self.result is not None
        for ours, theirs in zip(self.inputs, given, strict=True):
            ours.copy_(theirs)
        self.graph.replay()
        return self.result

    def _capture(self, given: tuple[Tensor, ...]) -> bool:
        """Record a search. False if it cannot be recorded."""

        def record() -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Result]:
            inputs = tuple(tensor.clone() for tensor in given)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # so that kernels are chosen before the capture
                for _ in range(WARM_UPS):
                    self._run(inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self._run(inputs)
            return graph, inputs, result

        found = eager.captured("the search", record)
        if found is None:
            return False
        self.graph, self.inputs, self.result = found
        return True

    def _run(self, inputs: tuple[Tensor, ...]) -> Result:
        logits, value, embedding, invalid, noise = inputs
        return search(Root(logits, value, embedding, invalid), self.model, self.settings, noise)

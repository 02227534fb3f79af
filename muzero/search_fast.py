"""The search for throughput on a CPU: the trees of a batch divided over the cores in compiled code.

Between two calls of the model, one pass over every tree puts the last answer in, backs it up, and walks down to the
next question. Same mathematics, same names and same order of decisions as `search.py`, to which tests hold it; numbers
are float32. Compiled at the first call and kept on disk. Threads: those of torch.
B trees, M nodes, A actions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muzero import gumbel as seq
from muzero.search import Model, Result, Root, Settings, Tree, counts_root, prepare, summarise

Array = NDArray[Any]
SMALLEST_RANGE = np.float32(1e-8)
TINY = np.finfo(np.float32).tiny
TREES_PER_THREAD = 8  # below this, waking a thread costs more than it saves
BY_TREE, BY_NODE, GUMBEL = 0, 1, 2


class Arrays(NamedTuple):
    """A tree as the compiled code sees it: [B, M], [B, M, A], bounds [B]."""

    node_visits: Array
    node_values: Array
    raw_values: Array
    parents: Array
    actions: Array
    index: Array
    logits: Array
    priors: Array
    visits: Array
    rewards: Array
    discounts: Array
    values: Array
    q: Array
    bounds: Array  # [B, 2]


class Constants(NamedTuple):
    """The settings, as numbers."""

    mode: int
    depth: int
    discount: np.float32
    c1: np.float32
    c2: np.float32
    c_visit: np.float32
    c_scale: np.float32
    is_rescaled: bool
    is_mixed: bool


def _compiled(function: Any) -> Any:
    return numba.njit(cache=True, error_model="numpy", inline="never")(function)


@_compiled
def _softmax_into(out, logits):  # type: ignore[no-untyped-def]
    high = logits[0]
    for a in range(1, len(logits)):
        high = max(high, logits[a])
    total = np.float32(0)
    for a in range(len(logits)):
        out[a] = np.exp(logits[a] - high)
        total += out[a]
    for a in range(len(logits)):
        out[a] /= total


@_compiled
def _puct_into(out, tree, b, node, c):  # type: ignore[no-untyped-def]
    visits, q, priors = tree.visits[b, node], tree.q[b, node], tree.priors[b, node]
    if c.mode == BY_NODE:
        low = high = tree.node_values[b, node]
        for a in range(len(q)):
            if visits[a] > 0:
                low, high = min(low, q[a]), max(high, q[a])
        span = max(high - low, SMALLEST_RANGE)
    else:
        low, high = tree.bounds[b, 0], tree.bounds[b, 1]
        span = high - low
        if not span > 0:
            low, span = np.float32(0), np.float32(1)
    n = np.float32(tree.node_visits[b, node])
    weight = np.sqrt(n) * (c.c1 + np.log((n + c.c2 + np.float32(1)) / c.c2))
    for a in range(len(q)):
        scaled = (q[a] - low) / span if visits[a] > 0 else np.float32(0)
        out[a] = scaled + weight * priors[a] / np.float32(1 + visits[a])


@_compiled
def _sigma_into(out, tree, b, node, c):  # type: ignore[no-untyped-def]
    visits, q, priors = tree.visits[b, node], tree.q[b, node], tree.priors[b, node]
    total, most, mass, weighted = np.float32(0), 0, np.float32(0), np.float32(0)
    for a in range(len(q)):
        if visits[a] > 0:
            p = max(priors[a], TINY)
            total += np.float32(visits[a])
            most = max(most, visits[a])
            mass += p
            weighted += p * q[a]
    filler = tree.raw_values[b, node]
    if c.is_mixed and most > 0:
        filler = (filler + total * (weighted / mass)) / (np.float32(1) + total)
    low = high = q[0] if visits[0] > 0 else filler
    for a in range(len(q)):
        out[a] = q[a] if visits[a] > 0 else filler
        low, high = min(low, out[a]), max(high, out[a])
    scale = (c.c_visit + np.float32(most)) * c.c_scale
    span = max(high - low, SMALLEST_RANGE)
    for a in range(len(q)):
        out[a] = scale * ((out[a] - low) / span if c.is_rescaled else out[a])


@_compiled
def _first_best(scores):  # type: ignore[no-untyped-def]
    best = 0
    for a in range(1, len(scores)):
        if scores[a] > scores[best]:
            best = a
    return best


@_compiled
def _root_action(buffer, tree, b, invalid, noise, wanted, c):  # type: ignore[no-untyped-def]
    if c.mode == GUMBEL:
        _sigma_into(buffer, tree, b, 0, c)
        logits, visits = tree.logits[b, 0], tree.visits[b, 0]
        high = logits.max()
        for a in range(len(buffer)):
            score = max(np.float32(-1e9), noise[b, a] + (logits[a] - high) + buffer[a])
            buffer[a] = score if visits[a] == wanted[b] else np.float32(-np.inf)
    else:
        _puct_into(buffer, tree, b, 0, c)
    for a in range(len(buffer)):
        if invalid[b, a]:
            buffer[a] = -np.inf
    return _first_best(buffer)


@_compiled
def _inner_action(buffer, sigma, tree, b, node, c):  # type: ignore[no-untyped-def]
    if c.mode == GUMBEL:
        _sigma_into(sigma, tree, b, node, c)
        logits, visits = tree.logits[b, node], tree.visits[b, node]
        total = 0
        for a in range(len(sigma)):
            sigma[a] += logits[a]
            total += visits[a]
        _softmax_into(buffer, sigma)
        for a in range(len(sigma)):
            buffer[a] -= np.float32(visits[a]) / np.float32(1 + total)
    else:
        _puct_into(buffer, tree, b, node, c)
    return _first_best(buffer)


@_compiled
def _widen(tree, b, value):  # type: ignore[no-untyped-def]
    tree.bounds[b, 0] = min(tree.bounds[b, 0], value)
    tree.bounds[b, 1] = max(tree.bounds[b, 1], value)


@_compiled
def _insert(tree, b, node, action, new, reward, discount, logits, value, c):  # type: ignore[no-untyped-def]
    """Expand and back up. Returns the index of the node that was reached."""
    known = tree.index[b, node, action]
    leaf = known if known >= 0 else new
    tree.index[b, node, action] = leaf
    tree.rewards[b, node, action] = reward
    tree.discounts[b, node, action] = discount
    tree.logits[b, leaf] = logits
    _softmax_into(tree.priors[b, leaf], logits)
    tree.raw_values[b, leaf] = tree.node_values[b, leaf] = value
    tree.node_visits[b, leaf] += 1
    tree.parents[b, leaf] = node
    tree.actions[b, leaf] = action
    child, total = leaf, value
    while tree.parents[b, child] >= 0:
        parent, a = tree.parents[b, child], tree.actions[b, child]
        r, d = tree.rewards[b, parent, a], tree.discounts[b, parent, a]
        tree.values[b, parent, a] = tree.node_values[b, child]
        tree.q[b, parent, a] = r + d * tree.node_values[b, child]
        tree.visits[b, parent, a] += 1
        _widen(tree, b, tree.q[b, parent, a])
        total = r + d * total
        n = np.float32(tree.node_visits[b, parent])
        tree.node_values[b, parent] = (tree.node_values[b, parent] * n + total) / (n + np.float32(1))
        tree.node_visits[b, parent] += 1
        child = parent
    _widen(tree, b, c.discount * tree.node_values[b, 0])
    return leaf


@_compiled
def _walk(tree, b, invalid, noise, wanted, c):  # type: ignore[no-untyped-def]
    """From the root to the next question: a node and an action."""
    buffer = np.empty(tree.q.shape[2], np.float32)
    sigma = np.empty(tree.q.shape[2], np.float32)
    node, action = 0, _root_action(buffer, tree, b, invalid, noise, wanted, c)
    for _ in range(1, c.depth):
        child = tree.index[b, node, action]
        if child < 0:
            break
        node = child
        action = _inner_action(buffer, sigma, tree, b, node, c)
    return node, action


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _select(tree, invalid, noise, wanted, c, nodes, actions):  # type: ignore[no-untyped-def]
    for b in numba.prange(len(nodes)):
        nodes[b], actions[b] = _walk(tree, b, invalid, noise, wanted, c)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _insert_all(tree, new, c, nodes, actions, leaves, reward, discount, logits, value):  # type: ignore[no-untyped-def]
    for b in numba.prange(len(nodes)):
        leaves[b] = _insert(tree, b, nodes[b], actions[b], new, reward[b], discount[b], logits[b], value[b], c)


def _numbers(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.numpy(), np.float32)


def _empty(batch: int, nodes: int, actions: int) -> Arrays:
    def zeros(*shape: int, dtype: Any = np.float32) -> Array:
        return np.zeros((batch, nodes, *shape), dtype)

    return Arrays(
        node_visits=zeros(dtype=np.int32),
        node_values=zeros(),
        raw_values=zeros(),
        parents=np.full((batch, nodes), -1, np.int32),
        actions=np.full((batch, nodes), -1, np.int32),
        index=np.full((batch, nodes, actions), -1, np.int32),
        logits=zeros(actions),
        priors=zeros(actions),
        visits=zeros(actions, dtype=np.int32),
        rewards=zeros(actions),
        discounts=zeros(actions),
        values=zeros(actions),
        q=zeros(actions),
        bounds=np.empty((batch, 2), np.float32),
    )


def _constants(settings: Settings) -> Constants:
    by = BY_NODE if settings.normalisation == "node" else BY_TREE
    small = (settings.discount, settings.c1, settings.c2, settings.c_visit, settings.c_scale)
    return Constants(
        GUMBEL if settings.policy == "gumbel" else by,
        settings.depth,
        *(np.float32(value) for value in small),
        settings.is_rescaled,
        settings.is_mixed,
    )


def _wanted(root: Root, settings: Settings) -> Array:
    """[simulations, B]: the visits that sequential halving looks for."""
    batch, actions = root.logits.shape
    if settings.policy != "gumbel":
        return np.zeros((settings.simulations, batch), np.int32)
    allowed = np.full(batch, actions) if root.invalid is None else (~root.invalid).sum(-1).numpy()
    table = seq.halving_table(min(actions, settings.max_considered), settings.simulations).numpy()
    return np.ascontiguousarray(table[np.minimum(allowed, settings.max_considered)].T)


@torch.no_grad()
def search(root: Root, model: Model, settings: Settings, noise: Tensor | None = None) -> Result:
    """As `search.search`; on a CPU."""
    batch, actions = root.logits.shape
    logits = prepare(root, settings, noise)
    arrays, c = _empty(batch, 1 + settings.simulations, actions), _constants(settings)
    arrays.logits[:, 0] = logits.numpy()
    arrays.priors[:, 0] = logits.softmax(-1).numpy()
    arrays.raw_values[:, 0] = root.value.numpy()
    if counts_root(settings):
        arrays.node_visits[:, 0], arrays.node_values[:, 0] = 1, arrays.raw_values[:, 0]
    arrays.bounds[:] = settings.bounds or (np.inf, -np.inf)
    invalid = np.zeros((batch, actions), np.bool_) if root.invalid is None else root.invalid.numpy()
    drawn = np.zeros((batch, actions), np.float32) if noise is None else _numbers(noise)
    wanted = _wanted(root, settings)
    nodes, chosen, leaves = (np.zeros(batch, np.int64) for _ in range(3))
    first = np.arange(batch) * (1 + settings.simulations)
    embeddings = root.embedding.new_zeros(batch * (1 + settings.simulations), *root.embedding.shape[1:])
    embeddings[torch.from_numpy(first)] = root.embedding
    threads = numba.get_num_threads()
    most = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, -(-batch // TREES_PER_THREAD))
    numba.set_num_threads(max(1, most))
    try:
        for simulation in range(settings.simulations):
            _select(arrays, invalid, drawn, wanted[simulation], c, nodes, chosen)
            out = model(embeddings.index_select(0, torch.from_numpy(first + nodes)), torch.from_numpy(chosen))
            answers = (_numbers(x) for x in (out.reward, out.discount, out.logits, out.value))
            _insert_all(arrays, simulation + 1, c, nodes, chosen, leaves, *answers)
            embeddings.index_copy_(0, torch.from_numpy(first + leaves), out.embedding)
    finally:
        numba.set_num_threads(threads)
    tree = _tree(arrays, embeddings.view(batch, -1, *root.embedding.shape[1:]))
    return summarise(tree, root, settings, noise)


def _tree(arrays: Arrays, embeddings: Tensor) -> Tree:
    view = Arrays(*(torch.from_numpy(array) for array in arrays))
    return Tree(
        node_visits=view.node_visits,
        node_values=view.node_values,
        raw_values=view.raw_values,
        parents=view.parents,
        action_from_parent=view.actions,
        children_index=view.index,
        children_logits=view.logits,
        children_visits=view.visits,
        children_rewards=view.rewards,
        children_discounts=view.discounts,
        children_values=view.values,
        embeddings=embeddings,
        low=view.bounds[:, 0],
        high=view.bounds[:, 1],
    )

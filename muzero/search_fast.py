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
from muzero.search import Model, Result, Root, Settings, Tree, prepare, summarise

# The idle threads of the other layers spin, and take the cores from the model.
numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]

Array = NDArray[Any]
SMALLEST_RANGE = np.float32(1e-8)
TINY = np.finfo(np.float32).tiny
TREES_PER_THREAD = 8  # below this, waking a thread costs more than it saves
BY_TREE, BY_NODE, GUMBEL = 0, 1, 2
# Scores are never NaN, and which zero is the larger says nothing: then many actions are compared at once.
ORDERED = {"nnan", "nsz"}
# Where a tree keeps what: rows of `cells` [B, M, 6, A] float32 and `links` [B, M, 2, A] int32, columns of `stats`
# [B, M, 2] float32 and `nodes` [B, M, 3] int32. What one selection reads lies together, for a walk waits for memory.
PRIOR, Q, REWARD, DISCOUNT, VALUE, LOGIT = range(6)
VISITS, INDEX = range(2)
MEAN, RAW = range(2)
NODE_VISITS, PARENT, ACTION = range(3)


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


class Arrays(NamedTuple):
    """All trees of a batch, and the smallest and largest value [B, 2] of each."""

    cells: Array
    links: Array
    stats: Array
    nodes: Array
    bounds: Array


@numba.njit(cache=True, error_model="numpy")
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


@numba.njit(cache=True, error_model="numpy", fastmath=ORDERED)
def _puct_into(out, cells, visits, mean, total, bounds, c):  # type: ignore[no-untyped-def]
    """As `search.scaled_by_*` and `search.exploration`; cells [6, A] and visits [A] of one node."""
    priors, q = cells[PRIOR], cells[Q]
    low, high = bounds[0], bounds[1]
    if c.mode == BY_NODE:
        low = high = mean
        for a in range(len(q)):
            known = q[a] if visits[a] > 0 else mean
            low, high = min(low, known), max(high, known)
    span = high - low
    if c.mode == BY_NODE:
        span = max(span, SMALLEST_RANGE)
    elif not span > 0:
        low, span = np.float32(0), np.float32(1)
    n = np.float32(total)
    weight = np.sqrt(n) * (c.c1 + np.log((n + c.c2 + np.float32(1)) / c.c2))
    for a in range(len(q)):
        scaled = (q[a] - low) / span if visits[a] > 0 else np.float32(0)
        out[a] = scaled + weight * priors[a] / np.float32(1 + visits[a])


@numba.njit(cache=True, error_model="numpy")
def _sigma_into(out, cells, visits, raw, c):  # type: ignore[no-untyped-def]
    """As `gumbel.completed_values`; cells [6, A] and visits [A] of one node. Returns the sum of the visits."""
    priors, q = cells[PRIOR], cells[Q]
    total, most, mass, weighted = 0, 0, np.float32(0), np.float32(0)
    for a in range(len(q)):
        if visits[a] > 0:
            p = max(priors[a], TINY)
            total += visits[a]
            most = max(most, visits[a])
            mass += p
            weighted += p * q[a]
    filler = raw
    if c.is_mixed and most > 0:
        n = np.float32(total)
        filler = (raw + n * (weighted / mass)) / (np.float32(1) + n)
    for a in range(len(q)):
        out[a] = q[a] if visits[a] > 0 else filler
    low = high = out[0]
    for a in range(1, len(q)):
        low, high = min(low, out[a]), max(high, out[a])
    if not c.is_rescaled:
        low, high = np.float32(0), np.float32(1)
    scale, span = (c.c_visit + np.float32(most)) * c.c_scale, max(high - low, SMALLEST_RANGE)
    for a in range(len(q)):
        out[a] = scale * ((out[a] - low) / span)
    return total


@numba.njit(cache=True, error_model="numpy", fastmath=ORDERED)
def _highest(scores):  # type: ignore[no-untyped-def]
    high = scores[0]
    for a in range(1, len(scores)):
        high = max(high, scores[a])
    return high


@numba.njit(cache=True, error_model="numpy")
def _first_best(scores):  # type: ignore[no-untyped-def]
    high = _highest(scores)
    for a in range(len(scores)):
        if scores[a] == high:
            return a
    return 0


@numba.njit(cache=True, error_model="numpy")
def _root_action(out, tree, b, invalid, noise, wanted, c):  # type: ignore[no-untyped-def]
    cells, visits = tree.cells[b, 0], tree.links[b, 0, VISITS]
    if c.mode == GUMBEL:
        _sigma_into(out, cells, visits, tree.stats[b, 0, RAW], c)
        logits = cells[LOGIT]
        high = logits.max()
        for a in range(len(out)):
            score = max(np.float32(-1e9), noise[a] + (logits[a] - high) + out[a])
            out[a] = score if visits[a] == wanted else np.float32(-np.inf)
    else:
        _puct_into(out, cells, visits, tree.stats[b, 0, MEAN], tree.nodes[b, 0, NODE_VISITS], tree.bounds[b], c)
    for a in range(len(out)):
        if invalid[a]:
            out[a] = -np.inf
    return _first_best(out)


@numba.njit(cache=True, error_model="numpy")
def _inner_action(out, sigma, tree, b, node, c):  # type: ignore[no-untyped-def]
    cells, visits = tree.cells[b, node], tree.links[b, node, VISITS]
    if c.mode == GUMBEL:
        total = _sigma_into(sigma, cells, visits, tree.stats[b, node, RAW], c)
        for a in range(len(sigma)):
            sigma[a] += cells[LOGIT, a]
        _softmax_into(out, sigma)
        for a in range(len(sigma)):
            out[a] -= np.float32(visits[a]) / np.float32(1 + total)
    else:
        mean, total = tree.stats[b, node, MEAN], tree.nodes[b, node, NODE_VISITS]
        _puct_into(out, cells, visits, mean, total, tree.bounds[b], c)
    return _first_best(out)


@numba.njit(cache=True, error_model="numpy")
def _walk(out, sigma, tree, b, invalid, noise, wanted, c):  # type: ignore[no-untyped-def]
    """From the root of tree b to the next question: a node and an action."""
    node, action = 0, _root_action(out, tree, b, invalid, noise, wanted, c)
    for _ in range(1, c.depth):
        child = tree.links[b, node, INDEX, action]
        if child < 0:
            break
        node = child
        action = _inner_action(out, sigma, tree, b, node, c)
    return node, action


@numba.njit(cache=True, error_model="numpy")
def _insert(cells, links, stats, nodes, bounds, at, new, numbers, logits, c):  # type: ignore[no-untyped-def]
    """Expand one tree at = node, action, and back up numbers = reward, discount, value. Returns the node reached."""
    node, action = at
    known = links[node, INDEX, action]
    leaf = known if known >= 0 else new
    links[node, INDEX, action] = leaf
    cells[node, REWARD, action], cells[node, DISCOUNT, action] = numbers[0], numbers[1]
    cells[leaf, LOGIT] = logits
    _softmax_into(cells[leaf, PRIOR], logits)
    stats[leaf, RAW] = stats[leaf, MEAN] = numbers[2]
    nodes[leaf, NODE_VISITS] += 1
    nodes[leaf, PARENT], nodes[leaf, ACTION] = node, action
    child, total = leaf, numbers[2]
    while nodes[child, PARENT] >= 0:
        parent, a = nodes[child, PARENT], nodes[child, ACTION]
        reward, discount = cells[parent, REWARD, a], cells[parent, DISCOUNT, a]
        q = reward + discount * stats[child, MEAN]
        cells[parent, VALUE, a], cells[parent, Q, a] = stats[child, MEAN], q
        links[parent, VISITS, a] += 1
        bounds[0], bounds[1] = min(bounds[0], q), max(bounds[1], q)
        total = reward + discount * total
        n = np.float32(nodes[parent, NODE_VISITS])
        stats[parent, MEAN] = (stats[parent, MEAN] * n + total) / (n + np.float32(1))
        nodes[parent, NODE_VISITS] += 1
        child = parent
    root = c.discount * stats[0, MEAN]
    bounds[0], bounds[1] = min(bounds[0], root), max(bounds[1], root)
    return leaf


@numba.njit(cache=True, error_model="numpy")
def _advance_tree(b, tree, simulation, simulations, invalid, noise, wanted, c, at, leaves, numbers, logits):  # type: ignore[no-untyped-def]
    if simulation > 0:
        leaves[b] = _insert(
            tree.cells[b], tree.links[b], tree.stats[b], tree.nodes[b], tree.bounds[b],
            (at[b, 0], at[b, 1]), simulation, numbers[b], logits[b], c,
        )  # fmt: skip
    if simulation < simulations:
        out = np.empty(logits.shape[1], np.float32)
        sigma = np.empty(logits.shape[1], np.float32)
        at[b, 0], at[b, 1] = _walk(out, sigma, tree, b, invalid[b], noise[b], wanted[b, simulation], c)


@numba.njit(cache=True, error_model="numpy")
def _advance(tree, simulation, simulations, invalid, noise, wanted, c, at, leaves, numbers, logits):  # type: ignore[no-untyped-def]
    """Put the answer to simulation - 1 into every tree (not before the first), and find the next question `at`."""
    for b in range(len(at)):
        _advance_tree(b, tree, simulation, simulations, invalid, noise, wanted, c, at, leaves, numbers, logits)


@numba.njit(cache=True, error_model="numpy", parallel=True)
def _advance_divided(tree, simulation, simulations, invalid, noise, wanted, c, at, leaves, numbers, logits):  # type: ignore[no-untyped-def]
    """`_advance` on several threads; on one it would only cost the start of a region."""
    for b in numba.prange(len(at)):
        _advance_tree(b, tree, simulation, simulations, invalid, noise, wanted, c, at, leaves, numbers, logits)


def _empty(root: Root, settings: Settings, noise: Tensor | None) -> Arrays:
    """Only the roots."""
    (batch, actions), nodes = root.logits.shape, 1 + settings.simulations
    cells, links = np.zeros((batch, nodes, 6, actions), np.float32), np.zeros((batch, nodes, 2, actions), np.int32)
    stats, counts = np.zeros((batch, nodes, 2), np.float32), np.zeros((batch, nodes, 3), np.int32)
    links[:, :, INDEX] = counts[:, :, PARENT] = counts[:, :, ACTION] = -1
    logits = prepare(root, settings, noise)
    cells[:, 0, LOGIT], cells[:, 0, PRIOR] = logits.numpy(), logits.softmax(-1).numpy()
    stats[:, 0, RAW] = root.value.numpy()
    if settings.counts_root or settings.policy == "gumbel":
        counts[:, 0, NODE_VISITS], stats[:, 0, MEAN] = 1, stats[:, 0, RAW]
    bounds = np.empty((batch, 2), np.float32)
    bounds[:] = settings.bounds or (np.inf, -np.inf)
    return Arrays(cells, links, stats, counts, bounds)


def _constants(settings: Settings) -> Constants:
    by = BY_NODE if settings.normalisation == "node" else BY_TREE
    return Constants(
        GUMBEL if settings.policy == "gumbel" else by,
        settings.depth,
        np.float32(settings.discount),
        np.float32(settings.c1),
        np.float32(settings.c2),
        np.float32(settings.c_visit),
        np.float32(settings.c_scale),
        settings.is_rescaled,
        settings.is_mixed,
    )


def _wanted(root: Root, settings: Settings) -> Array:
    """[B, simulations]: the visits that sequential halving looks for."""
    batch, actions = root.logits.shape
    if settings.policy != "gumbel":
        return np.zeros((batch, settings.simulations), np.int32)
    allowed = np.full(batch, actions) if root.invalid is None else (~root.invalid).sum(-1).numpy()
    table = seq.halving_table(min(actions, settings.max_considered), settings.simulations).numpy()
    return table[np.minimum(allowed, settings.max_considered)]


@torch.no_grad()
def search(root: Root, model: Model, settings: Settings, noise: Tensor | None = None) -> Result:
    """As `search.search`; on a CPU."""
    batch, actions = root.logits.shape
    tree, c = _empty(root, settings, noise), _constants(settings)
    invalid = np.zeros((batch, actions), np.bool_) if root.invalid is None else root.invalid.numpy()
    drawn = np.zeros((batch, actions), np.float32) if noise is None else _float32(noise)
    wanted = _wanted(root, settings)
    at, leaves = np.zeros((batch, 2), np.int64), np.zeros(batch, np.int64)
    numbers, logits = np.zeros((batch, 3), np.float32), np.zeros((batch, actions), np.float32)
    first = np.arange(batch) * (1 + settings.simulations)
    embeddings = root.embedding.new_zeros(batch * (1 + settings.simulations), *root.embedding.shape[1:])
    embeddings[torch.from_numpy(first)] = root.embedding
    threads = numba.get_num_threads()
    most = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, -(-batch // TREES_PER_THREAD))  # type: ignore[attr-defined]
    advance = _advance_divided if most > 1 else _advance
    numba.set_num_threads(max(1, most))
    try:
        advance(tree, 0, settings.simulations, invalid, drawn, wanted, c, at, leaves, numbers, logits)
        for simulation in range(1, settings.simulations + 1):
            parents = embeddings.index_select(0, torch.from_numpy(first + at[:, 0]))
            out = model(parents, torch.from_numpy(at[:, 1].copy()))
            numbers, logits = _float32(torch.stack([out.reward, out.discount, out.value], 1)), _float32(out.logits)
            advance(tree, simulation, settings.simulations, invalid, drawn, wanted, c, at, leaves, numbers, logits)
            embeddings.index_copy_(0, torch.from_numpy(first + leaves), out.embedding)
    finally:
        numba.set_num_threads(threads)
    return summarise(_tree(tree, embeddings.view(batch, -1, *root.embedding.shape[1:])), root, settings, noise)


def _float32(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.numpy(), np.float32)


def _tree(arrays: Arrays, embeddings: Tensor) -> Tree:
    cells, links, stats, nodes, bounds = (torch.from_numpy(array) for array in arrays)
    return Tree(
        node_visits=nodes[:, :, NODE_VISITS],
        node_values=stats[:, :, MEAN],
        raw_values=stats[:, :, RAW],
        parents=nodes[:, :, PARENT],
        action_from_parent=nodes[:, :, ACTION],
        children_index=links[:, :, INDEX],
        children_logits=cells[:, :, LOGIT],
        children_visits=links[:, :, VISITS],
        children_rewards=cells[:, :, REWARD],
        children_discounts=cells[:, :, DISCOUNT],
        children_values=cells[:, :, VALUE],
        embeddings=embeddings,
        low=bounds[:, 0],
        high=bounds[:, 1],
    )

"""Planning: many trees at once, as arrays, in the readable form that the fast ones are held to.

B trees, M nodes of each (1 + simulations), A actions. Node 0 is the root; simulation i makes node i + 1. A tree whose
depth is limited may make none: such rows stay empty. Elements of a batch never see each other.

Two players need no code of their own: values and rewards are those of the player to move, and the discount of a move
that passes the turn is negative, so that Q(s, a) = r + discount * V(child) changes the sign by itself.

Two choices of bookkeeping, which give different trees at few simulations. The paper's pseudocode has "tree" and a root
that does not count, the library mctx "node" and a root that does:

    normalisation   "tree": Q scaled by the smallest and largest value of the whole tree, starting at the known bounds
                    if there are any; "node": by the values of one node, its own and those of its visited children
    counts_root     the root starts with one visit, of its own value; without, the first simulation cannot follow the
                    prior (all scores are 0, and the lowest action is taken), and the mean leaves that value out

Source: paper, Appendix B, Eq. 2 to 5; Gumbel paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from muzero import gumbel as seq

NORMALISATIONS = ("tree", "node")
POLICIES = ("muzero", "gumbel")
SMALLEST_RANGE = 1e-8


@dataclass(frozen=True)
class Outcome:
    """What the model says of a transition: reward [B] and discount [B]; logits [B, A], value [B], embedding [B, ...]
    of the state reached."""

    reward: Tensor
    discount: Tensor
    logits: Tensor
    value: Tensor
    embedding: Tensor


class Model(Protocol):
    """The dynamics and prediction functions, as the search calls them."""

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome: ...


@dataclass(frozen=True)
class Root:
    """Where a search begins: logits [B, A], value [B], embedding [B, ...]; invalid [B, A] bool, or None if all moves
    are allowed. Moves are forbidden at the root alone: below it the model has to know."""

    logits: Tensor
    value: Tensor
    embedding: Tensor
    invalid: Tensor | None = None


@dataclass(frozen=True)
class Settings:
    """How to search. discount: of one step, negative if it passes the turn (for the bounds of "tree" alone).

    bounds: smallest and largest value known beforehand, or None. The rest has the paper's symbols.
    """

    simulations: int = 50
    policy: str = "muzero"
    normalisation: str = "tree"
    counts_root: bool = False
    discount: float = 1.0
    bounds: tuple[float, float] | None = None
    max_depth: int | None = None
    c1: float = 1.25
    c2: float = 19652.0
    noise_fraction: float = 0.25
    max_considered: int = 16
    c_visit: float = 50.0
    c_scale: float = 0.1
    is_rescaled: bool = True
    is_mixed: bool = True

    @property
    def depth(self) -> int:
        """Longest path of a simulation, in actions."""
        return min(self.simulations, self.max_depth or self.simulations)


@dataclass
class Tree:
    """Everything a search knows, [B, M] and [B, M, A]; -1 in indices stands for none."""

    node_visits: Tensor
    node_values: Tensor
    raw_values: Tensor
    parents: Tensor
    action_from_parent: Tensor
    children_index: Tensor
    children_logits: Tensor
    children_visits: Tensor
    children_rewards: Tensor
    children_discounts: Tensor
    children_values: Tensor
    embeddings: Tensor
    low: Tensor  # [B] smallest and largest value seen, for "tree"
    high: Tensor

    def q(self, node: Tensor | int = 0) -> Tensor:
        """r + discount * V(child) [B, A] at a node of each tree, 0 where there is no child."""
        rows = torch.arange(len(self.low), device=self.low.device)
        values = self.children_discounts[rows, node] * self.children_values[rows, node]
        return self.children_rewards[rows, node] + values


@dataclass(frozen=True)
class Result:
    """visits [B, A] and value [B] of the root, q [B, A]; policy [B, A], the target for training; action [B], the
    choice without temperature; the tree it was read from."""

    visits: Tensor
    value: Tensor
    q: Tensor
    policy: Tensor
    action: Tensor
    tree: Tree


def masked_softmax(logits: Tensor, invalid: Tensor | None) -> Tensor:
    """Probabilities [B, A] over the allowed actions, exactly 0 elsewhere. Raises ValueError if none is allowed."""
    if invalid is None:
        return logits.softmax(-1)
    # The device is asked once here, in front of a search, and never inside it.
    if logits.device.type == "cpu" and bool(invalid.all(-1).any()):
        raise ValueError("no action is allowed at one of the roots")
    return logits.masked_fill(invalid, -torch.inf).softmax(-1)


def add_noise(prior: Tensor, noise: Tensor, fraction: float) -> Tensor:
    """(1 - fraction) P + fraction * noise. Source: paper, Appendix C (fraction 0.25)."""
    return (1 - fraction) * prior + fraction * noise


def exploration(prior: Tensor, visits: Tensor, total: Tensor, c1: float, c2: float) -> Tensor:
    """P(a) sqrt(N) / (1 + N(a)) (c1 + ln((N + c2 + 1) / c2)) [B, A], N = total [B]. Source: paper, Eq. 2."""
    n = total[:, None].to(prior.dtype)
    return prior * n.sqrt() / (1 + visits) * (c1 + torch.log((n + c2 + 1) / c2))


def scaled_by_node(q: Tensor, visits: Tensor, value: Tensor) -> Tensor:
    """q [B, A] scaled to [0, 1] by a node's value [B] and its visited q; 0 for what is not visited."""
    filled = torch.where(visits > 0, q, value[:, None])
    low = torch.minimum(filled.amin(-1), value)[:, None]
    high = torch.maximum(filled.amax(-1), value)[:, None]
    return torch.where(visits > 0, (q - low) / (high - low).clamp(min=SMALLEST_RANGE), torch.zeros_like(q))


def scaled_by_tree(q: Tensor, visits: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """q [B, A] scaled by the bounds [B] of the whole tree; 0 for what is not visited, q itself without a range.

    Source: paper, Eq. 5.
    """
    span = (high - low)[:, None]
    has_range = span > 0
    scaled = torch.where(has_range, (q - low[:, None]) / torch.where(has_range, span, torch.ones_like(span)), q)
    return torch.where(visits > 0, scaled, torch.zeros_like(q))


def prepare(root: Root, settings: Settings, noise: Tensor | None) -> Tensor:
    """The root's logits [B, A] as the tree holds them: noise mixed in, forbidden actions at the lowest number."""
    if settings.policy == "gumbel":
        logits = root.logits - root.logits.amax(-1, keepdim=True)
    else:
        prior = masked_softmax(root.logits, root.invalid)
        if noise is not None:
            prior = add_noise(prior, noise.to(prior.dtype), settings.noise_fraction)
        logits = prior.clamp(min=torch.finfo(prior.dtype).tiny).log()
    # Not -inf, which would turn a difference of logits into NaN.
    return logits if root.invalid is None else logits.masked_fill(root.invalid, torch.finfo(logits.dtype).min)


def empty_tree(root: Root, logits: Tensor, settings: Settings) -> Tree:
    """Only the root."""
    batch, actions = logits.shape
    nodes, device, kind = 1 + settings.simulations, logits.device, logits.dtype

    def filled(value: float, *shape: int, dtype: torch.dtype = kind) -> Tensor:
        return torch.full((batch, nodes, *shape), value, dtype=dtype, device=device)

    low, high = settings.bounds or (torch.inf, -torch.inf)
    tree = Tree(
        node_visits=filled(0, dtype=torch.int32),
        node_values=filled(0),
        raw_values=filled(0),
        parents=filled(-1, dtype=torch.int32),
        action_from_parent=filled(-1, dtype=torch.int32),
        children_index=filled(-1, actions, dtype=torch.int32),
        children_logits=filled(0, actions),
        children_visits=filled(0, actions, dtype=torch.int32),
        children_rewards=filled(0, actions),
        children_discounts=filled(0, actions),
        children_values=filled(0, actions),
        embeddings=root.embedding.new_zeros(batch, nodes, *root.embedding.shape[1:]),
        low=torch.full((batch,), low, dtype=kind, device=device),
        high=torch.full((batch,), high, dtype=kind, device=device),
    )
    tree.children_logits[:, 0] = logits
    tree.raw_values[:, 0] = root.value
    tree.embeddings[:, 0] = root.embedding
    if settings.counts_root or settings.policy == "gumbel":
        tree.node_visits[:, 0], tree.node_values[:, 0] = 1, root.value
    return tree


def scores(tree: Tree, node: Tensor, settings: Settings) -> Tensor:
    """The score [B, A] of every action at one node [B] of each tree, whose largest is selected below the root."""
    rows = torch.arange(len(node), device=node.device)
    logits, visits, q = tree.children_logits[rows, node], tree.children_visits[rows, node], tree.q(node)
    if settings.policy == "gumbel":
        return seq.interior_scores(logits, completed(tree, node, settings), visits)
    if settings.normalisation == "node":
        scaled = scaled_by_node(q, visits, tree.node_values[rows, node])
    else:
        scaled = scaled_by_tree(q, visits, tree.low, tree.high)
    total = tree.node_visits[rows, node]
    return scaled + exploration(logits.softmax(-1), visits, total, settings.c1, settings.c2)


def completed(tree: Tree, node: Tensor | int, settings: Settings) -> Tensor:
    """sigma(completed q) [B, A] at a node of each tree."""
    rows = torch.arange(len(tree.low), device=tree.low.device)
    return seq.completed_values(
        tree.raw_values[rows, node],
        tree.q(node),
        tree.children_visits[rows, node],
        tree.children_logits[rows, node].softmax(-1),
        c_visit=settings.c_visit,
        c_scale=settings.c_scale,
        is_rescaled=settings.is_rescaled,
        is_mixed=settings.is_mixed,
    )


def root_actions(tree: Tree, simulation: int, root: Root, settings: Settings, gumbel: Tensor | None) -> Tensor:
    """The root's selection [B]: the best score, or the action that sequential halving wants to see next."""
    rows = torch.zeros(len(root.value), dtype=torch.long, device=root.value.device)
    if settings.policy == "muzero":
        found = scores(tree, rows, settings)
    else:
        actions, visits = root.logits.shape[1], tree.children_visits[:, 0]
        table = seq.halving_table(min(actions, settings.max_considered), settings.simulations, rows.device)
        allowed = torch.full_like(rows, actions) if root.invalid is None else (~root.invalid).sum(-1)
        wanted = table[allowed.clamp(max=settings.max_considered), simulation]
        noise = torch.zeros_like(root.logits) if gumbel is None else gumbel
        found = seq.root_scores(noise, tree.children_logits[:, 0], completed(tree, 0, settings), visits, wanted)
    return masked(found, root).argmax(-1)


def masked(found: Tensor, root: Root) -> Tensor:
    """-inf for forbidden actions."""
    return found if root.invalid is None else found.masked_fill(root.invalid, -torch.inf)


def select(tree: Tree, simulation: int, root: Root, settings: Settings, gumbel: Tensor | None) -> tuple[Tensor, Tensor]:
    """From the root down to an action without a node, or to the depth limit. Returns node and action, [B] each."""
    node = torch.zeros(len(root.value), dtype=torch.long, device=root.value.device)
    rows = torch.arange(len(node), device=node.device)
    action = root_actions(tree, simulation, root, settings, gumbel)
    for _ in range(1, settings.depth):
        child = tree.children_index[rows, node, action].long()
        goes_on = child >= 0
        if not bool(goes_on.any()):
            break
        node = torch.where(goes_on, child, node)
        action = torch.where(goes_on, scores(tree, node, settings).argmax(-1), action)
    return node, action


def expand(tree: Tree, node: Tensor, action: Tensor, simulation: int, out: Outcome) -> Tensor:
    """Put the state that was reached into the tree. Returns its index [B].

    A node that exists, which only a depth limit leads to, is evaluated again and starts from that value.
    """
    rows = torch.arange(len(node), device=node.device)
    known = tree.children_index[rows, node, action].long()
    leaf = torch.where(known >= 0, known, simulation + 1)
    tree.children_index[rows, node, action] = leaf.int()
    tree.children_rewards[rows, node, action] = out.reward
    tree.children_discounts[rows, node, action] = out.discount
    tree.children_logits[rows, leaf] = out.logits
    tree.raw_values[rows, leaf] = out.value
    tree.node_values[rows, leaf] = out.value
    tree.node_visits[rows, leaf] += 1
    tree.parents[rows, leaf] = node.int()
    tree.action_from_parent[rows, leaf] = action.int()
    tree.embeddings[rows, leaf] = out.embedding
    return leaf


def backup(tree: Tree, leaf: Tensor, value: Tensor, settings: Settings) -> None:
    """Add the leaf's value [B], with the rewards on the way, to the mean of every node above it."""
    rows = torch.arange(len(leaf), device=leaf.device)
    child, total = leaf, value
    while True:
        parent = tree.parents[rows, child].long()
        moving = parent >= 0
        if not bool(moving.any()):
            break
        r, p, a = rows[moving], parent[moving], tree.action_from_parent[rows, child].long()[moving]
        reward, discount = tree.children_rewards[r, p, a], tree.children_discounts[r, p, a]
        tree.children_values[r, p, a] = tree.node_values[r, child[moving]]
        tree.children_visits[r, p, a] += 1
        widen(tree, r, reward + discount * tree.node_values[r, child[moving]])
        total = total.clone()
        total[moving] = reward + discount * total[moving]
        visits = tree.node_visits[r, p]
        tree.node_values[r, p] = (tree.node_values[r, p] * visits + total[moving]) / (visits + 1)
        tree.node_visits[r, p] = visits + 1
        child = torch.where(moving, parent, child)
    widen(tree, rows, settings.discount * tree.node_values[:, 0])


def widen(tree: Tree, rows: Tensor, values: Tensor) -> None:
    """Let the bounds of some trees hold one more value each."""
    tree.low[rows] = torch.minimum(tree.low[rows], values)
    tree.high[rows] = torch.maximum(tree.high[rows], values)


def search(root: Root, model: Model, settings: Settings, noise: Tensor | None = None) -> Result:
    """The trees of a batch of roots.

    noise [B, A]: draws of Dirichlet noise over the allowed actions ("muzero") or of Gumbel noise ("gumbel"); None for
    a search without any. Of equal scores the lowest action wins. No gradient.
    """
    with torch.no_grad():
        tree = empty_tree(root, prepare(root, settings, noise), settings)
        rows = torch.arange(len(root.value), device=root.value.device)
        for simulation in range(settings.simulations):
            node, action = select(tree, simulation, root, settings, noise)
            out = model(tree.embeddings[rows, node], action)
            leaf = expand(tree, node, action, simulation, out)
            backup(tree, leaf, out.value, settings)
        return summarise(tree, root, settings, noise)


def summarise(tree: Tree, root: Root, settings: Settings, noise: Tensor | None) -> Result:
    """What is read from a finished tree.

    The policy for training is the share of visits, or, with Gumbel, the improved policy softmax(logits + sigma(q)).
    """
    visits, q = tree.children_visits[:, 0], tree.q()
    if settings.policy == "muzero":
        policy = visits / visits.sum(-1, keepdim=True)
        action = masked(visits.to(q.dtype), root).argmax(-1)
    else:
        logits, sigma_q = tree.children_logits[:, 0], completed(tree, 0, settings)
        policy = masked(logits + sigma_q, root).softmax(-1)
        drawn = torch.zeros_like(q) if noise is None else noise
        action = masked(seq.root_scores(drawn, logits, sigma_q, visits, visits.amax(-1)), root).argmax(-1)
    return Result(visits, tree.node_values[:, 0], q, policy, action, tree)


def depths(tree: Tree) -> Tensor:
    """Actions between the root and every node, [B, M]; -1 for nodes that do not exist."""
    found = torch.full_like(tree.parents, -1)
    found[:, 0] = 0
    for node in range(1, found.shape[1]):
        parent = tree.parents[:, node].long()
        above = found.gather(1, parent.clamp(min=0)[:, None])[:, 0]
        found[:, node] = torch.where(parent >= 0, above + 1, found[:, node])
    return found

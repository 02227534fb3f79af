"""What a search looks like: the tree of one move, strength against simulations, a film of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.video import write_video
from muzero.boards import GAMES
from muzero.config import Config
from muzero.env import View, make_worlds
from muzero.networks import Network
from muzero.search import Result, Tree, depths
from muzero.self_play import LearnedModel, run_search, search_settings

Array = NDArray[Any]
COLOUR = "#2a6f97"
MOST_LABELS = 60  # leaves of a tree whose actions can still be read
FRAMES, HOLD, FRAMES_PER_SECOND = 30, 10, 6


@torch.no_grad()
def search_of_first_move(network: Network, config: Config) -> Result:
    """The search without noise at the first observation of an episode."""
    worlds = make_worlds(config, [0], "test")
    settings = search_settings(config, worlds.space, config.test_simulations or config.simulations)
    model, device = LearnedModel(network, settings.discount), next(network.parameters()).device
    obs, legal = View(worlds).observe(), worlds.legal()
    worlds.close()
    root = model.root(torch.from_numpy(obs).to(device), torch.from_numpy(legal).to(device))
    return run_search(root, model, settings, None, use_fast=config.use_fast)


def layout(tree: Tree) -> dict[int, tuple[float, int]]:
    """Node -> (x, depth) of the first tree of a batch: leaves side by side, parents above the middle of theirs."""
    parents = tree.parents[0].cpu().tolist()
    deep = depths(tree)[0].cpu().tolist()
    children: dict[int, list[int]] = {node: [] for node, depth in enumerate(deep) if depth >= 0}
    for node in children:
        if node:
            children[parents[node]].append(node)
    x: dict[int, float] = {}
    leaves = 0
    stack = [(0, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done and children[node]:
            x[node] = float(np.mean([x[child] for child in children[node]]))
        elif is_done:
            x[node], leaves = float(leaves), leaves + 1
        else:
            stack.append((node, True))
            by_action = sorted(children[node], key=lambda child: int(tree.action_from_parent[0, child]), reverse=True)
            stack += [(child, False) for child in by_action]
    return {node: (x[node], deep[node]) for node in children}


def draw_tree(tree: Tree, path: Path, names: list[str] | None = None) -> None:
    """The first tree of a batch: a disc for each node, as large as its visits, coloured by its value; the action that
    leads to it beside it, where there is room."""
    figure = tree_figure(tree, layout(tree), names)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def tree_figure(tree: Tree, places: Mapping[int, tuple[float, int]], names: list[str] | None) -> Figure:
    """The nodes of a tree at given places, which may be those of a larger tree."""
    visits, values = tree.node_visits[0].cpu().numpy(), tree.node_values[0].cpu().numpy()
    shown = [node for node in sorted(places) if node < len(visits)]
    wide = max(x for x, _ in places.values()) + 1
    deep = max(depth for _, depth in places.values()) + 1
    figure, axis = plt.subplots(figsize=(min(16, max(6, 3 + 0.3 * wide)), 1.5 + 0.8 * deep), layout="constrained")
    for node in shown[1:]:
        parent = int(tree.parents[0, node])
        (x0, y0), (x1, y1) = places[parent], places[node]
        axis.plot([x0, x1], [-y0, -y1], color="#999999", linewidth=0.4 + 3 * visits[node] / visits[0], zorder=1)
        action = int(tree.action_from_parent[0, node])
        label = str(action) if names is None else names[action]
        if wide <= MOST_LABELS:
            axis.annotate(label, (x1, -y1), (3, 3), textcoords="offset points", fontsize=7)
    x, y = [places[node][0] for node in shown], [-places[node][1] for node in shown]
    limit = max(1e-3, float(np.abs(values).max()))
    discs = axis.scatter(
        x, y, s=15 + 250 * visits[shown] / visits[0], c=values[shown], cmap="RdYlGn", vmin=-limit, vmax=limit,
        edgecolors="#333333", linewidths=0.5, zorder=2,
    )  # fmt: skip
    figure.colorbar(discs, label="value for the player to move", shrink=0.6)
    axis.set(title=f"search tree of one move, {int(visits[0])} visits of the root", ylabel="moves ahead", xticks=[])
    axis.set(xlim=(-0.8, wide - 0.2), ylim=(0.5 - deep, 0.5))
    axis.set_yticks(range(0, -deep, -1), [str(depth) for depth in range(deep)])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def grown(tree: Tree, nodes: int) -> Tree:
    """The first tree of a batch when it had so many nodes: their visits of then, and their values of now."""
    parents = tree.parents[:1, :nodes]
    visits = torch.ones_like(parents)
    for node in range(nodes - 1, 0, -1):
        if int(parents[0, node]) >= 0:
            visits[0, int(parents[0, node])] += visits[0, node]
    parts = {name: getattr(tree, name)[:1, :nodes] for name in ("node_values", "action_from_parent")}
    return replace(tree, parents=parents, node_visits=visits, low=tree.low[:1], high=tree.high[:1], **parts)


def film(tree: Tree, path: Path, names: list[str] | None = None) -> None:
    """The search tree of one move as it grows, a few nodes a frame; its end stands for a while."""
    count = int((tree.node_visits[0] > 0).sum())
    sizes = sorted({max(2, round(count * k / FRAMES)) for k in range(1, FRAMES + 1)})
    places = layout(tree)
    frames = [canvas(grown(tree, size), places, names) for size in sizes]
    write_video(path, np.stack(frames + frames[-1:] * HOLD), FRAMES_PER_SECOND)


def canvas(tree: Tree, places: Mapping[int, tuple[float, int]], names: list[str] | None) -> Array:
    """`draw_tree` as a picture [H, W, 3] uint8 of even size, with every node where it will be in the end."""
    figure = tree_figure(tree, places, names)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    plt.close(figure)
    return np.ascontiguousarray(picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2])


def draw_strength(record: Mapping[str, Any], path: Path) -> None:
    """Mistakes on graded positions against simulations per move, a panel a class; no picture without them."""
    found: dict[str, dict[int, float]] = {}
    beside: dict[str, dict[str, float]] = {}
    for name, part in record["measurements"].items():
        head, middle, label = name.partition(": mistakes, ")
        if middle and label.endswith(" simulations"):
            found.setdefault(head, {})[int(label.split()[0])] = part["value"]
        elif middle and "simulations" not in label:
            beside.setdefault(head, {})[label] = part["value"]
    if not found:
        return
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained", sharex=True)
    for axis, (head, line) in zip(axes.flat, found.items(), strict=False):
        axis.plot(list(line), list(line.values()), "o-", color=COLOUR, label="agent")
        for style, (label, value) in zip(("--", ":"), beside.get(head, {}).items(), strict=False):
            axis.axhline(value, color="#888888", linestyle=style, label=label)
        axis.set(title=head, xscale="log", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.supxlabel("simulations per move")
    figure.supylabel("moves that give away a win or a draw, %")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def show(network: Network, config: Config, record: Mapping[str, Any], folder: Path) -> None:
    """All pictures of a tested run, into its folder."""
    names = None
    if config.task in GAMES and GAMES[config.task].has_gravity:
        names = [str(column + 1) for column in range(GAMES[config.task].actions)]
    tree = search_of_first_move(network, config).tree
    draw_tree(tree, folder / "tree.png", names)
    film(tree, folder / "video.webm", names)
    draw_strength(record, folder / "strength.png")

"""What a person sees of a run: the latents in use, and what the model imagines beside what happens.

The film: five observed steps, then only the actions are given. Panels for images: reality, the model's open-loop
prediction, their difference, and an episode played by the agent inside its own imagination. For vectors the same as
curves, one row per number. Below them what the model expects: reward, value, and the probability of going on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from torch import Tensor

from common.seeding import derive_seed
from common.video import label, side_by_side, write_video
from dreamerv3.agent import Agent
from dreamerv3.config import Config
from dreamerv3.distributions import symexp
from dreamerv3.env import Worlds
from dreamerv3.rows import Rows
from dreamerv3.rssm import State

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

Array = np.ndarray[Any, Any]

CONTEXT = 5  # observed steps before the imagination is left alone
LENGTH = 60  # agent steps of the film
FPS = 10
PANEL = 128
ROWS = 6  # numbers shown of a vector world
WIDTH, HEIGHT = 480, 72  # of a row of curves
LOOKED_BACK = 1000  # rows of the replay in which a stretch is looked for
COLOURS = {"real": (60, 60, 60), "open loop": (214, 102, 30), "dream": (42, 111, 151)}


@dataclass(frozen=True)
class Stretch:
    """L steps of one episode: obs [L, ...] by name, actions [L, ...] taken after each, reward [L] on arriving."""

    obs: Mapping[str, Array]
    actions: Array
    reward: Array


def film(
    agent: Agent, worlds: Worlds, act: Callable[[dict[str, Array], int], Array], config: Config, folder: Path
) -> None:
    """Play one episode's beginning, then write video.webm, and its latents as latents.png, into `folder`."""
    frames, states = draw_film(agent, played(worlds, act), config.seed)
    write_video(folder / "video.webm", frames, FPS)
    draw_latents(states, folder / "latents.png")


class Latest:
    """`latest.webm` in the run folder while it trains, drawn anew every `film_seconds`.

    It reads the replay and draws from streams of its own, so that the run is the same with and without it.
    """

    def __init__(self, agent: Agent, rows: Rows, config: Config, folder: Path) -> None:
        self.agent, self.rows, self.config, self.path = agent, rows, config, folder / "latest.webm"
        self.drawn = time.monotonic()

    def draw_if_due(self) -> None:
        """Draw it if it is time; what cannot be written costs a line and not the run."""
        if time.monotonic() - self.drawn < self.config.film_seconds:
            return
        frames, _ = draw_film(self.agent, remembered(self.rows), self.config.seed)
        try:
            write_video(self.path, frames, FPS)
        except (OSError, RuntimeError) as error:
            print(f"warning: {self.path} is not written: {error}", file=sys.stderr)
        self.drawn = time.monotonic()


def draw_film(agent: Agent, stretch: Stretch, seed: int) -> tuple[Array, State]:
    """What the model imagines of a stretch as frames [L, H, W, 3], and its posterior states [L, ...]."""
    states, imagined, dream = imaginations(agent, stretch.obs, stretch.actions, seed)
    parts = {"open loop": _after_context(states, imagined), "dream": _after_context(states, dream)}
    decoded = {name: decode(agent, part) for name, part in parts.items()}
    below = _signals(agent, parts, stretch.reward)
    images = agent.world.decoder.images
    if images:
        panels = _image_film(stretch.obs[images[0]], decoded, images[0])
        frames = np.concatenate([panels, curve_film(below, panels.shape[2])], 1)
    else:
        frames = curve_film({**_vector_curves(agent, stretch.obs, decoded), **below}, WIDTH)
    return frames, states


def _after_context(states: State, imagined: State) -> State:
    """The observed states, then the imagined ones, [L, ...]."""
    return State(torch.cat([states.h[:CONTEXT], imagined.h]), torch.cat([states.z[:CONTEXT], imagined.z]))


def played(worlds: Worlds, act: Callable[[dict[str, Array], int], Array]) -> Stretch:
    """The first LENGTH steps of an episode of the first world."""
    rows: list[dict[str, Array]] = []
    actions: list[Array] = []
    action = np.zeros(1, np.int64) if worlds.actions.is_discrete else np.zeros((1, worlds.actions.size), np.float32)
    for number in range(LENGTH):
        rows.append(worlds.step(action))
        action = act(rows[-1], number)
        actions.append(action[0])
        if rows[-1]["is_last"][0]:
            break
    obs = {name: np.stack([row[f"obs/{name}"][0] for row in rows]) for name in worlds.spaces}
    return Stretch(obs, np.stack(actions), np.array([row["reward"][0] for row in rows]))


def remembered(rows: Rows, env: int = 0) -> Stretch:
    """The newest LENGTH steps of an episode of one world in the replay; of the longest if all of late are shorter."""
    first = max(rows.oldest, rows.count - LOOKED_BACK)
    begins = np.flatnonzero(rows.arrays["is_first"][np.arange(first, rows.count) % rows.slots, env]) + first
    episodes = list(pairwise(sorted({first, *begins.tolist(), rows.count})))
    start, end = max(reversed(episodes), key=lambda episode: min(LENGTH, episode[1] - episode[0]))
    slots = np.arange(max(start, end - LENGTH), end) % rows.slots
    found = {name: np.array(array[slots, env]) for name, array in rows.arrays.items() if name not in rows.latents}
    obs = {name.removeprefix("obs/"): array for name, array in found.items() if name.startswith("obs/")}
    return Stretch(obs, found["action"], found["reward"])


@torch.no_grad()
def imaginations(agent: Agent, obs: Mapping[str, Array], actions: Array, seed: int) -> tuple[State, State, State]:
    """Posterior states of all L steps, and from step CONTEXT on (L - CONTEXT steps each) two imagined continuations:
    with the recorded actions (open loop) and with the agent's own (dream)."""
    model, device = agent.world.rssm, next(agent.parameters()).device
    length = len(actions)
    tensors = {name: torch.from_numpy(value).to(device)[None] for name, value in obs.items()}
    vectors = agent.world.action_vector(torch.from_numpy(actions).to(device)[None])
    previous = torch.cat([torch.zeros_like(vectors[:, :1]), vectors[:, :-1]], 1)
    is_first = torch.zeros(1, length, dtype=torch.bool, device=device)
    is_first[:, 0] = True
    generator = torch.Generator(device).manual_seed(derive_seed(seed, "film"))
    uniform = torch.rand(3, 1, length, model.sizes.stoch, generator=generator, device=device)
    tokens = agent.world.encoder(tensors)
    states, _ = model.observe(model.initial_state(1), previous, tokens, is_first, uniform[0])
    start = min(CONTEXT, length) - 1
    open_loop = dream = State(states.h[:, start], states.z[:, start])
    found: tuple[list[State], list[State]] = ([], [])
    for t in range(start + 1, length):
        open_loop = model.imagine_step(open_loop, vectors[:, t - 1], uniform[1, :, t])
        _, noise = agent.draw_act_noise(1, torch.Generator().manual_seed(derive_seed(seed, "film act", t)))
        policy = agent.actor(dream.feature)
        dream = model.imagine_step(dream, policy.vector(policy.sample(noise.to(device))), uniform[2, :, t])
        found[0].append(open_loop)
        found[1].append(dream)
    parts = []
    for steps in found:
        h = torch.cat([s.h for s in steps]) if steps else states.h[0, :0]
        z = torch.cat([s.z for s in steps]) if steps else states.z[0, :0]
        parts.append(State(h, z))
    return State(states.h[0], states.z[0]), parts[0], parts[1]


@torch.no_grad()
def decode(agent: Agent, states: State) -> dict[str, Array]:
    """What the decoder shows of states [L, ...]: images in [0, 1], vectors in raw units, integers as the likeliest."""
    found = {}
    for name, value in agent.world.decoder(states.h, states.z).items():
        kind = agent.world.decoder.spaces[name].kind
        raw = symexp(value) if agent.config.use_symlog else value
        shown = value if kind == "image" else raw if kind == "float" else value.argmax(-1)[..., None].float()
        found[name] = shown.cpu().numpy()
    return found


def draw_latents(states: State, path: Path) -> None:
    """How often each class of each latent is drawn along the film's episode; states.z [L, S, K]."""
    share = states.z.mean(0).cpu().numpy()  # [S, K]
    used = np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum(1))  # effective number of classes
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 4), layout="constrained", width_ratios=(3, 1))
    axes[0].imshow(share, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set(title="share of each class", xlabel="class", ylabel="latent")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].barh(np.arange(len(used)), used, color="#2a6f97")
    axes[1].set(title="classes in use", xlabel="effective number", ylim=(len(used) - 0.5, -0.5), xlim=(0, None))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _image_film(real: Array, decoded: Mapping[str, Mapping[str, Array]], name: str) -> Array:
    """Four panels [L, PANEL, PANEL, 3] side by side."""
    predicted, dream = ((255 * decoded[part][name]).clip(0, 255).astype(np.uint8) for part in ("open loop", "dream"))
    error = np.abs(real.astype(np.int16) - predicted).astype(np.uint8)
    panels = (("real", real), ("open loop", predicted), ("error", error), ("dream", dream))
    return side_by_side([_panel(frames, title) for title, frames in panels])


def _panel(frames: Array, title: str) -> Array:
    """Images [L, H, W, C] as [L, PANEL, PANEL, 3] with their title; the context is called so."""
    large = [colours(frame, PANEL) for frame in frames]
    titles = [title if t >= CONTEXT else "context" for t in range(len(large))]
    return np.stack([label(frame, text) for frame, text in zip(large, titles, strict=True)])


def colours(frame: Array, side: int) -> Array:
    """An image [H, W, C] uint8 of any number of channels as [side, side, 3]."""
    three = np.repeat(frame[..., :1], 3, -1) if frame.shape[-1] < 3 else frame[..., :3]
    return np.asarray(cv2.resize(three, (side, side), interpolation=cv2.INTER_NEAREST))


def _vector_curves(
    agent: Agent, obs: Mapping[str, Array], decoded: Mapping[str, Mapping[str, Array]]
) -> dict[str, dict[str, Array]]:
    """The first ROWS numbers of the world: {name of the number: {"real", "open loop", "dream": [L]}}."""
    names = list(agent.world.decoder.vectors)
    length = len(next(iter(obs.values())))
    curves = {"real": _flat(obs, names, length), **{part: _flat(decoded[part], names, length) for part in decoded}}
    titles = [f"{name} {k}" for name in names for k in range(obs[name].reshape(length, -1).shape[1])][:ROWS]
    return {title: {name: curves[name][:, k] for name in curves} for k, title in enumerate(titles)}


def _flat(values: Mapping[str, Array], names: list[str], length: int) -> Array:
    """The vector observations as one [L, n]."""
    return np.concatenate([values[name].reshape(length, -1) for name in names], 1).astype(np.float32)


@torch.no_grad()
def signals(agent: Agent, feature: Tensor) -> dict[str, Array]:
    """What the model expects at features [L, D + S * K], [L] each: the reward on arriving, the value of the return from
    there, the probability of going on."""
    reward, cont = agent.world.predict(feature)
    value = agent.critic.mean(agent.critic(feature))
    found = {"reward": reward, "value": value, "continue": cont / agent.world.discount}
    return {name: x.float().cpu().numpy() for name, x in found.items()}


def _signals(agent: Agent, parts: Mapping[str, State], reward: Array) -> dict[str, dict[str, Array]]:
    """The curves below a film: `signals` of both imaginations, and the rewards that came."""
    found: dict[str, dict[str, Array]] = {"reward": {"real": reward}, "value": {}, "continue": {}}
    for part, states in parts.items():
        for name, values in signals(agent, states.feature).items():
            found[name][part] = values
    return found


def curve_film(curves: Mapping[str, Mapping[str, Array]], width: int) -> Array:
    """Growing curves [L] below each other, one row a title: frames [L, rows * HEIGHT, width, 3]."""
    length = max(len(values) for lines in curves.values() for values in lines.values())
    frames = []
    for now in range(1, length + 1):
        frame = curve_frame(curves, width, now, length)
        for row in range(len(curves)):  # where the imagination begins
            at = 8 + round((CONTEXT - 1) * (width - 16) / max(length - 1, 1))
            cv2.line(frame, (at, row * HEIGHT + 16), (at, (row + 1) * HEIGHT - 8), (200, 200, 200), 1)
        for k, (name, colour) in enumerate(COLOURS.items()):
            place = (width - 230 + 75 * k, 13)
            cv2.putText(frame, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1, cv2.LINE_AA)
        frames.append(frame)
    return np.stack(frames)


def curve_frame(curves: Mapping[str, Mapping[str, Array]], width: int, now: int, length: int) -> Array:
    """The first `now` of `length` values of each curve, all curves of a row on one scale: [rows * HEIGHT, width, 3]."""
    frame = np.full((len(curves) * HEIGHT, width, 3), 255, np.uint8)
    for row, (title, lines) in enumerate(curves.items()):
        part = frame[row * HEIGHT : (row + 1) * HEIGHT]
        both = np.concatenate(list(lines.values()))
        low, high = float(both.min()), float(both.max())
        for name, values in lines.items():
            x = 8 + np.arange(now) * (width - 16) / max(length - 1, 1)
            y = HEIGHT - 8 - (values[:now] - low) / max(high - low, 1e-6) * (HEIGHT - 24)
            points = np.stack([x, y], 1).round().astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(part, [points], False, COLOURS[name], 2, cv2.LINE_AA)
        words = f"{title}  {low:.3g} to {high:.3g}"
        cv2.putText(part, words, (10, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return frame

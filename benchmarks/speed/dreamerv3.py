"""DreamerV3: one learner update and one step of the actor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.peers.peer import compared, started
from benchmarks.speed.timing import figure, in_turns, peak_memory_of, seconds_of, timed
from common import dist
from common.graph import WARM_UPS, Graph
from common.precision import compute_dtype
from common.run import Run
from common.stage import Stage
from dreamerv3.agent import Agent, new_agent
from dreamerv3.config import Config
from dreamerv3.env import Worlds
from dreamerv3.interface import Array, Step
from dreamerv3.replay import Batch
from dreamerv3.spaces import ActionSpace, ObsSpace
from dreamerv3.train import Learner, Player, Trainer, new_learner, new_optimizer

SMALL = Config(size="1m", edition="nature")
CHANGES: dict[str, Any] = {}  # to every configuration below
SMOKE = {"CHANGES": {"batch_size": 2, "sequence_length": 8, "imagination_length": 2}}
VECTORS = {name: ObsSpace("float", (n,)) for name, n in (("position", 3), ("velocity", 2))}
PUSH = ActionSpace(1, is_discrete=False)
SOURCE = "another project's table for one GB200, bfloat16: the authors' JAX code 22.0 ms"

# NM512's GRU is dense: as wide as ours it has more parameters; the narrower one makes the learners equal in number.
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "nm512": ({"deter": 314}, {"deter": 512}),
    "danijar": ({"precision": "float32"}, {"precision": "bfloat16"}),
}


def measure(device: torch.device) -> list[dict[str, Any]]:
    """One update at batch 16 x 64 from vectors at size 1m, one inside a run, and a step of the actor."""
    torch.set_float32_matmul_precision("high")  # as training has it
    found = [_update("1m", device, is_image=False, use_fast=True)]
    plain = _update("1m", device, is_image=False, use_fast=False)
    words = f"the readable form of the same update: {plain['value']} ms"
    found[0] |= {"peer": words, "ratio": round(plain["value"] / found[0]["value"], 2)}
    if device.type == "cuda":
        found[0] |= {"published": 22.0, "published_source": SOURCE}
    whole = _update_in_a_run(device)
    whole |= {
        "peer": f"the update alone: {found[0]['value']} ms",
        "ratio": round(found[0]["value"] / whole["value"], 2),
    }
    return [*found, whole, _act(device)]


def measure_12m(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, the same update from images at size 12m."""
    return _large("12m", device)


def measure_200m(device: torch.device) -> list[dict[str, Any]]:
    """On a GPU, the same update from images at size 200m."""
    return _large("200m", device)


def _large(size: str, device: torch.device) -> list[dict[str, Any]]:
    torch.set_float32_matmul_precision("high")
    return [_update(size, device, is_image=True, use_fast=True)] if device.type == "cuda" else []


def measure_beside(checkouts: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """One update at batch 16 x 64 from vectors at size 1m, in float32 and as shipped, in turns with those of peers."""
    shipped = str(compute_dtype(SMALL.precision, torch.device("cpu"))).removeprefix("torch.")
    agents = {name: _agent(replace(SMALL, precision=name), False) for name in dict.fromkeys(("float32", shipped))}
    memory = {name: peak_memory_of(small_updates, name) for name in agents}
    shape = {"batch": SMALL.batch_size, "length": SMALL.sequence_length}
    found = []
    with ExitStack() as stack:
        peers = [
            stack.enter_context(started(name, checkouts[name], shape | form))
            for name, forms in FORMS.items()
            if name in checkouts
            for form in forms
        ]
        calls = [_drawn(agent) for agent in agents.values()]
        timings = in_turns([*calls, *(peer.update for peer in peers)], repeats=9, warmup=3)
        for peer, theirs in zip(peers, timings[len(agents) :], strict=True):
            for (name, agent), ours in zip(agents.items(), timings[: len(agents)], strict=True):
                parameters = sum(agent.parameter_counts().values())
                row = f"update, size 1m, vectors, 16 x 64, {name}, beside {peer.title.split()[0]}"
                found.append(compared(row, "ms", ours, theirs, peer, parameters, memory[name]))
    return found


def small_updates(precision: str) -> None:
    """Build the learner of size 1m and make a few updates, for their memory."""
    update = _drawn(_agent(replace(SMALL, precision=precision), False))
    for _ in range(3):
        update()


def _drawn(agent: Agent) -> Callable[[], float]:
    """Seconds of an update with the drawing of its random numbers, which is part of the update in others' code."""
    config, cpu = agent.config, torch.device("cpu")
    batch, learner = _batch(agent, False, cpu), _learner(agent, cpu)
    generator = torch.Generator().manual_seed(0)

    def update() -> None:
        learner(batch, agent.draw_noise(config.batch_size, config.sequence_length, generator))

    return partial(seconds_of, update)


def _agent(config: Config, is_image: bool) -> Agent:
    image = {"image": ObsSpace("image", (64, 64, 3))}
    return new_agent(image if is_image else VECTORS, ActionSpace(18, is_discrete=True) if is_image else PUSH, config)


def _update(size: str, device: torch.device, *, is_image: bool, use_fast: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    agent = _agent(Config(size=size, use_fast=use_fast, **CHANGES), is_image).to(device)
    batch = _batch(agent, is_image, device)
    noise = agent.draw_noise(
        agent.config.batch_size, agent.config.sequence_length, torch.Generator(device).manual_seed(0)
    )
    learner = _learner(agent, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timing = timed(lambda: learner(batch, noise), device, repeats=7, warmup=3 if device.type == "cuda" else 2)
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at most" if device.type == "cuda" else ""
    world = "64 x 64 images" if is_image else "vectors"
    form = "" if use_fast else ", readable form"
    return figure(f"update, size {size}, {world}, 16 x 64{form}", "ms", timing, note=peak)


class Drift:
    """A world of random numbers."""

    spaces, actions = VECTORS, PUSH

    def reset(self, seed: int) -> Step:
        """Start the numbers of `seed`."""
        self._rng = np.random.default_rng(seed)
        return self._answer()

    def step(self, action: Array) -> Step:
        """The next numbers."""
        return self._answer()

    def close(self) -> None:
        pass

    def _answer(self) -> Step:
        return Step({name: self._rng.normal(size=space.shape).astype(np.float32) for name, space in VECTORS.items()})


def _update_in_a_run(device: torch.device) -> dict[str, Any]:
    """An update of a run, with what it takes from the replay and gives back: rows, noise, refreshed latents.

    What it learns from does not matter to the time, so that no simulator is needed.
    """
    config, ranks = Config(size="1m", envs=4, device=str(device), **CHANGES), dist.setup(str(device))
    with TemporaryDirectory() as folder, Worlds(Drift, range(4), 0, "speed") as worlds:
        run = Run.open("dreamerv3", config, "paper", Path(folder) / "run")
        agent = new_agent(worlds.spaces, worlds.actions, config).to(device)
        optimizer = new_optimizer(agent, config)
        stage = Stage(run, "train", 1, config.checkpoint_seconds, ranks, {"agent": agent}, optimizer)
        player, trainer = Player(agent, worlds, config, ranks), Trainer(stage, agent, optimizer, worlds, config, ranks)
        for number in range(2 * config.sequence_length):
            trainer.replay.add(player.step(number))
            for _ in range(trainer.replay.envs):
                trainer.replay.admit()
        timing = timed(trainer.update, device, repeats=7, warmup=5 if device.type == "cuda" else 2)
    return figure("update in a run, size 1m, vectors, 16 x 64", "ms", timing)


def _learner(agent: Agent, device: torch.device) -> Learner:
    return new_learner(agent, new_optimizer(agent, agent.config), agent.config, dist.setup(str(device)))


def _batch(agent: Agent, is_image: bool, device: torch.device) -> Batch:
    """Random steps."""
    sizes, shape = agent.world.rssm.sizes, (agent.config.batch_size, agent.config.sequence_length)
    flags = torch.zeros(shape, dtype=torch.bool, device=device)
    obs = {name: torch.randn(*shape, *space.shape, device=device) for name, space in agent.world.encoder.spaces.items()}
    if is_image:
        obs = {"image": torch.randint(256, (*shape, 64, 64, 3), device=device, dtype=torch.uint8)}
    action = torch.randint(18, shape, device=device) if is_image else torch.rand(*shape, 1, device=device)
    return Batch(
        obs=obs,
        prev_action=action,
        reward=torch.randn(shape, device=device),
        is_first=torch.rand(shape, device=device) < 0.01,
        is_last=flags,
        is_terminal=flags,
        start_h=torch.zeros(shape[0], sizes.deter, device=device),
        start_z=torch.zeros(shape[0], sizes.stoch, dtype=torch.uint8, device=device),
    )


def _act(device: torch.device) -> dict[str, Any]:
    agent, count = _agent(Config(size="1m"), False).to(device), 16
    state, action = agent.world.rssm.initial_state(count), torch.zeros(count, 1, device=device)
    obs = {name: torch.randn(count, *s.shape, device=device) for name, s in agent.world.encoder.spaces.items()}
    uniform, noise = (part.to(device) for part in agent.draw_act_noise(count, torch.Generator().manual_seed(0)))
    is_first = torch.zeros(count, dtype=torch.bool, device=device)
    act = Graph("acting", agent.act, device, captures=True)  # as training has it
    timing = timed(lambda: act(state, action, obs, is_first, uniform, noise), device, repeats=15, warmup=WARM_UPS + 2)
    return figure(f"acting, size 1m, vectors, {count} worlds", "steps/s", timing, count)

"""eloialonso/diamond, the authors' code: steps of its `WorldModelEnv` under its policy, or updates of its denoiser."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.peers.line import Line


def main() -> None:
    """Build the agent of their default configuration and answer."""
    line = Line()
    order = line.start()
    sys.path.insert(0, str(Path(order["checkout"]) / "src"))
    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    settings = _settings(Path(order["checkout"]))
    agent = _agent(settings, order["actions"]).to(order["device"])
    step = (_steps if order["asks"] == "step" else _updates)(agent, settings, order)
    compiled = ", both networks compiled" if order["compile"] else ""
    facts = {
        "parameters": sum(p.numel() for p in agent.parameters()),
        "form": f"float32{compiled}, torch {torch.__version__}",
        "unlike": "reads a number of each step on the host",
    }
    line.answer(facts)
    for again in line.orders():
        if again.get("asks") == "memory":
            line.answer(torch.cuda.max_memory_allocated() / 2**30)
            continue
        start = time.perf_counter()
        next(step)
        if order["device"] == "cuda":
            torch.cuda.synchronize()
        line.answer(time.perf_counter() - start)


def _settings(checkout: Path) -> dict[str, Any]:
    """Their default configuration, frames of 64 x 64."""
    omegaconf = importlib.import_module("omegaconf").OmegaConf
    # Of what they compute in it only the sampler's upper bound, which is infinite, is used here.
    omegaconf.register_new_resolver("eval", lambda _: float("inf"))
    found = omegaconf.load(checkout / "config" / "trainer.yaml")
    found.agent = omegaconf.load(checkout / "config" / "agent" / "default.yaml")
    found.env = {"train": {"size": 64}}
    settings: dict[str, Any] = omegaconf.to_container(found, resolve=True)
    return settings


def _built(node: Any, **more: Any) -> Any:
    """The object that a part of the configuration describes, with those inside of it."""
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    module, _, name = node["_target_"].rpartition(".")
    inside = {key: _built(value) for key, value in node.items() if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**inside, **more)


def _agent(settings: dict[str, Any], actions: int) -> Any:
    return importlib.import_module("agent").Agent(_built(settings["agent"], num_actions=actions))


def _batch(count: int, length: int, actions: int, device: str) -> Any:
    """Random frames; nothing ends."""
    shape = (count, length)
    flags = torch.zeros(shape, dtype=torch.int64)
    obs = torch.rand(*shape, 3, 64, 64) * 2 - 1
    data = importlib.import_module("data")
    real = torch.ones(shape, dtype=torch.bool)
    batch = data.Batch(
        obs, torch.randint(actions, shape), torch.zeros(shape), flags, flags, real, [{}] * count, [None] * count
    )
    return batch.to(torch.device(device))


def _steps(agent: Any, settings: dict[str, Any], order: dict[str, Any]) -> Iterator[None]:
    """One step of all imagined games after another, their policy acting."""
    batch = _batch(order["batch"], 4, order["actions"], order["device"])

    class Loader:
        batch_sampler = SimpleNamespace(batch_size=order["batch"])

        def __iter__(self) -> Iterator[Any]:
            while True:
                yield batch

    config = _built(settings["world_model_env"] | {"num_batches_to_preload": 1})
    envs = importlib.import_module("envs")
    world = envs.WorldModelEnv(agent.denoiser, agent.rew_end_model, Loader(), config)
    if order["compile"]:
        world.predict_next_obs = torch.compile(world.predict_next_obs, mode="reduce-overhead")
        world.predict_rew_end = torch.compile(world.predict_rew_end, mode="reduce-overhead")
    obs, _ = world.reset()
    state = torch.zeros(2, order["batch"], agent.actor_critic.lstm_dim, device=order["device"]).unbind()
    while True:
        with torch.no_grad():
            logits, _, state = agent.actor_critic.predict_act_value(obs, state)
            action = torch.distributions.Categorical(logits=logits).sample()
            obs = world.step(action)[0]
        yield


def _updates(agent: Any, settings: dict[str, Any], order: dict[str, Any]) -> Iterator[None]:
    """One update of the denoiser after another."""
    denoiser, mine = agent.denoiser, settings["denoiser"]
    denoiser.setup_training(_built(mine["sigma_distribution"]))
    optimizer = importlib.import_module("utils").configure_opt(denoiser, **mine["optimizer"])
    length = settings["agent"]["denoiser"]["inner_model"]["num_steps_conditioning"] + 1
    length += mine["training"]["num_autoregressive_steps"]
    batch = _batch(order["batch"], length, order["actions"], order["device"])
    while True:
        loss, _ = denoiser(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), mine["training"]["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        yield


if __name__ == "__main__":
    main()

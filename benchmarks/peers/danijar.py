"""danijar/dreamerv3, the authors' JAX code: one call of `Agent.train` on the CPU."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.line import Line

LEARNT = re.compile(r"(enc|dyn|dec|rew|con|pol|val)/")


def main() -> None:
    """Build the learner at the sizes of the order and answer."""
    line = Line()
    order = line.start()
    # XLA takes a thread for every core that it may use.
    if order["threads"] < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order["threads"]])
    agent = _agent(order)
    jax = importlib.import_module("jax")
    internal = importlib.import_module("embodied.jax.internal")
    batch = internal.device_put(_batch(agent, order["batch"], order["length"]), agent.train_sharded)
    carry = agent.init_train(order["batch"])

    def update() -> None:
        nonlocal carry
        seed = agent._seeds(int(agent.n_updates), agent.train_mirrored)
        carry, _, _ = agent.train(carry, batch | {"seed": seed})
        jax.block_until_ready(agent.params)

    facts = {
        "parameters": sum(int(value.size) for name, value in agent.params.items() if LEARNT.match(name)),
        "form": f"{order['precision']}, jax {jax.__version__}",
        "unlike": "is compiled by XLA",
    }
    line.serve(facts, update)


def _agent(order: dict[str, Any]) -> Any:
    """Their size1m with all other settings as they are, for the world of speed/dreamerv3.py."""
    elements = importlib.import_module("elements")
    yaml = importlib.import_module("ruamel.yaml").YAML(typ="safe")
    known = yaml.load(Path(order["checkout"]) / "dreamerv3" / "configs.yaml")
    config = elements.Config(known["defaults"]).update(known["size1m"])
    jax = {**config.jax, "platform": "cpu", "compute_dtype": order["precision"], "precompile": False, "profiler": False}
    sizes = {"batch_size": order["batch"], "batch_length": order["length"]}
    kept = {name: config[name] for name in ("seed", "replay_context", "report_length", "replica", "replicas")}
    settings = elements.Config(**config.agent, **kept, **sizes, logdir=".", jax=jax)
    flags = {name: elements.Space(bool) for name in ("is_first", "is_last", "is_terminal")}
    vectors = {name: elements.Space(np.float32, (n,)) for name, n in (("position", 3), ("velocity", 2))}
    spaces = {**vectors, **flags, "reward": elements.Space(np.float32)}
    actions = {"action": elements.Space(np.float32, (1,), -1, 1)}
    return importlib.import_module("dreamerv3.agent").Agent(spaces, actions, settings)


def _batch(agent: Any, size: int, length: int) -> dict[str, Any]:
    """Random steps, and one more in front that supplies the stored latents."""
    rng, shape = np.random.default_rng(0), (size, length + agent.config.replay_context)
    found = {name: np.zeros((*shape, *space.shape), space.dtype) for name, space in agent.spaces.items()}
    for name in ("position", "velocity", "reward"):
        found[name] = np.asarray(rng.standard_normal(found[name].shape), np.float32)
    found["action"] = np.asarray(rng.random((*shape, 1)), np.float32)
    found["is_first"] = rng.random(shape) < 0.01
    return found


if __name__ == "__main__":
    main()

"""NM512/dreamerv3-torch: one call of `Dreamer._train`, world model and behaviour."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.peers.line import Line


def main() -> None:
    """Build the learner at the sizes of the order and answer."""
    line = Line()
    order = line.start()
    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    agent = _agent(_settings(Path(order["checkout"]), order["deter"]))
    batch = _batch(order["batch"], order["length"])
    slow = sum(p.numel() for p in agent._task_behavior._slow_value.parameters())
    facts = {
        "parameters": sum(p.numel() for p in agent.parameters()) - slow,
        "form": f"float32, GRU of {order['deter']}, torch {torch.__version__}",
        "unlike": "has a dense GRU, three Adams, more metrics, and no loss of the critic on replayed rewards; "
        "its policy gradient is set to the paper's",
    }
    line.serve(facts, lambda: agent._train(batch))


def _settings(checkout: Path, deter: int) -> dict[str, Any]:
    """Their defaults, with the widths and layers of size 1m, vectors for images, and the paper's policy gradient."""
    yaml = importlib.import_module("ruamel.yaml").YAML(typ="safe")
    found = yaml.load(checkout / "configs.yaml")["defaults"]
    vectors = {"mlp_keys": ".*", "cnn_keys": "$^", "mlp_layers": 3, "mlp_units": 64}
    found |= {"encoder": found["encoder"] | vectors, "decoder": found["decoder"] | vectors}
    for name, layers in (("actor", 3), ("critic", 3), ("reward_head", 1), ("cont_head", 1)):
        found[name] = found[name] | {"layers": layers}
    sizes = {"dyn_deter": deter, "dyn_hidden": 64, "dyn_discrete": 4, "units": 64, "num_actions": 1}
    return found | sizes | {"device": "cpu", "imag_gradient": "reinforce"}


def _agent(settings: dict[str, Any]) -> Any:
    networks = importlib.import_module("networks")
    # Not every MLP is told its device, and the default is a GPU.
    init = networks.MLP.__init__
    init.__defaults__ = tuple("cpu" if value == "cuda" else value for value in init.__defaults__)
    shapes = {"position": (3,), "velocity": (2,), "image": (1, 1, 3)}
    spaces = SimpleNamespace(spaces={name: SimpleNamespace(shape=shape) for name, shape in shapes.items()})
    dreamer = importlib.import_module("dreamer")
    agent = dreamer.Dreamer(spaces, None, SimpleNamespace(**settings), SimpleNamespace(step=0), None)
    return agent.requires_grad_(False)


def _batch(size: int, length: int) -> dict[str, Any]:
    """Random steps. One pixel stands for the frames that their worlds always give and this agent does not look at."""
    rng, shape = np.random.default_rng(0), (size, length)
    return {
        "position": rng.standard_normal((*shape, 3)),
        "velocity": rng.standard_normal((*shape, 2)),
        "image": np.zeros((*shape, 1, 1, 3), np.uint8),
        "action": rng.random((*shape, 1)),
        "reward": rng.standard_normal(shape),
        "is_first": rng.random(shape) < 0.01,
        "is_terminal": np.zeros(shape, bool),
    }


if __name__ == "__main__":
    main()

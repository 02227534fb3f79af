"""Whole updates as a GPU would make them, traced on tensors without content.

    LD_PRELOAD=device.so python -m diamond.tests.trace

device.so is what `common/fake_cuda.py: library` builds.
Prints for each kind of update how often an operation waits for the device or mixes it with the host, and where.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.fake_cuda import CUDA, Generator, to_fake
from common.tape import WAITS


class Watch(TorchDispatchMode):
    """Notes what a GPU would wait for: the host reads a number, or an operation has tensors of both."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}
        name = str(function)
        is_read = any(word in name for word in WAITS) and "cuda" in places
        is_read |= "_to_copy" in name and "cuda" in places and str((kwargs or {}).get("device", "cuda")) == "cpu"
        if is_read or len(places) > 1:
            here = [frame for frame in traceback.extract_stack() if "/diamond/" in frame.filename][-1]
            self.found.append(f"{name} at {Path(here.filename).name}:{here.lineno}")
        return function(*args, **(kwargs or {}))


def main() -> None:
    """Trace an update of each network, and a step of the imagination."""
    torch.Generator = Generator  # type: ignore[misc]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    from common import dist
    from diamond import imagination_fast
    from diamond.actor_critic import Outcome, losses
    from diamond.agent import new_agent
    from diamond.sampler import karras_sigmas
    from diamond.tests.test_imagination import CONFIG
    from diamond.tests.test_replay import filled
    from diamond.train import Trainer, train_step

    config = replace(
        CONFIG, device="cuda", precision="bfloat16", sampler_steps=2, denoiser_channels=(8, 8),
        denoiser_depths=(1, 1), reward_channels=(8, 8), reward_depths=(1, 1), policy_channels=(8,),
    )  # fmt: skip
    agent = new_agent(config, 5)
    settings = config.sampler
    karras_sigmas(settings.steps, settings.sigma_min, settings.sigma_max, settings.rho)  # numbers of the host
    with tempfile.TemporaryDirectory() as folder, FakeTensorMode(allow_non_fake_inputs=True):
        to_fake(agent)
        trainer = Trainer(agent, filled(Path(folder)), config, dist.Ranks(0, 1, 0, CUDA))
        assert trainer.program is not None
        games, size = config.batch_size, config.image_size
        obs = torch.zeros(games, config.history, 3, size, size, device=CUDA)
        action = torch.zeros(games, config.history, dtype=torch.int64, device=CUDA)
        h = torch.zeros(games, config.reward_lstm, device=CUDA)
        numbers = [torch.zeros(games, device=CUDA) for _ in range(3)]
        state = agent.actor_critic.initial_state(games)
        given = imagination_fast.Inputs(obs, action, h, h, *state, numbers[0], obs[:, 0], *numbers[1:])
        dead = torch.zeros(2, dtype=torch.int64, device=CUDA)
        outcome = Outcome(obs[:, 0], numbers[0], numbers[1], numbers[2], dead, obs[:2, 0], obs[:2, 1:])

        def policy() -> None:
            frames, actions = [obs[:, 0]] * 2, [action[:, 0]] * 2
            play, _, _ = imagination_fast.evaluated(agent.actor_critic, frames, state, actions, [outcome] * 2)
            terms, _ = losses(play, config.gamma, config.lam, config.value_weight, config.entropy_weight)
            train_step(agent.actor_critic, trainer.optimizers["actor_critic"], terms, 1, config.policy_clip, config)

        updates: dict[str, Callable[[], object]] = {
            "denoiser": lambda: trainer.update("denoiser", 1),
            "reward_end": lambda: trainer.update("reward_end", 1),
            "actor_critic": policy,
            "imagination": lambda: imagination_fast.act_and_predict(agent, config, given),
        }
        for name, update in updates.items():
            with Watch() as watch:
                update()
            print(f"{name}: {len(watch.found)}", *watch.found, sep="\n  ")


if __name__ == "__main__":
    main()

"""The search with the true rules as a GPU would make it, on tensors without content.

    LD_PRELOAD=device.so python -m muzero.tests.trace

device.so is what `common/fake_cuda.py: library` builds. What is read from the device is zero.
Prints the visits of each root, and every operation that mixes tensors of device and host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from common.fake_cuda import CUDA, to_fake


class Device(TorchDispatchMode):
    """Sends to the fake device what belongs there, and notes operations of both places."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(function)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        goes_to = torch.device(kwargs.get("device") or "cpu").type
        is_there = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if "_to_copy" in name and is_there and kwargs.get("device") is not None and goes_to == "cpu":
            return torch.zeros(tensors[0].shape, dtype=tensors[0].dtype)
        if len({tensor.device.type for tensor in tensors if tensor.dim() or tensor.device.type != "cpu"}) > 1:
            self.found.append(name)
        if not is_there and goes_to == "cpu":
            return function(*args, **kwargs)
        with self.fake:
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
            return function(*args, **kwargs)

    def _faked(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)


def main() -> None:
    """Search two empty boards of tic-tac-toe."""
    from muzero import self_play
    from muzero.agent import network_for
    from muzero.boards import GAMES
    from muzero.env import space_of
    from muzero.tests.test_evaluate import config_of

    torch.cuda._lazy_init = lambda: None
    vars(self_play)["for_inference"] = lambda network: network.eval()
    config, game = config_of("tictactoe", "smoke", device="cuda"), GAMES["tictactoe"]
    network, device = network_for(space_of(config), config), Device()
    with device.fake:
        to_fake(network)
    assert next(network.parameters()).device == CUDA
    with device:
        found = self_play.search_position(network, game, config, 3, *game.start(2), has_rules=True)
    print(found.visits.sum(1).tolist(), *device.found)


if __name__ == "__main__":
    main()

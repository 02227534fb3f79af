"""What an update would launch on a GPU, counted on tensors without content.

    LD_PRELOAD=device.so python -m dreamerv3.tests.trace

device.so is what `common/fake_cuda.py: library` builds.
An operation counts as the kernels that PyTorch launches for it: none for views and memory, one for most, `SEVERAL` for
some. A product is one; a library may divide it. A compiled function counts as the kernels that it declares.
Prints JSON: kernels of an update, of its scan and of its imagination; and what the host waits for.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.fake_cuda import CUDA, Generator
from common.tape import WAITS

# Memory alone, and what only looks at a tensor from another side though its schema does not say so.
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias")
# Kernels behind one operation, read in the sources of PyTorch 2: reductions that are put together from others.
SEVERAL = {"logsumexp": 8, "sort": 6, "scatter": 2, "scatter_add": 2, "index_add": 2, "index_put": 3, "std": 1}
# Tensors that one launch of a foreach operation takes, by the number of its lists; a block has 65,536 numbers.
TENSORS_OF_A_LAUNCH, BLOCKS_OF_A_LAUNCH, BLOCK = (110, 64, 48, 36, 30), 320, 65536


class Counter(TorchDispatchMode):
    """Counts kernels on the fake device, by part, and notes what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.waits: list[str] = []
        self.parts = ["update"]
        self.inside = 0  # of compiled functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {x.device.type for x in tensors if x.dim() or x.device.type != "cpu"}
        name = func.overloadpacket.__name__
        is_read = any(word in str(func) for word in WAITS) and "cuda" in places
        is_read |= name == "_to_copy" and "cuda" in places and str(kwargs.get("device", "cuda")) == "cpu"
        if is_read or len(places) > 1:
            self.waits.append(f"{func} at {_place()}")
        if not self.inside and ("cuda" in places or str(kwargs.get("device")).startswith("cuda")):
            self.add(name, kernels_of(func, args, tensors))
        return func(*args, **kwargs)

    def add(self, name: str, kernels: int) -> None:
        """Count kernels under the part that runs."""
        part = self.parts[-1]
        self.kernels[part] = self.kernels.get(part, 0) + kernels
        if kernels:
            self.names[f"{part} {name}"] = self.names.get(f"{part} {name}", 0) + kernels

    def compiled(self, name: str, function: Callable[..., Any], kernels: int) -> Callable[..., Any]:
        """In the place of a compiled function."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.add(name, 0 if self.inside else kernels)
            self.inside += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.inside -= 1

        return call

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose kernels count under `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.parts.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.parts.pop()

        return call


def kernels_of(func: Any, args: Any, tensors: list[Tensor]) -> int:
    """Kernels of one operation, as PyTorch launches it."""
    name = func.overloadpacket.__name__
    if name.startswith("_foreach"):
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        tensors = lists[0]
        depth = len(lists) + (not name.endswith("_"))
        blocks = sum(math.ceil(x.numel() / BLOCK) for x in tensors)
        launches = max(math.ceil(len(tensors) / TENSORS_OF_A_LAUNCH[depth - 1]), math.ceil(blocks / BLOCKS_OF_A_LAUNCH))
        return launches + 2 * (name == "_foreach_norm")
    returns = func._schema.returns
    is_view = returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if is_view or name in FREE or name in ("detach", "device", "lift_fresh"):
        return 0
    if name == "addmm" and args[0].dim() == 2:
        return 2  # what is added is copied first
    return SEVERAL.get(name, 1)


def _place() -> str:
    here = [frame for frame in traceback.extract_stack() if "/dreamerv3/" in frame.filename]
    return f"{Path(here[-1].filename).name}:{here[-1].lineno}" if here else "?"


def to_fake(module: nn.Module) -> None:
    """Parameters and buffers move to the GPU, in their layout."""
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
                if name in part._parameters:
                    part._parameters[name] = nn.Parameter(moved, requires_grad=tensor.requires_grad)
                else:
                    part._buffers[name] = moved


@contextlib.contextmanager
def device_of_a_dream() -> Iterator[None]:
    """Make this process believe in its GPU."""
    torch.Generator = Generator  # type: ignore[misc]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def main() -> None:
    """Count an update at size 1m from vectors, batch 16 x 64."""
    device_of = device_of_a_dream()
    from benchmarks.speed.dreamerv3 import _agent, _batch
    from common import dist, eager
    from dreamerv3 import imagination_fast, rssm_fast
    from dreamerv3.config import Config
    from dreamerv3.train import new_optimizer, train_step

    config = Config(size="1m", device="cuda")
    agent = _agent(config, False)
    counter = Counter()
    eager.compiled = lambda name, function, **_: counter.compiled(name, function, 1)
    rssm_fast.observe = counter.part("scan", rssm_fast.observe)
    rssm_fast._Scan.backward = staticmethod(counter.part("scan", rssm_fast._Scan.backward))
    imagination_fast.imagine = counter.part("imagination", imagination_fast.imagine)
    with device_of:
        to_fake(agent)
        optimizer = new_optimizer(agent, config)
        batch = _batch(agent, False, CUDA)
        noise = agent.draw_noise(config.batch_size, config.sequence_length, Generator(CUDA))
        with counter:
            train_step(agent, optimizer, batch, noise, config, dist.Ranks(0, 1, 0, CUDA))
    total = {"kernels": sum(counter.kernels.values()), **counter.kernels, "waits": counter.waits}
    json.dump(total, sys.stdout)
    if len(sys.argv) > 1:
        for name, n in sorted(counter.names.items(), key=lambda x: -x[1])[:60]:
            print(n, name, file=sys.stderr)


if __name__ == "__main__":
    main()

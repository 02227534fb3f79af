"""What an update would launch on a GPU, counted on tensors without content.

    LD_PRELOAD=device.so python -m dreamerv3.tests.trace

device.so is what `common/fake_cuda.py: library` builds.
An operation counts as the kernels that PyTorch launches for it: none for views and memory, one for most, `SEVERAL` for
some; a product is one, though a library may divide it. A function that is compiled on a GPU counts as what PyTorch's
own compiler plans for it there, which needs no GPU. Loops over time and over imagined steps are counted at two lengths
each: what a step adds is the same for all.
Prints JSON: the kernels of an update at size 1m from vectors, batch 16 x 64, by its parts; those of each compiled
function; and what the host waits for.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import traceback
import types
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.fake_cuda import CUDA, Generator, to_fake
from common.tape import WAITS

LENGTH, STEPS = (64, 3, 4), (15, 2, 3)  # of a sequence and of an imagination: asked for, and counted at
# Memory alone, and what looks at a tensor from another side though its schema does not say so.
FREE = ("device", "detach", "lift_fresh", "_unsafe_view", "_reshape_alias")
# Kernels behind one operation: reductions that are put together from others, and copies that come first.
SEVERAL = {"logsumexp": 8, "sort": 6, "scatter": 2, "scatter_add": 2, "index_add": 2, "index_put": 3}
# Tensors that one launch of a foreach operation takes, by the number of its lists, and blocks of so many numbers.
LAUNCH, BLOCKS, BLOCK = (110, 64, 48, 36, 30), 320, 65536


class Kernels(TorchDispatchMode):
    """Counts kernels on the fake device, by part, and notes what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: Counter[str] = Counter()  # by part
        self.calls: Counter[tuple[str, str]] = Counter()  # of compiled functions, by part and name
        self.bodies: dict[str, tuple[Callable[..., Any], list[Any]]] = {}
        self.waits: list[str] = []
        self.part = "rest"
        self.is_inside = False  # of a compiled function

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {x.device.type for x in tensors if x.dim() or x.device.type != "cpu"}
        name, goes_to = func.overloadpacket.__name__, str(kwargs.get("device"))
        is_read = "cuda" in places and any(word in str(func) for word in WAITS)
        is_read |= "cuda" in places and name == "_to_copy" and goes_to == "cpu"
        if is_read or len(places) > 1:
            here = [frame for frame in traceback.extract_stack() if "/dreamerv3/" in frame.filename][-1]
            self.waits.append(f"{func} at {Path(here.filename).name}:{here.lineno}")
        if not self.is_inside and ("cuda" in places or goes_to.startswith("cuda")):
            self.plain[self.part] += kernels_of(func, args)
        return func(*args, **kwargs)

    def compiled(self, name: str, function: types.FunctionType, **_: Any) -> Callable[..., Any]:
        """In the place of `eager.compiled`."""

        name = f"{function.__globals__['__name__'].removeprefix('dreamerv3.')}.{name}"

        def call(*args: Any) -> Any:
            self.calls[self.part, name] += 1
            self.bodies.setdefault(name, (function, [_outline(x) for x in args]))
            self.is_inside = True
            try:
                return function(*args)
            finally:
                self.is_inside = False

        return call

    def named(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose kernels count under `part`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return function(*args, **kwargs)
            finally:
                self.part = before

        return call


def kernels_of(func: Any, args: Sequence[Any]) -> int:
    """Kernels of one operation, as PyTorch launches it."""
    name = func.overloadpacket.__name__
    if name.startswith("_foreach"):
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        depth = len(lists) + (not name.endswith("_"))
        blocks = sum(math.ceil(x.numel() / BLOCK) for x in lists[0])
        launches = max(math.ceil(len(lists[0]) / LAUNCH[depth - 1]), math.ceil(blocks / BLOCKS))
        return launches + 2 * (name == "_foreach_norm")
    returns = func._schema.returns
    is_view = returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if is_view or name in FREE or "empty" in name:
        return 0
    if name == "addmm" and args[0].dim() == 2:
        return 2
    return SEVERAL.get(name, 2 if name == "baddbmm" else 1)


def _outline(x: Any) -> Any:
    return (x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x


def planned_kernels(function: Callable[..., Any], outlines: list[Any], options: dict[str, Any]) -> int:
    """The kernels that PyTorch's compiler plans for a function of tensors that look like these."""
    from torch._inductor import config, scheduler
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx

    vars(scheduler)["has_triton"] = lambda: True  # planning does without
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        given = [torch.empty_strided(*x[:2], dtype=x[2], device=CUDA) for x in outlines if isinstance(x, tuple)]

        def flat(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            return tuple(tree_leaves(function(*(next(rest) if isinstance(x, tuple) else x for x in outlines))))

        graph = make_fx(flat, decomposition_table=select_decomp_table())(*given)
    with config.patch(options | {"fx_graph_cache": False}):
        lowering = GraphLowering(graph, example_inputs=given, is_inference=True)
        with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            lowering.run(*given)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            nodes = lowering.scheduler.nodes
    return sum(not isinstance(node, scheduler.NopKernelSchedulerNode) for node in nodes)


def pretend() -> None:
    """Make this process believe in its GPU: one of 132 processors."""
    torch.Generator = Generator  # type: ignore[misc]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    properties = {"name": "none", "major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32}
    properties |= {"regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048, "gcnArchName": ""}
    properties |= {"total_memory": 80 << 30, "max_threads_per_block": 1024, "L2_cache_size": 50 << 20}
    properties |= {"shared_memory_per_block_optin": 232448, "shared_memory_per_multiprocessor": 233472}
    device = type("Properties", (), properties)
    answers: dict[str, Any] = {
        "is_bf16_supported": lambda *_, **__: True,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda *_: None,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: device,
    }
    vars(torch.cuda).update(answers)
    from torch._dynamo.device_interface import CudaInterface

    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: device)  # type: ignore[assignment]


def main() -> None:
    """Count an update."""
    pretend()
    from common import dist, eager
    from dreamerv3 import imagination_fast, layers_fast, rssm_fast
    from dreamerv3.agent import new_agent
    from dreamerv3.config import Config
    from dreamerv3.replay import Batch
    from dreamerv3.spaces import ActionSpace, ObsSpace
    from dreamerv3.train import new_optimizer, train_step

    vectors, push = {"position": ObsSpace("float", (3,)), "velocity": ObsSpace("float", (2,))}, ActionSpace(1, False)

    def steps_of(config: Config, deter: int, stoch: int) -> Batch:
        shape = config.batch_size, config.sequence_length
        flags = torch.zeros(shape, dtype=torch.bool, device=CUDA)
        return Batch(
            obs={name: torch.zeros(*shape, *space.shape, device=CUDA) for name, space in vectors.items()},
            prev_action=torch.zeros(*shape, 1, device=CUDA),
            reward=torch.zeros(shape, device=CUDA),
            is_first=flags,
            is_last=flags,
            is_terminal=flags,
            start_h=torch.zeros(shape[0], deter, device=CUDA),
            start_z=torch.zeros(shape[0], stoch, dtype=torch.uint8, device=CUDA),
        )

    def count(length: int, steps: int) -> Kernels:
        config = Config(size="1m", device="cuda", sequence_length=length, imagination_length=steps)
        agent, kernels = new_agent(vectors, push, config), Kernels()
        layers_fast.for_device.cache_clear()
        changed = (
            (eager, "compiled", kernels.compiled),
            (rssm_fast, "observe", kernels.named("scan", rssm_fast.observe)),
            (rssm_fast._Scan, "backward", staticmethod(kernels.named("scan", rssm_fast._Scan.backward))),
            (imagination_fast, "imagine", kernels.named("imagination", imagination_fast.imagine)),
        )
        before = [(place, name, vars(place)[name]) for place, name, _ in changed]
        try:
            for place, name, value in changed:
                setattr(place, name, value)
            with FakeTensorMode(allow_non_fake_inputs=True):
                to_fake(agent)
                sizes = agent.world.rssm.sizes
                optimizer, batch = new_optimizer(agent, config), steps_of(config, sizes.deter, sizes.stoch)
                noise = agent.draw_noise(config.batch_size, length, Generator(CUDA))
                with kernels:
                    train_step(agent, optimizer, batch, noise, config, dist.Ranks(0, 1, 0, CUDA))
        finally:
            for place, name, value in before:
                setattr(place, name, value)
        return kernels

    longest, short, longer = LENGTH
    most, few, more = STEPS
    base, in_time, in_steps = count(short, few), count(longer, few), count(short, more)
    bodies = {name: planned_kernels(*body, layers_fast.OPTIONS) for name, body in base.bodies.items()}

    def by_part(kernels: Kernels) -> Counter[str]:
        found = Counter(kernels.plain)
        for (part, name), calls in kernels.calls.items():
            found[part] += calls * bodies[name]
        return found

    first, second, third = by_part(base), by_part(in_time), by_part(in_steps)
    parts = {
        part: n + (longest - short) * (second[part] - n) + (most - few) * (third[part] - n) for part, n in first.items()
    }
    json.dump({"kernels": sum(parts.values()), "parts": parts, "bodies": bodies, "waits": base.waits}, sys.stdout)


if __name__ == "__main__":
    main()

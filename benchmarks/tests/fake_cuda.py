"""Traces the parts of `speed/*.py` on a GPU that is not there: `python -m benchmarks.tests.fake_cuda PAPER/PART …`

On the device of `common/fake_cuda.py` a trace finds what on a GPU would fail or wait: tensors in different places, a
number that the host asks for, a mask whose count the host must know, a copy. Where the host asks, the answer is zero,
with which loops end. That file's library must be loaded before torch (LD_PRELOAD).
Prints JSON: for each part what was found, each once with its place in the code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.speed import ha2018, pretraining, timing, vjepa
from benchmarks.speed.timing import Timing
from common import tape
from common.fake_cuda import CUDA, Generator

ROOT = Path(__file__).parents[2]
# A trace meets every line in the shortest loops: changes to SMOKE, and to entries of it.
CONFIG: Any = ha2018.SMOKE["CONFIG"]
PLAN: Any = vjepa.SMOKE["PLAN"]
SHORTER: dict[str, dict[str, Any]] = {
    "dreamerv3": {"CHANGES": {"batch_size": 2, "sequence_length": 2, "imagination_length": 1}},
    "vjepa": {
        "PLAN": replace(PLAN, iterations=1, horizon=2, execute=1, frames=4, trajectory_steps=5),
    },
    "muzero": {"SIMULATIONS": 2},
    "ha2018": {"CONFIG": replace(CONFIG, memory_length=3)},
}
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "repeat_interleave.Tensor")


class FakeCuda(TorchDispatchMode):
    """Sends to the fake device what belongs there; while it watches, it notes what would fail or wait."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.is_watching = False
        self.operations = 0
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places = {x.device.type for x in tensors if x.dim() or x.device.type == "cuda"}
        goes_to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if self.is_watching and "cuda" in (*places, goes_to):
            self._look(str(func), tensors, places, goes_to)
        if goes_to != "cuda" and not any(isinstance(x, FakeTensor) for x in tensors):
            return func(*args, **kwargs)
        kwargs.pop("pin_memory", None)
        if func is torch.ops.aten._fused_adam_.tensor_lr:  # fake tensors know the form with a number alone
            func, kwargs["lr"] = torch.ops.aten._fused_adam_.default, 1.0
        with self.fake:
            if "nonzero" in str(func):
                return torch.empty(0, tensors[0].dim(), dtype=torch.int64, device=CUDA)
        if (answer := _answered(str(func), tensors, goes_to)) is not None:
            return answer
        with self.fake:
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
            return func(*args, **kwargs)

    def _faked(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.fake.from_tensor(x)

    def _look(self, name: str, tensors: list[Tensor], places: set[str], goes_to: str | None) -> None:
        self.operations += 1
        start = tensors[0].device.type if tensors else None
        if "_to_copy" in name and goes_to is not None and goes_to != start:
            self._note(f"copy from {start} to {goes_to}")
        elif len(places) > 1:
            self._note(f"{name} of tensors on {' and '.join(sorted(places))}")
        elif any(word in name for word in WAITS):
            self._note(f"{name} waits for the device")
        elif name.startswith("aten.index") and any(x.dtype == torch.bool for x in tensors[1:]):
            self._note(f"{name} with a mask waits for the device")

    def _note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if _is_ours(frame.filename)]
        where = f"{Path(frames[-1].filename).relative_to(ROOT).as_posix()}: {frames[-1].name}" if frames else "?"
        self.found[f"{what} in {where}"] = None

    def timed(self, call: Callable[[], object], device: torch.device, *_: object, **__: object) -> Timing:
        """In the place of `timing.timed`: a call, watched. What is timed on a CPU is not called."""
        if device.type == "cuda":
            self.is_watching = True
            try:
                call()
            finally:
                self.is_watching = False
        return Timing(1.0, 1.0, 1.0, 1)


def _answered(name: str, tensors: list[Tensor], goes_to: str | None) -> Any:
    """What the host is told where a fake tensor has nothing to say; None where it is not asked."""
    if "_to_copy" in name and goes_to == "cpu":
        return torch.zeros(tensors[0].shape, dtype=tensors[0].dtype)
    if "_local_scalar_dense" in name:
        return torch.zeros((), dtype=tensors[0].dtype).item()
    return None


def _is_ours(file: str) -> bool:
    """Whether a file is of the suite and not of its tests or libraries."""
    return file.startswith(str(ROOT)) and "/tests/" not in file and ".venv" not in file


def moved(module: nn.Module, place: Any = None, *_: object, **__: object) -> nn.Module:
    """In the place of nn.Module.to, which cannot turn a tensor into a fake one."""
    if place is None or torch.device(place).type != "cuda":
        return module
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None and not isinstance(x.data, FakeTensor):
                there = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(there, requires_grad=x.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and not isinstance(buffer, FakeTensor):
                there = torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype, device=CUDA)
                part._buffers[name] = there
    return module


def put_in_place() -> None:
    """Make this process believe in its GPU."""
    answers: dict[str, Any] = {
        # Each a function of its own: the compiler, which fake tensors bring along, keeps a list of them.
        **{name: lambda *_, **__: None for name in ("_lazy_init", "set_device", "synchronize")},
        "reset_peak_memory_stats": lambda *_: None,
        **dict.fromkeys(("Stream", "current_stream"), tape.Stream),
        "stream": lambda _: contextlib.nullcontext(),
        "get_device_name": lambda *_: "no GPU",
        "device_count": lambda: 1,
        "max_memory_allocated": lambda *_: 0,
        "is_bf16_supported": lambda *_, **__: True,
    }
    vars(torch.cuda).update(answers)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch._C._set_only_lift_cpu_tensors(True)  # new tensors are made on the host, and move where we see it
    torch.Generator = Generator  # type: ignore[misc]
    nn.Module.to = moved  # type: ignore[assignment, method-assign]
    os.environ["EAGER"] = "traced"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What falls back says so on stderr."""
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
        yield


def trace(part: str) -> dict[str, Any]:
    """What one part does."""
    paper, name = part.split("/")
    module, mode = importlib.import_module(f"benchmarks.speed.{paper}"), FakeCuda()
    vars(module).update(module.SMOKE | SHORTER.get(paper, {}), timed=mode.timed)
    vars(pretraining).update(timed=mode.timed, precisions=lambda config, device: {"bfloat16": config})
    error = ""
    try:
        with mode:
            getattr(module, name)(CUDA)
    except Exception as fault:  # any fault of a part is a finding
        frames = traceback.extract_tb(fault.__traceback__)
        places = [f"{Path(f.filename).relative_to(ROOT)}: {f.name}" for f in frames if _is_ours(f.filename)]
        error = f"{type(fault).__name__}: {' '.join(str(fault).split())[:300]} in {' > '.join(places)}"
    return {"operations": mode.operations, "found": list(mode.found), "error": error}


if __name__ == "__main__":
    put_in_place()
    vars(timing).update(timing.SMOKE)
    with quiet():
        result = {part: trace(part) for part in sys.argv[1:]}
    json.dump(result, sys.stdout)

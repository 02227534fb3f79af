"""An update for a GPU: after a few calls it is captured once as a CUDA graph, which is replayed from then on.

A graph works on fixed memory: what a call is given is copied into that of the captured one, and what comes out is a
copy. Where nothing can be captured, and for inputs of other shapes, the function itself is called.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from common import eager

T = TypeVar("T")

WARM_UPS = 3  # calls before the capture, in which kernels are chosen and an optimiser makes its state


class Graph(Generic[T]):
    """`function(*inputs)`, which may change modules in place; on a GPU a graph of it, if `captures` and if that works.

    Inputs and outputs are tensors, or dataclasses, dictionaries, lists and tuples of them. Not yet run on a GPU.
    """

    def __init__(self, what: str, function: Callable[..., T], device: torch.device, *, captures: bool = True) -> None:
        """what: the words for it where it cannot be captured."""
        self.what, self.function, self.device = what, function, device
        self.captures = captures and device.type == "cuda"
        self.warm_ups = 0
        self.shapes: list[tuple[torch.Size, torch.dtype]] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Any, ...] = ()
        self.outputs: T | None = None

    def __call__(self, *inputs: Any) -> T:
        """What the function returns. Raises TypeError for an input that a graph would take for a constant."""
        if not self.captures:
            return self.function(*inputs)
        shapes = [(x.shape, x.dtype) for x in tensors_of(inputs)]
        self.shapes = self.shapes or shapes
        if shapes != self.shapes:
            return self.function(*inputs)
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            return self._warm_up(inputs)
        if self.graph is None and not self._capture(inputs):
            return self.function(*inputs)
        assert self.graph is not None
        for ours, theirs in zip(tensors_of(self.inputs), tensors_of(inputs), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.graph.replay()
        found: T = each(torch.clone, self.outputs)
        return found

    def _warm_up(self, inputs: tuple[Any, ...]) -> T:
        """A call on a stream beside, so that nothing is chosen, compiled or allocated in the capture."""
        stream = side_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            found = self.function(*inputs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return found

    def _capture(self, inputs: tuple[Any, ...]) -> bool:
        """Record a call; recording runs nothing. False if it cannot be recorded: then it stays as it is for good."""

        def record() -> tuple[torch.cuda.CUDAGraph, tuple[Any, ...], T]:
            own, graph = each(torch.clone, inputs), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.function(*own)
            return graph, own, outputs

        found = eager.captured(self.what, record)
        if found is None:
            self.captures = False
            return False
        self.graph, self.inputs, self.outputs = found
        return True


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all warm-ups: memory freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)


def each(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The tree with `function` of each tensor in its place. Raises TypeError for what is no tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = {field.name: each(function, getattr(tree, field.name)) for field in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **parts)
    if isinstance(tree, dict):
        return {key: each(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(each(function, part) for part in tree)
    raise TypeError(f"a graph would take this {type(tree).__name__} for a constant: {tree!r}")


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors of a tree, in a fixed order. Raises TypeError for what is no tensor."""
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    each(note, tree)
    return found


def prepare(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let steps of a fused optimiser be captured where there is a GPU, wherever its state was saved.

    A learning rate is a number on a CPU and a tensor on a GPU, where a graph would take a number for a constant.
    """
    is_gpu = device.type == "cuda"
    for group in optimizer.param_groups:
        group["capturable"] = is_gpu
        group["lr"] = torch.tensor(float(group["lr"]), device=device) if is_gpu else float(group["lr"])
    if is_gpu:  # torch says so of the first step that is not captured, as warm-ups are not
        warnings.filterwarnings("ignore", message=".*constructed with capturable=True")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, captured or not."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

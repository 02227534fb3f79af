"""Updates and steps of acting for a run: on a GPU each is captured once as a CUDA graph and replayed.

The update itself: train.py. The step of acting: agent.py.

A graph works on fixed memory: what goes in is copied into that of its first call. What comes out is a copy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from common import eager

WARM_UPS = 3  # calls before a CUDA graph is captured

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

P = ParamSpec("P")
T = TypeVar("T")


class Captured(Generic[P, T]):
    """A step that is called with the same shapes each time; on a GPU a graph if `captures` and where that succeeds.

    What it is given and returns are tensors, or dataclasses, tuples and mappings of them. `what` names it to the user.
    Not yet run on a GPU.
    """

    def __init__(self, what: str, step: Callable[P, T], device: torch.device, *, captures: bool) -> None:
        self.what, self.step, self.device = what, step, device
        self.captures = captures and device.type == "cuda"
        self.warm_ups = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Any = None
        self.outputs: T | None = None

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> T:
        """What the step returns."""
        if not self.captures:
            return self.step(*inputs, **named)
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            return self._warm_up(*inputs, **named)
        if self.graph is None and not self._capture(*inputs, **named):
            return self.step(*inputs, **named)
        assert self.graph is not None
        assert self.outputs is not None
        for ours, theirs in zip(tensors_of(self.inputs), tensors_of((inputs, named)), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.graph.replay()
        found: T = cloned(self.outputs)
        return found

    def _warm_up(self, *inputs: P.args, **named: P.kwargs) -> T:
        """A call on a stream beside, so that kernels are chosen and compiled before the capture."""
        stream = side_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            found = self.step(*inputs, **named)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return found

    def _capture(self, *inputs: P.args, **named: P.kwargs) -> bool:
        """Record the step; recording runs nothing. False if it cannot be recorded: then it stays as it is for good."""

        def record() -> tuple[torch.cuda.CUDAGraph, Any, T]:
            ours, graph = cloned((inputs, named)), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.step(*ours[0], **ours[1])
            return graph, ours, outputs

        found = eager.captured(self.what, record)
        if found is None:
            self.captures = False
            return False
        self.graph, self.inputs, self.outputs = found
        return True


@functools.cache
def keep_memory() -> None:
    """Let the C library keep what tensors on a CPU have freed, up to a GiB, where it is glibc.

    By default large blocks go back to the system, and the next update takes them anew, page by page.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    set_option(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes
    set_option(M_TRIM_THRESHOLD, 1 << 30)


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all warm-ups: memory freed on a stream is used again on that stream alone."""
    return torch.cuda.Stream(device)


def tensors_of(nest: Any) -> list[Tensor]:
    """All tensors of nested dataclasses, tuples and mappings, in a fixed order."""
    if isinstance(nest, Tensor):
        return [nest]
    return [x for part in _parts(nest).values() for x in tensors_of(part)]


def cloned(nest: Any) -> Any:
    """The same in memory of its own."""
    if isinstance(nest, Tensor):
        return nest.clone()
    parts = {name: cloned(part) for name, part in _parts(nest).items()}
    if dataclasses.is_dataclass(nest):
        return nest.__class__(**parts)
    return parts if isinstance(nest, Mapping) else tuple(parts.values())


def _parts(nest: Any) -> Mapping[Any, Any]:
    if dataclasses.is_dataclass(nest):
        return {field.name: getattr(nest, field.name) for field in dataclasses.fields(nest)}
    return nest if isinstance(nest, Mapping) else dict(enumerate(nest))

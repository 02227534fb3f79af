"""For tests: a CUDA graph's semantics on a CPU. What a graph would get wrong, a tape gets wrong too.

While capturing, operations are noted, and nothing lasts that they did to memory from before. A replay runs them again
on the same memory: inputs that were not copied in, state that the capture changed, and numbers that became part of the
graph show as differences to the eager step; what would make a capture fail is listed. Pools of memory, streams and
kernels are out of its sight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import pytest

# A capture fails where the host must know what the device has found.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "bincount", "equal.default")


class Tape:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []
        self.waits: list[str] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Run all operations again; what they return lies where it lay when they were noted."""
        for function, args, kwargs, before in self.operations:
            for old, new in zip(before, tree_leaves(function(*args, **kwargs)), strict=True):
                if old is not None:
                    old.copy_(new)


class _Capture(TorchDispatchMode):
    """Notes every operation, and what stood in memory from before that it writes to."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.own: set[int] = set()
        self.overwritten: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(word in str(func) for word in WAITS):
            self.tape.waits.append(str(func))
        self._remember(func, args, kwargs)
        found = func(*args, **kwargs)
        inside = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        leaves = [x if isinstance(x, Tensor) and _memory(x) not in inside else None for x in tree_leaves(found)]
        self.own |= {_memory(x) for x in leaves if x is not None}
        # Lists are copied: callers change them afterwards.
        kept = [list(x) if isinstance(x, list) else x for x in args]
        self.tape.operations.append((func, kept, dict(kwargs), leaves))
        return found

    def _remember(self, func: Any, args: Any, kwargs: Any) -> None:
        for k, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[k] if k < len(args) else kwargs.get(argument.name)
            for x in tree_leaves(written):
                if isinstance(x, Tensor) and _memory(x) not in self.own and _memory(x) not in self.overwritten:
                    whole = x.detach().new_empty(0).set_(x.untyped_storage())
                    self.overwritten[_memory(x)] = whole, whole.clone()

    def put_back(self) -> None:
        """A capture runs nothing."""
        for memory, before in self.overwritten.values():
            memory.copy_(before)


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextlib.contextmanager
def capturing(tape: Tape) -> Iterator[None]:
    """In the place of torch.cuda.graph."""
    capture = _Capture(tape)
    try:
        with capture:
            yield
    finally:
        with torch.no_grad():
            capture.put_back()


class Stream:
    """In the place of torch.cuda.Stream."""

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: object) -> None:
        """Nothing here runs beside anything."""


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let code that captures on a GPU capture on a CPU."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    # On a CPU it looks whether its numbers are classes, on a GPU it does not.
    monkeypatch.setattr(functional, "one_hot", lambda x, classes: (x[..., None] == torch.arange(classes)).long())


def break_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every capture fail at its end, as one does that the driver refuses."""
    put_in_place(monkeypatch)

    @contextlib.contextmanager
    def failing(tape: Tape) -> Iterator[None]:
        with capturing(tape):
            yield
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", failing)

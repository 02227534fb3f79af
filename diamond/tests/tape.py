"""A CUDA graph's semantics on a CPU: what is captured is noted, and a replay runs it again in the same memory.

So a capture that misses an input, freezes a value that changes, or waits for the device is found without a GPU. Memory
pools, streams and kernels are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")


class Tape:
    """In place of torch.cuda.CUDAGraph. waits: operations that a capture on a GPU would refuse."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []
        self.waits: list[str] = []
        self.replays = 0

    @torch.no_grad()
    def replay(self) -> None:
        """All calls once more; what they give goes to where it first was."""
        self.replays += 1
        for function, args, kwargs, kept in self.calls:
            found = [leaf for leaf in tree_leaves(function(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
            for old, new in zip(kept, found, strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if any(word in str(function) for word in WAITS):
            self.tape.waits.append(str(function))
        frozen = tuple(list(part) if isinstance(part, list) else part for part in args)
        leaves = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        self.tape.calls.append((function, frozen, dict(kwargs or {}), leaves))
        return found


@contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """In place of torch.cuda.graph."""
    with _Recorder(tape):
        yield


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures are recorded on tapes from here on."""
    for name, fake in (
        ("Stream", _Stream), ("current_stream", _Stream), ("stream", lambda _: nullcontext()), ("CUDAGraph", Tape),
        ("graph", recording),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)

"""What an update leaves for the host, on its way there, and the memory that updates work in.

The update itself: train.py; on a GPU it is captured (common/graph.py).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from dreamerv3.replay import Picks, Replay

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Pending:
    """The latents [B, T, ...] of an update on their way into the replay: h, and z as the numbers of its classes.

    Their copy to the host is begun at once and waited for when it is needed, so that the device can go on.
    """

    def __init__(self, picks: Picks, h: Tensor, z: Tensor) -> None:
        self.picks, self.h, self.z = picks, h, z
        self._on_host = [_to_host(x) for x in (h.float(), z.to(torch.uint8))]
        self._copied = torch.cuda.Event() if h.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def store(self, replay: Replay) -> None:
        """Refresh the stored latents."""
        if self._copied is not None:
            self._copied.synchronize()
        h, z = self._on_host
        replay.refresh(self.picks, h.numpy(), z.numpy())


class Numbers:
    """Numbers for the log on their way to the host: begun at once and waited for when they are read."""

    def __init__(self, numbers: Mapping[str, Tensor]) -> None:
        self.names = list(numbers)
        stacked = torch.stack(list(numbers.values()))
        self._on_host = _to_host(stacked)
        self._copied = torch.cuda.Event() if stacked.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> dict[str, float]:
        """The numbers by name."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self.names, self._on_host.tolist(), strict=True))


def _to_host(x: Tensor) -> Tensor:
    """A copy that is under way: into pageable memory it would wait for the device."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda).copy_(x, non_blocking=True)


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

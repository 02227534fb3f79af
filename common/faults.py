"""Files that cannot be read: each is named once, counted over all ranks, and too many stop the program."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch.distributed as td

from common.config import user_error

MOST = 0.01  # share of unreadable files that stops a run


class Faults:
    """Counts what could not be read of `total` files, names each once on stderr and stops the program at more than 1 %.

    what: the files in the plural, "images". names: those that are known from an earlier start of the program.
    complaint: what is said behind each name.
    """

    def __init__(self, total: int, what: str, names: Sequence[str] = (), complaint: str = "") -> None:
        self.total, self.what, self.names, self.complaint = total, what, set(names), complaint
        self._untold: list[str] = []

    def note(self, names: Sequence[str]) -> None:
        """Of a micro-batch."""
        for name in names:
            if name not in self.names:
                self.names.add(name)
                self._untold.append(name)
                print(f"warning: {name}{self.complaint}; skipped ({len(self.names)} so far)", file=sys.stderr)
        self._check()

    def share(self) -> None:
        """Count what the other ranks have met too; all ranks call this together."""
        if td.is_initialized():
            told: list[list[str]] = [[]] * td.get_world_size()
            td.all_gather_object(told, self._untold)
            self.names.update(*told)
        self._untold = []
        self._check()

    def _check(self) -> None:
        if len(self.names) > MOST * self.total:
            user_error(f"{len(self.names)} of {self.total} {self.what} cannot be read, more than {MOST:.0%}")

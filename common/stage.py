"""One resumable loop of updates: where it stopped, its progress bar, its log, its checkpoints, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common import checkpoint, dist
from common.program import RunError
from common.provenance import command_line
from common.run import Run, check_finite

LOG_EVERY = 10  # updates


class Stage:
    """A loop of `total` updates of a run, continued from its newest checkpoint when it is made.

    for update in stage.updates():
        ...
        stage.log(update, losses)
        if stage.due(update):
            stage.save(update)

    `extra` tensors and `state` are what the loop carries besides modules and optimiser; `first` is the next update.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        total: int,
        seconds: float,
        ranks: dist.Ranks,
        modules: Mapping[str, nn.Module] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """`seconds` between checkpoints. Raises ValueError if a checkpoint does not fit the modules."""
        self.run, self.name, self.total, self.seconds, self.ranks = run, name, total, seconds, ranks
        self.modules, self.optimizer = modules or {}, optimizer
        self.folder = run.folder / name
        self.first = 0
        self.extra: dict[str, Tensor] = {}
        self.state: dict[str, Any] = {}
        self._losses: Mapping[str, Tensor | float] = {}
        found = checkpoint.load_latest(self.folder, ranks.device, run.identity)
        if found is not None:
            self._restore(found)
        run.forget(name, after=self.first)
        self._saved = self._ticked = time.monotonic()

    def updates(self) -> Iterator[int]:
        """The numbers of the updates still to do; a bar shows rate, time left and the last loss."""
        with self.run.progress(self.total, self.name, self.first, "update") as self.bar:
            self._ticked = time.monotonic()
            for update in range(self.first, self.total):
                yield update
                self.bar.update()
        self._tick()

    def log(self, update: int, losses: Mapping[str, Tensor | float], every: int = LOG_EVERY) -> None:
        """Every `every` updates: a line in metrics.jsonl (step = updates done), and an error if a loss is not finite.

        Reading a loss waits for the device, hence not at each update; a checkpoint is preceded by the same check.
        """
        self._losses = losses
        if update % every and update + 1 < self.total:
            return
        numbers = {name: float(loss) for name, loss in losses.items()}
        check_finite(self.name, update + 1, numbers, self.folder)
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()}, refresh=False)
        self.run.log(self.name, update + 1, **numbers)

    def due(self, update: int) -> bool:
        """Whether a checkpoint is to be written after this update; the first rank's clock decides for all."""
        if update + 1 == self.total:
            return True
        is_late = time.monotonic() - self._saved >= self.seconds
        if self.ranks.world_size == 1:
            return is_late  # a tensor would make each update wait for the device
        return bool(dist.broadcast(torch.tensor(float(is_late), device=self.ranks.device)))

    def save(
        self, update: int, extra: Mapping[str, Tensor] | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        """Write the checkpoint after `update`, with what the loop carries besides modules and optimiser.

        A full disk costs a write in the middle; raises RunError if it costs the last one, and NonFiniteError, with
        nothing written, if a logged loss or a weight is not finite.
        """
        check_finite(self.name, update + 1, self._losses, self.folder)
        # Of a loss that was not logged, or whose gradient alone was not finite, the weights tell.
        weights = {f"a weight of {name}": _first_not_finite(module) for name, module in self.modules.items()}
        check_finite(self.name, update + 1, weights, self.folder)
        self._tick()
        if dist.is_main(self.ranks):
            self._write(update, extra or {}, state or {})
        self._saved = time.monotonic()  # after the write: a large one must not be due again at once

    def _write(self, update: int, extra: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        tensors = {f"extra/{name}": tensor for name, tensor in extra.items()}
        for name, module in self.modules.items():
            tensors |= checkpoint.module_tensors(name, module)
        optimizer_state: dict[str, Any] = {}
        if self.optimizer is not None:
            optimizer_tensors, optimizer_state = checkpoint.pack_optimizer("optimizer", self.optimizer)
            tensors |= optimizer_tensors
        content = {"optimizer": optimizer_state, "state": dict(state)}
        self.run.flush()
        written = checkpoint.save(self.folder, update + 1, tensors, content, identity=self.run.identity)
        if not written and update + 1 == self.total:
            raise RunError(f"{self.folder}: no space for the last checkpoint; make room, then: {command_line()}")

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        self.first, self.state = found.step, found.state["state"]
        for name, module in self.modules.items():
            checkpoint.load_module(name, module, found.tensors)
        if self.optimizer is not None:
            checkpoint.unpack_optimizer("optimizer", self.optimizer, found.tensors, found.state["optimizer"])
        self.extra = {k.removeprefix("extra/"): v for k, v in found.tensors.items() if k.startswith("extra/")}

    def _tick(self) -> None:
        """Put the seconds since the last call on the clock of the run."""
        now = time.monotonic()
        self.run.add_seconds(now - self._ticked, self.name)
        self._ticked = now


@torch.no_grad()
def _first_not_finite(module: nn.Module) -> float:
    """A weight that is NaN or infinite, or 0 if there is none."""
    weights = list(module.parameters())
    if not weights or torch.stack([weight.isfinite().all() for weight in weights]).all():
        return 0.0
    return next(float(found[0]) for weight in weights if (found := weight[~weight.isfinite()]).numel())

"""What the glue to both JEPA repositories shares: their own `main` runs, and every `train_step` in it is timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.line import Line

UPDATES = 1000  # in an epoch, for the schedules


class Batches:
    """In place of their data: one batch with the masks of the order, whenever an update is ordered.

    make: what their loader hands out, of the context and target masks, each a list of [batch, tokens].
    """

    def __init__(self, line: Line, order: Mapping[str, Any], make: Callable[..., tuple[Any, ...]]) -> None:
        torch.set_num_threads(order["threads"])
        self.line, self.is_cuda, self.precision = line, order["device"] == "cuda", order["precision"]
        if not self.is_cuda:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # their main takes the first GPU that it sees
        self.batch = make(*([torch.tensor(mask) for mask in order[name]] for name in ("context", "target")))
        self.modules: list[nn.Module] = []

    def patch(self, train: Any) -> None:
        """Take the places of what times and wraps in the module of their `main`."""
        # One process needs no DistributedDataParallel, and without a group of processes there is none.
        train.DistributedDataParallel = self._alone
        train.gpu_timer = self._timed

    def _alone(self, module: nn.Module, **_: Any) -> nn.Module:
        self.modules.append(module)
        return module

    def _timed(self, step: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        result = step()
        if self.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        self.line.answer(seconds)
        return result, 1000 * seconds

    def __len__(self) -> int:
        return UPDATES

    def set_epoch(self, epoch: int) -> None:
        """What their sampler has."""

    def __iter__(self) -> Iterator[Any]:
        encoder, predictor, _ = self.modules
        learnt = [p for module in (encoder, predictor) for p in module.parameters() if p.requires_grad]
        facts = {
            "parameters": sum(p.numel() for p in learnt),
            "form": f"{self.precision}, torch {torch.__version__}",
            "unlike": "also measures its gradients, and runs without DistributedDataParallel",
        }
        self.line.answer(facts)
        for order in self.line.orders():
            if order.get("asks") == "memory":
                self.line.answer(torch.cuda.max_memory_allocated() / 2**30)
                continue
            yield self.batch
        raise SystemExit(0)


def random_images(order: Mapping[str, Any], *between: int) -> Tensor:
    """[batch, 3, ..., size, size]."""
    return torch.randn(order["batch"], 3, *between, order["size"], order["size"])

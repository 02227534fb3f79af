"""facebookresearch/ijepa, the authors' code: its own `main`, of which every `train_step` is timed."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers.line import Line

UPDATES = 1000  # in an epoch, for the schedules


def main() -> None:
    """Run their training on batches that are handed out one an order."""
    line = Line()
    order = line.start()
    torch.set_num_threads(order["threads"])
    is_cuda = order["device"] == "cuda"
    if not is_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # their main takes the first GPU that it sees
    train: Any = importlib.import_module("src.train")
    modules: list[nn.Module] = []

    def alone(module: nn.Module, **_: Any) -> nn.Module:
        modules.append(module)
        return module

    def timed(step: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        result = step()
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        line.answer(seconds)
        return result, 1000 * seconds

    # One process needs no DistributedDataParallel, and without a group of processes there is none.
    train.DistributedDataParallel = alone
    train.gpu_timer = timed
    train.make_imagenet1k = lambda **_: (None, *[Loader(line, order, modules)] * 2)
    with tempfile.TemporaryDirectory() as folder:
        train.main(_settings(order, folder))


class Loader:
    """In place of their images: the same random batch with the masks of the order, whenever an update is ordered."""

    def __init__(self, line: Line, order: dict[str, Any], modules: list[nn.Module]) -> None:
        self.line, self.modules = line, modules
        self.precision = order["precision"]
        self.images = torch.randn(order["batch"], 3, order["size"], order["size"])
        self.masks = [[torch.tensor(mask) for mask in order[name]] for name in ("context", "target")]

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
            yield (self.images,), *self.masks
        raise SystemExit(0)


def _settings(order: dict[str, Any], folder: str) -> dict[str, Any]:
    """Their configuration for ViT-H/14 with the sizes and the precision of the order."""
    path = Path(order["checkout"]) / "configs" / "in1k_vith14_ep300.yaml"
    found: dict[str, Any] = importlib.import_module("yaml").safe_load(path.read_text())
    found["meta"] |= {"model_name": f"vit_{order['encoder']}", "use_bfloat16": order["precision"] == "bfloat16"}
    found["meta"] |= {"pred_depth": order["predictor_depth"], "pred_emb_dim": order["predictor_width"]}
    found["data"] |= {"batch_size": order["batch"], "crop_size": order["size"]}
    found["mask"] |= {"patch_size": order["patch"], "num_pred_masks": len(order["target"])}
    found["optimization"] |= {"epochs": 1, "warmup": 0.1}
    found["logging"] |= {"folder": folder}
    return found


if __name__ == "__main__":
    main()

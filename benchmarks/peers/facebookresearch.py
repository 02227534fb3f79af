"""facebookresearch/ijepa, the authors' code: its own `main`, of which every `train_step` is timed."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.line import Line
from benchmarks.peers.pretraining import Batches, random_images


def main() -> None:
    """Run their training on batches that are handed out one an order."""
    line = Line()
    order = line.start()
    batches = Batches(line, order, lambda *masks: ((random_images(order),), *masks))
    train: Any = importlib.import_module("src.train")
    batches.patch(train)
    train.make_imagenet1k = lambda **_: (None, batches, batches)
    with tempfile.TemporaryDirectory() as folder:
        train.main(_settings(order, folder))


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

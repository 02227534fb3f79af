"""facebookresearch/jepa, the authors' code of V-JEPA: its own `main`, of which every `train_step` is timed."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.line import Line
from benchmarks.peers.pretraining import UPDATES, Batches, random_images


def main() -> None:
    """Run their training on batches that are handed out one an order."""
    line = Line()
    order = line.start()
    batches = Batches(line, order, lambda *masks: (([random_images(order, order["frames"])],), *masks))
    # What reads and crops videos is not run here, and would need decoders.
    _in_place_of("src.datasets.data_manager", init_data=lambda **_: (batches, batches))
    _in_place_of("app.vjepa.transforms", make_transforms=lambda **_: None)
    train: Any = importlib.import_module("app.vjepa.train")
    batches.patch(train)
    with tempfile.TemporaryDirectory() as folder:
        train.main(_settings(order, folder))


def _in_place_of(module: str, **content: Any) -> None:
    found = ModuleType(module)
    vars(found).update(content)
    sys.modules[module] = found


def _settings(order: dict[str, Any], folder: str) -> dict[str, Any]:
    """Their configuration for ViT-L/16 with the sizes and the precision of the order."""
    path = Path(order["checkout"]) / "configs" / "pretrain" / "vitl16.yaml"
    found: dict[str, Any] = importlib.import_module("yaml").safe_load(path.read_text())
    found["meta"] |= {"dtype": order["precision"]}
    found["model"] |= {"model_name": f"vit_{order['encoder']}"}
    found["model"] |= {"pred_depth": order["predictor_depth"], "pred_embed_dim": order["predictor_width"]}
    found["data"] |= {"batch_size": order["batch"], "crop_size": order["size"], "num_frames": order["frames"]}
    found["data"] |= {"patch_size": order["patch"]}
    found["optimization"] |= {"ipe": UPDATES, "epochs": 1, "warmup": 0.1}
    found["logging"] |= {"folder": folder}
    return found


if __name__ == "__main__":
    main()

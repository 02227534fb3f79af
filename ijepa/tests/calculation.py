"""What test_train.py lets one process and two ranks calculate: python -m ijepa.tests.calculation FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from common import dist
from common.faults import Faults
from common.run import Run
from ijepa import train
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.shapes import Shapes

CONFIG = Config(
    task="shapes", size=(32, 32), patch=8, encoder="nano", predictor_width=16, predictor_depth=1, min_keep=1,
    target_scale=(0.2, 0.3), batch_size=8, micro_batch_size=4, images=100, updates=3, workers=0, checkpoint_seconds=0,
    precision="float32",
)  # fmt: skip


def calculate(folder: Path) -> None:
    """Three updates in float32 on drawn shapes; the run lies in `folder`, and what each rank knows of faults."""
    torch.set_num_threads(1)
    ranks = dist.setup()
    run = Run.open("ijepa", CONFIG, "smoke", folder / "run")
    dist.barrier()
    train.train_encoder(run, CONFIG, ranks, new_model(CONFIG, 3), Shapes(32, 40, 0))
    faults = Faults(1000, "images")
    faults.note([f"{ranks.rank}.jpg"])
    faults.share()
    (folder / f"known-{ranks.rank}.txt").write_text(" ".join(sorted(faults.names)))
    dist.close()


if __name__ == "__main__":
    calculate(Path(sys.argv[1]))

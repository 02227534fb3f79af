"""What test_train.py lets one process and two ranks calculate: python -m vjepa.tests.calculation FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from common import dist
from common.faults import Faults
from common.run import Run
from vjepa import train
from vjepa.build import new_model
from vjepa.config import Config
from vjepa.shapes import Shapes

CONFIG = Config(
    task="shapes", frames=4, size=(32, 32), patch=8, augment=False, flip=False, encoder="pico", predictor_width=24,
    predictor_depth=1, predictor_heads=2, batch_size=8, micro_batch_size=4, clips=40, updates=3, workers=0,
    checkpoint_seconds=0, precision="float32", probe_clips=40,
)  # fmt: skip


def calculate(folder: Path) -> None:
    """Three updates in float32 on drawn shapes; the run lies in `folder`, and what each rank knows of faults."""
    torch.set_num_threads(1)
    ranks = dist.setup()
    run = Run.open("vjepa", CONFIG, "smoke", folder / "run")
    dist.barrier()
    train.train_encoder(run, CONFIG, ranks, new_model(CONFIG, 3), Shapes(32, 4, 40, 0))
    faults = Faults(1000, "videos")
    faults.note([f"{ranks.rank}.mp4 is no video"])
    faults.share()
    (folder / f"known-{ranks.rank}.txt").write_text(" ".join(sorted(faults.names)))
    dist.close()


if __name__ == "__main__":
    calculate(Path(sys.argv[1]))

"""What test_train.py lets one process and two ranks calculate: python -m ha2018.tests.calculation FOLDER."""

import sys
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from common import checkpoint, dist
from common.run import Run
from ha2018 import evolution, train
from ha2018.config import Config
from ha2018.dream import FirstFrames
from ha2018.encoding import Batch, Latents, MemoryEpoch
from ha2018.memory import MDNRNN
from ha2018.memory_fast import FastLosses
from ha2018.vision import VAE

CONFIG = Config(
    z_size=4,
    hidden_size=6,
    memory_batch=4,
    memory_length=5,
    gradient_clip=1e9,
    population=6,
    rollouts=3,
    generations=3,
    trial_every=2,
    trial_seeds=5,
    max_steps=40,
    checkpoint_seconds=0,
)


def calculate(folder: Path) -> None:
    """Gradients of V and M on fixed data, and an evolution of C in a fixed M; result.safetensors in `folder`."""
    torch.set_num_threads(1)
    ranks = dist.setup()
    torch.manual_seed(0)
    vae, memory = VAE(4).double(), MDNRNN(4, 1, 6, 5, predicts_restart=True).double()
    images, noise = torch.rand(6, 3, 64, 64).double(), torch.randn(6, 4).double()
    count = 60
    latents = Latents(torch.randn(count, 4), torch.zeros(count, 4), torch.rand(count, 1), [17, 20, 23])
    bank = FirstFrames(torch.randn(8, 4).double(), torch.zeros(8, 4).double())
    with torch.no_grad():
        memory.output_b[0] = -0.1
    run = Run.open("ha2018", CONFIG, "smoke", folder / "run")
    dist.barrier()
    dream = partial(evolution.dream_returns, memory=memory, bank=bank, config=CONFIG, ranks=ranks)
    params = evolution.evolve(run, CONFIG, ranks, dream)

    mine = dist.share(6, ranks)
    train.vision_step(vae, torch.optim.SGD(vae.parameters(), 0.0), images[mine], noise[mine], CONFIG)
    mine = dist.share(4, ranks)
    batch = MemoryEpoch(latents, 4, 5, 0, 0, ranks.device).batch(0, mine)
    batch = Batch(batch.z.double(), batch.action.double(), batch.restart.double())
    state = memory.initial_state(mine.stop - mine.start)
    train.memory_step(memory, FastLosses(memory), torch.optim.SGD(memory.parameters(), 0.0), batch, state, CONFIG)
    if dist.is_main(ranks):
        found = checkpoint.load_latest(folder / "run" / "controller")
        assert found is not None
        result = {"params": torch.from_numpy(params), "costs": found.tensors["extra/costs"]}
        for name, parameter in (*vae.named_parameters("V"), *memory.named_parameters("M")):
            assert parameter.grad is not None
            result[f"gradient of {name}"] = parameter.grad.contiguous()
        safetensors.torch.save_file(result, folder / "result.safetensors")
    dist.close()


if __name__ == "__main__":
    calculate(Path(sys.argv[1]))

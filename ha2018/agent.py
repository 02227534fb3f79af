"""V, M and C of a finished run, put together to play.

Shapes: B batch, Z latent size, H hidden size, P parameters of C.
"""

from pathlib import Path

import safetensors.torch
import torch

from common import checkpoint
from common.config import user_error
from common.precision import compute_dtype
from ha2018.config import Config
from ha2018.controller import CAR_ACTIONS, Controller
from ha2018.dream import FirstFrames
from ha2018.memory import MDNRNN
from ha2018.vision import VAE


def new_memory(config: Config) -> MDNRNN:
    """M for Doom predicts restarts and takes a scalar action; for CarRacing it does not and takes three numbers."""
    if config.task == "doom":
        return MDNRNN(config.z_size, 1, config.hidden_size, config.mixtures, predicts_restart=True)
    return MDNRNN(config.z_size, CAR_ACTIONS, config.hidden_size, config.mixtures, predicts_restart=False)


class Agent:
    """`vae`, `memory`, the controller's `params` [P] and the `bank` of dream beginnings, read from a run folder.

    `dtype` is what V and dreams multiply.
    """

    def __init__(self, folder: Path, config: Config, device: torch.device) -> None:
        """One line and exit code 2 if training has not ended."""
        if not (folder / "controller.safetensors").exists():
            user_error(f"{folder}: training has not ended; the same train command goes on with it")
        self.device = device
        self.dtype = compute_dtype(config.precision, device)
        self.vae = VAE(config.z_size, self.dtype).to(device).eval()
        self.memory = new_memory(config).to(device).eval()
        for stage, name, module in (("vision", "V", self.vae), ("memory", "M", self.memory)):
            found = checkpoint.load_latest(folder / stage, device)
            if found is None:
                user_error(f"{folder}: stage {stage} has no checkpoint; remove the folder and train again")
            checkpoint.load_module(name, module, found.tensors)
        controller = safetensors.torch.load_file(folder / "controller.safetensors", str(device))
        self.controller = Controller(config.controller_inputs, config.controller_hidden)
        self.params = controller["params"].float()
        self.bank = FirstFrames(controller["bank_mu"], controller["bank_logvar"])
        self.frames = int(controller["frames"])

    def parameters(self) -> dict[str, int]:
        """Parameter counts as the paper's tables have them."""
        count = {"V": self.vae, "M": self.memory}
        return {name: sum(p.numel() for p in module.parameters()) for name, module in count.items()} | {
            "C": self.params.numel()
        }

"""The world model (V, M and the frames that dreams begin in) and the agent that C makes of it, new or read from a run.

Shapes: F first frames, Z latent size, P parameters of C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from common import checkpoint
from common.config import user_error
from common.files import read_checked
from common.precision import compute_dtype
from common.run import Run
from ha2018 import data, encoding
from ha2018.config import Config
from ha2018.controller import CAR_ACTIONS, Controller
from ha2018.dream import FirstFrames
from ha2018.memory import MDNRNN
from ha2018.vision import VAE

CONTROLLER = "controller.safetensors"


def new_vae(config: Config, device: torch.device) -> VAE:
    """V as it is initialised."""
    return VAE(config.z_size, compute_dtype(config.precision, device)).to(device)


def new_memory(config: Config, device: torch.device) -> MDNRNN:
    """M as it is initialised: Doom's predicts restarts and takes a scalar action, CarRacing's takes three numbers."""
    is_doom = config.task == "doom"
    actions = 1 if is_doom else CAR_ACTIONS
    memory = MDNRNN(config.z_size, actions, config.hidden_size, config.mixtures, predicts_restart=is_doom)
    return memory.to(device)


@dataclass(frozen=True)
class WorldModel:
    """What dreams are made of; `frames` is how many V and M were trained on, `dtype` what V and dreams multiply."""

    vae: VAE
    memory: MDNRNN
    first_frames: FirstFrames
    frames: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Agent:
    """V, M and C; params [P] of one controller, or [E, P] of one for each episode."""

    vae: VAE
    memory: MDNRNN
    controller: Controller
    params: Tensor

    def parameters(self) -> dict[str, int]:
        """Parameter counts as the paper's tables have them."""
        return {"V": _count(self.vae), "M": _count(self.memory), "C": self.params.shape[-1]}


def load_world_model(folder: Path, config: Config, device: torch.device) -> WorldModel:
    """V and M of a run at their last step; one line and exit code 2 if they are not finished or damaged."""
    identity = Run.load("ha2018", folder)["meta"]["identity"]
    if not encoding.is_encoded(folder):
        user_error(f"{folder}: V and M are not trained to their end; the same train command goes on with it")
    first_frames, frames = encoding.load_first_frames(folder, identity, device)
    vae, memory = new_vae(config, device).eval(), new_memory(config, device).eval()
    for stage, name, module, total in (
        ("vision", "V", vae, data.vision_updates(config, frames)),
        ("memory", "M", memory, encoding.memory_updates(config, frames)),
    ):
        checkpoint.load_module(name, module, checkpoint.load_final(folder / stage, total, device, identity).tensors)
    return WorldModel(vae, memory, first_frames, frames, compute_dtype(config.precision, device))


def load_agent(folder: Path, model: WorldModel, config: Config) -> Agent:
    """The controller of a run on its world model; one line and exit code 2 if its evolution has not ended."""
    identity = Run.load("ha2018", folder)["meta"]["identity"]
    if not (folder / CONTROLLER).exists():
        user_error(f"{folder}: training has not ended; the same train command goes on with it")
    try:
        stored = safetensors.torch.load(read_checked(folder / CONTROLLER, f"{identity} controller"))
    except ValueError as error:
        user_error(f"{error}; remove it: the same train command writes it again")
    params = stored["params"].float().to(model.memory.bias.device)
    return Agent(model.vae, model.memory, Controller(config.controller_inputs, config.controller_hidden), params)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

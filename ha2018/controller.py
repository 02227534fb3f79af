"""C: the linear controllers of the paper as functions of a flat parameter vector, since evolution sees nothing else.

Shapes: B batch; params [P] for one controller or [B, P] for one controller per row; inputs x [B, I].
Source: paper, section 2.3 and appendix A.3; reference code: model.py of each task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ha2018.memory import State

CAR_ACTIONS = 3


@dataclass(frozen=True)
class Controller:
    """Which of the paper's controllers C is: "zch" on [z, c, h] for Doom; "zh" and "z" for CarRacing."""

    inputs: str
    hidden_units: int = 0

    def params(self, z_size: int, hidden_size: int) -> int:
        """P, the number of its parameters."""
        if self.inputs == "zch":
            return doom_params(z_size, hidden_size)
        return car_params(z_size + hidden_size * (self.inputs == "zh"), self.hidden_units)

    def action(self, params: Tensor, z: Tensor, state: State) -> Tensor:
        """The action [B, A] on the latent z [B, Z] and the state from before it; params [P] or [B, P]."""
        if self.inputs == "zch":
            return doom_action(params, torch.cat([z, state.c, state.h], dim=1))[:, None]
        x = z if self.inputs == "z" else torch.cat([z, state.h], dim=1)
        return car_action(params, x, self.hidden_units)


def doom_params(z_size: int, hidden_size: int) -> int:
    """Parameters of Doom's C on [z, c, h], which has no bias: 1,088 at Z 64, H 512."""
    return z_size + 2 * hidden_size


def car_params(inputs: int, hidden_units: int = 0) -> int:
    """Parameters of CarRacing's C: 867 on [z, h] (288 inputs), 99 on z alone, 1,443 on z with 40 hidden units."""
    if hidden_units:
        return hidden_units * (inputs + 1) + CAR_ACTIONS * (hidden_units + 1)
    return CAR_ACTIONS * (inputs + 1)


def doom_action(params: Tensor, x: Tensor) -> Tensor:
    """a = tanh(w . [z, c, h]) in (-1, 1). x [B, P], or [P], params [P] or [B, P]. Returns [B]."""
    if params.shape[-1] != x.shape[-1]:
        raise ValueError(f"controller: {params.shape[-1]} weights do not fit {x.shape[-1]} inputs")
    return torch.tanh((x * params).sum(-1) if params.ndim == 2 else x @ params)


def car_action(params: Tensor, x: Tensor, hidden_units: int = 0) -> Tensor:
    """a = tanh(x W + b), then gas = (a1 + 1) / 2 and brake = clip(a2, 0, 1); steering a0 in (-1, 1).

    params [P] or [B, P] = [biases, weight [I, 3] row by row], with `hidden_units` > 0 preceded by those of a tanh
    layer. x [B, I], or [I] with params [P]. Returns [B, 3], or [3].
    """
    if params.shape[-1] != car_params(x.shape[-1], hidden_units):
        expected = car_params(x.shape[-1], hidden_units)
        raise ValueError(f"controller: expected {expected} parameters for {x.shape[-1]} inputs, got {params.shape[-1]}")
    if hidden_units:
        split = hidden_units * (x.shape[-1] + 1)
        x, params = torch.tanh(_affine(params[..., :split], x, hidden_units)), params[..., split:]
    a = torch.tanh(_affine(params, x, CAR_ACTIONS))
    return torch.stack([a[..., 0], (a[..., 1] + 1) / 2, a[..., 2].clamp(0, 1)], dim=-1)


def _affine(params: Tensor, x: Tensor, outputs: int) -> Tensor:
    bias, weight = params[..., :outputs], params[..., outputs:].unflatten(-1, (x.shape[-1], outputs))
    return torch.einsum("bi,bio->bo", x, weight) + bias if params.ndim == 2 else x @ weight + bias

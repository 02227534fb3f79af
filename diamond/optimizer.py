"""AdamW as each of the three networks has it: what decays, the warm-up, and the clipped gradient.

Source: paper, Table 3; reference code: utils.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DECAYED = (nn.Linear, nn.Conv2d, nn.LSTM, nn.LSTMCell)


def new_optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with two groups: weights of linear, convolutional and recurrent layers decay; biases, norms and embeddings
    do not."""
    decayed = [
        parameter
        for layer in module.modules()
        if isinstance(layer, DECAYED)
        for name, parameter in layer.named_parameters(recurse=False)
        if name.startswith("weight")
    ]
    chosen = {id(parameter) for parameter in decayed}
    rest = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def learning_rate(lr: float, warmup: int, update: int) -> float:
    """The rate of update 0, 1, ...: linear over `warmup` updates from exactly 0, then constant."""
    return lr * min(1.0, update / warmup) if warmup else lr


def clip_gradients(module: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their norm is at most `limit`; returns the norm before."""
    return nn.utils.clip_grad_norm_(module.parameters(), limit)

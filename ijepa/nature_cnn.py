"""The convolutional encoder of AtariARI; with its first, random weights it is the control of that benchmark.

Source: Anand et al. 2019; reference code: atariari/methods/encoders.py (NatureCNN for 210 x 160).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 256


class NatureCNN(nn.Module):
    """Four convolutions and a linear layer without activation; 1,124,896 parameters."""

    def __init__(self, generator: torch.Generator) -> None:
        """Orthogonal weights with gain sqrt(2), zero biases. Consumes `generator`."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 128, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(128, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9 * 6 * 64, FEATURES),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.orthogonal_(layer.weight, 2**0.5, generator=generator)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B, 1, 210, 160] in [0, 1] -> [B, 256]."""
        return self.layers(frames)

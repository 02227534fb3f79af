"""Roll-outs: where digits will be, told by one small learned step after the other in the space of frozen tokens.

A state is what the target encoder says of the frames of one time step alone: two frames, from which a motion can be
told. A network on the map of its tokens learns to make the next state of it, with the mean over K steps of

    |state[t + k] - step(step(... state[t]))|², k calls of step, the gradient through all of them

as its loss. A digit's place is then read from states k steps ahead, over all t, and falls the slower with k the more
steps were learnt at once: that is the claim.
Shapes: n clips, T time steps of U frames, N = 8 x 8 tokens of a state, D width, K steps of a roll-out.
Source: EB-JEPA's video example, in its manner.
Deviation D12: there the encoder is learnt together with the step; here it is V-JEPA's, and frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.run import progress_bar
from common.seeding import derive_seed
from vjepa import detection
from vjepa.config import Config
from vjepa.digits import MAP, Digits
from vjepa.features import encode
from vjepa.jepa import JEPA, normalise
from vjepa.vit import VideoTransformer

STEPS = (1, 4)  # the two ends of the example's claim
EPOCHS, BATCH, LR = 10, 64, 1e-3
HIDDEN = 64  # channels


class Step(nn.Module):
    """state [B, N, D] -> the next one: three convolutions of 3 x 3 places, added to the state itself."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        """At first the state is left as it is. Consumes `generator`."""
        super().__init__()
        sizes = (width, HIDDEN, HIDDEN, width)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.get_parameter("weight"), generator=generator)
            nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.zeros_(self.layers[-1].get_parameter("weight"))

    def forward(self, state: Tensor) -> Tensor:
        x = state.unflatten(1, (MAP, MAP)).permute(0, 3, 1, 2)  # [B, D, 8, 8]
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return state + self.layers[-1](x).flatten(2).transpose(1, 2)


@torch.no_grad()
def states(encoder: VideoTransformer, clips: Tensor) -> Tensor:
    """clips [B, C, F, H, W] -> [B, T*N, D], normalised: tokens of each time step, which see no other.

    Among all tokens of a clip, those of the first frames would know the last ones.
    """
    count, places = encoder.grid[0], encoder.grid[1] * encoder.grid[2]
    steps = torch.arange(count * places, device=clips.device).view(count, 1, places).expand(-1, len(clips), -1)
    return torch.cat([normalise(encoder(clips, mask)) for mask in steps], 1)


def roll_out(step: Callable[[Tensor], Tensor], found: Tensor, steps: int) -> list[Tensor]:
    """found [B, T, N, D] -> what K steps make of them: for k = 1, 2, ..., K the states from k on, [B, T - k, N, D]."""
    told = []
    for _ in range(steps):
        found = found[:, :-1]
        found = step(found.flatten(0, 1)).unflatten(0, found.shape[:2])
        told.append(found)
    return told


def rollout_loss(step: Callable[[Tensor], Tensor], true: Tensor, steps: int) -> Tensor:
    """The mean over K steps of the mean squared error of a roll-out: true [B, T, N, D], K below T. Scalar."""
    told = roll_out(step, true, steps)
    return torch.stack([F.mse_loss(part, true[:, k:]) for k, part in enumerate(told, 1)]).mean()


def train_step_network(true: Tensor, steps: int, seed: int, device: torch.device, name: str) -> Step:
    """The network that makes the next state, learnt from the states [n, T, N, D] of clips."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "roll-out"))
    step = Step(true.shape[3], generator).to(device)
    optimizer = torch.optim.AdamW(step.parameters(), lr=LR, weight_decay=0.0)
    with progress_bar(EPOCHS, name, unit="epoch") as bar:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(true), generator=generator).split(BATCH):
                optimizer.zero_grad()
                rollout_loss(step, true[rows].to(device), steps).backward()
                optimizer.step()
            bar.update()
    return step.eval()


def measure(
    models: Mapping[str, JEPA], train: Digits, test: Digits, config: Config, device: torch.device
) -> dict[str, np.ndarray]:
    """Average precision in percent of each test clip [n] by what is measured and of whom ("" for the first model).

    For STEPS, and of copied states: the mean over all steps ahead, each of them, and what is lost from the first to the
    last of them. A linear map, learnt on true states, tells the places from each. Of the other models only the last of
    STEPS is learnt: they are controls.
    """
    found: dict[str, np.ndarray] = {}
    for place, (name, model) in enumerate(models.items()):
        end = f", {name}" if place else ""
        true, asked = (
            encode(partial(states, model.target_encoder), part, config, device, word)
            for part, word in ((train, f"{name}, states, train"), (test, f"{name}, states, test"))
        )
        head = detection.train_head(true, detection.cells(train, config.tubelet), config.seed)
        count = model.encoder.grid[0]
        true, asked = (part.unflatten(1, (count, -1)) for part in (true, asked))
        cells = detection.cells(test, config.tubelet).unflatten(1, (count, -1))
        steps_of: dict[str, Step | None] = {} if place else {"states copied": None}
        for steps in STEPS[-1:] if place else STEPS:
            words = f"states rolled out, learnt with {steps} step{'s' if steps > 1 else ''}"
            steps_of[words] = train_step_network(true, min(steps, count - 1), config.seed, device, f"{name}, {words}")
        for words, step in steps_of.items():
            ahead = precision_ahead(step, head, asked, cells, device)
            found[f"{words}{end}"] = ahead.mean(1)
            found[f"{words}, lost on the way{end}"] = ahead[:, 0] - ahead[:, -1]
            found |= {
                f"{words}, {(k + 1) * config.tubelet} frames ahead{end}": ahead[:, k] for k in range(ahead.shape[1])
            }
    return found


@torch.no_grad()
def precision_ahead(
    step: Step | None, head: nn.Module, asked: Tensor, cells: Tensor, device: torch.device
) -> np.ndarray:
    """Average precision in percent [n, T - 1] of each clip and number of steps ahead, the mean over where they begin.

    asked [n, T, N, D]: true states; cells [n, T, N, U]: where digits are; without a step, states are copied.
    """
    count = asked.shape[1]
    if step is None:
        told = [asked[:, : count - k] for k in range(1, count)]
    else:
        parts = [roll_out(step, part.to(device), count - 1) for part in asked.split(BATCH)]
        told = [torch.cat(part).cpu() for part in zip(*parts, strict=True)]
    return np.stack(
        [
            detection.by_depth(detection.apply(head, part.flatten(1, 2)), cells[:, k:].flatten(1, 2)).mean(1)
            for k, part in enumerate(told, 1)
        ],
        1,
    )

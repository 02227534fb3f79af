"""The end-to-end recipe of the Two Rooms benchmark: a small world model learnt from pixels without any frozen encoder.

An IMPALA encoder gives a vector a frame, a GRU predicts the next one from the action, and four terms keep the vectors
from collapsing. Shapes: B windows, T frames, D width, A numbers of an action, C x H x W pictures.
Source: EB-JEPA (arXiv 2602.03604), facebookresearch/eb_jepa: examples/ac_video_jepa; the terms are those of PLDM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VARIANCE_EPS = 1e-4
INVERSE_HIDDEN = 256
PIXEL_MEAN, PIXEL_STD = (0.0026, 0.0989), (0.0369, 0.2986)  # dot, walls
PLACE_MEAN, PLACE_STD = (31.5863, 32.0618), (16.1025, 16.1353)  # x, y in pixels


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Impala(nn.Module):
    """The encoder: stacks of a convolution, a pooling and two residual blocks, then one layer and its norm."""

    def __init__(self, picture: tuple[int, int, int], channels: Sequence[int], width: int) -> None:
        super().__init__()
        inputs, height, breadth = picture
        stacks = []
        for outputs in channels:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            stacks += [conv, nn.MaxPool2d(3, 2, 1), Residual(outputs), Residual(outputs)]
            inputs, height, breadth = outputs, (height + 1) // 2, (breadth + 1) // 2
        self.stacks = nn.Sequential(*stacks)
        self.linear = nn.Linear(inputs * height * breadth, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor) -> Tensor:
        """frames [..., C, H, W], normalised -> [..., D]."""
        x = F.relu(self.stacks(frames.reshape(-1, *frames.shape[-3:]))).flatten(1)
        return self.norm(self.linear(x)).reshape(*frames.shape[:-3], -1)


class RecipeModel(nn.Module):
    """Encoder, predictor, inverse dynamics; `probe` reads the place of the dot and teaches nothing to the others.

    The predictor ends with the encoder's norm, the very same module.
    """

    def __init__(self, picture: tuple[int, int, int], channels: Sequence[int], width: int, action_size: int) -> None:
        super().__init__()
        self.encoder = Impala(picture, channels, width)
        self.gru = nn.GRUCell(action_size, width)
        self.inverse = _mlp(2 * width, action_size, 2)
        self.probe = _mlp(width, 2, 1)

    def predict(self, z: Tensor, actions: Tensor) -> Iterator[Tensor]:
        """z [B, D], actions [B, K, A] -> the K frames that follow, each [B, D], from the one predicted before."""
        for action in actions.unbind(1):
            z = self.encoder.norm(gru_step(self.gru, action, z))
            yield z


def gru_step(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    """What `cell` gives, x [B, A], h [B, D] -> [B, D], written out: a compiler fuses all but the products."""
    new, old = F.linear(x, cell.weight_ih, cell.bias_ih), F.linear(h, cell.weight_hh, cell.bias_hh)
    (x_reset, x_keep, x_n), (h_reset, h_keep, h_n) = new.chunk(3, -1), old.chunk(3, -1)
    reset, keep = torch.sigmoid(x_reset + h_reset), torch.sigmoid(x_keep + h_keep)
    n = torch.tanh(x_n + reset * h_n)
    return n + keep * (h - n)


def _mlp(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """`hidden` layers with ReLU, and a last one without."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        layers += [nn.Linear(inputs, INVERSE_HIDDEN), nn.ReLU()]
        inputs = INVERSE_HIDDEN
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def new_recipe(
    picture: tuple[int, int, int], channels: Sequence[int], width: int, action_size: int, seed: int
) -> RecipeModel:
    """With PyTorch's own initial weights, drawn from the seed. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecipeModel(picture, channels, width, action_size)


def to_input(frames: Tensor) -> Tensor:
    """Pictures [..., 2, H, W] uint8 -> float32 of about unit variance: each channel of each frame is first spread to
    [0, 1] between its own least and largest value.
    """
    x = frames.float()
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    mean, std = (x.new_tensor(part)[:, None, None] for part in (PIXEL_MEAN, PIXEL_STD))
    return ((x - low) / (high - low).clamp(min=1) - mean) / std


def recipe_losses(model: RecipeModel, frames: Tensor, actions: Tensor, steps: int) -> dict[str, Tensor]:
    """The terms of the loss, each a mean; no gradient is stopped, and there is no second encoder.

    frames [B, T, C, H, W] normalised, actions [B, T, A] (the last is not used); steps: of the rollout, at most T - 1.
    prediction: squared error of `steps` frames predicted from the first alone, with the true actions. variance,
    covariance: over all frames, of the D numbers; similarity: of frames that follow one another; inverse_dynamics: of
    the action guessed from two of those.
    """
    z = model.encoder(frames)
    predicted = torch.stack(list(model.predict(z[:, 0], actions[:, :steps])), 1).float()
    z = z.float()
    flat = z.flatten(0, 1)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred / (len(flat) - 1)
    variances = covariance.diagonal()
    width = len(covariance)
    guessed = model.inverse(torch.cat([z[:, :-1], z[:, 1:]], -1)).float()
    return {
        "prediction": F.mse_loss(predicted, z[:, 1 : steps + 1]),
        "variance": F.relu(1 - (variances + VARIANCE_EPS).sqrt()).mean(),
        "covariance": (covariance.square().sum() - variances.square().sum()) / (width * (width - 1)),
        "similarity": F.mse_loss(z[:, 1:], z[:, :-1]),
        "inverse_dynamics": F.mse_loss(guessed, actions[:, :-1]),
    }


def probe_loss(model: RecipeModel, frames: Tensor, places: Tensor) -> Tensor:
    """Squared error of the dot's place read from the first frame; the encoder is not taught by it.

    frames [B, T, C, H, W] normalised, places [B, T, 2] in pixels. For the watch over a run: no plan asks it.
    """
    with torch.no_grad():
        z = model.encoder(frames[:, :1])[:, 0]
    return F.mse_loss(model.probe(z).float(), scaled_place(places[:, 0]))


def scaled_place(places: Tensor) -> Tensor:
    """Pixels [..., 2] -> numbers of unit variance."""
    return (places - places.new_tensor(PLACE_MEAN)) / places.new_tensor(PLACE_STD)

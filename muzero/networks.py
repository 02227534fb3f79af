"""h, g and f: representation, dynamics and prediction, for vectors, boards and Atari frames.

B batch, A actions, C planes, H x W cells, D width of a hidden vector, S half width of the support.
Every network has `represent(obs) -> state`, `dynamics(state, action) -> state, reward output`, and
`predict(state) -> policy logits, value output`; outputs are decoded by `transform.decode`.
Source: paper, Appendices E and F; the board heads are those of AlphaGo Zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from muzero.transform import scale_hidden

ENCODINGS = ("point", "column", "tiled", "scalar", "move")


@dataclass(frozen=True)
class Sizes:
    """How large a network is.

    kind: "vector", "board" or "frames". channels: planes of a tower, or width of a hidden vector. blocks: in h and in
    g; head_blocks: more of them before the heads of f. hidden: width of the heads (and of g's layer for vectors).
    is_normalised: heads as AlphaGo Zero has them, with batch norm; else plain ones with ELU. value_planes and
    policy_planes: to which a head first reduces. scales_channels: min-max scaling of each channel alone.
    """

    kind: str
    channels: int
    blocks: int
    hidden: int
    head_blocks: int = 0
    is_normalised: bool = True
    value_planes: int = 1
    policy_planes: int = 2
    scales_channels: bool = False


def action_planes(action: Tensor, encoding: str, actions: int, rows: int, columns: int) -> Tensor:
    """[B] integers of any size -> [B, P, rows, columns]: how the dynamics see an action.

    point: one plane, one-hot at the cell; an action beyond the cells (a pass) is all zeros. column: one plane, ones in
    that column. tiled: one constant plane for each action. scalar: one constant plane a / actions. move: cell and kind
    of a chess move numbered 73 * from + kind, one plane one-hot and 73 constant ones.
    Source: paper, Appendix E. Deviation D6: chess has 8 planes of its own there (from, to, legal, promotion).
    """
    action = action.long()
    count, cells = action.shape[0], rows * columns
    if encoding == "scalar":
        return (action.double() / actions)[:, None, None, None].expand(count, 1, rows, columns)
    if encoding == "point":
        # One class more than cells, cut off again: a pass has no cell.
        return F.one_hot(action.clamp(max=cells), cells + 1)[:, :cells].view(count, 1, rows, columns)
    if encoding == "column":
        return F.one_hot(action, columns)[:, None, None, :].expand(count, 1, rows, columns)
    if encoding == "tiled":
        return F.one_hot(action, actions)[:, :, None, None].expand(count, actions, rows, columns)
    if encoding == "move":
        kinds = 73
        start = action_planes(action // kinds, "point", actions, rows, columns)
        return torch.cat([start, action_planes(action % kinds, "tiled", kinds, rows, columns)], 1)
    raise ValueError(f"encoding is {encoding!r}; allowed: {', '.join(ENCODINGS)}")


def plane_count(encoding: str, actions: int) -> int:
    """P of `action_planes`."""
    return {"tiled": actions, "move": 74}.get(encoding, 1)


class Convolution(nn.Module):
    """3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Block(nn.Module):
    """Residual block: convolution, norm, ReLU, convolution, norm, sum, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(self.first(x))))


def tower(channels: int, blocks: int) -> nn.Sequential:
    """Residual blocks in a row."""
    return nn.Sequential(*(Block(channels) for _ in range(blocks)))


class Downsampling(nn.Sequential):
    """96 x 96 frames to 6 x 6 cells. Source: paper, Appendix F."""

    def __init__(self, channels_in: int, channels: int) -> None:
        half = channels // 2
        super().__init__(
            Convolution(channels_in, half, stride=2),
            tower(half, 2),
            Convolution(half, channels, stride=2),
            tower(channels, 3),
            nn.AvgPool2d(3, 2, 1),
            tower(channels, 3),
            nn.AvgPool2d(3, 2, 1),
        )


class PlaneHead(nn.Module):
    """[B, C, H, W] -> [B, outputs]: fewer planes by a 1 x 1 convolution, then linear layers.

    is_normalised: without bias, with batch norm and ReLU, and ReLU between the linear layers (one alone without
    `hidden`); else with bias and with ELU between them.
    """

    def __init__(
        self, channels: int, planes: int, cells: int, hidden: int | None, outputs: int, is_normalised: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, planes, 1, bias=not is_normalised)
        self.norm: nn.Module | None = nn.BatchNorm2d(planes) if is_normalised else None
        self.hidden = None if hidden is None else nn.Linear(planes * cells, hidden)
        self.out = nn.Linear(planes * cells if hidden is None else hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = (x if self.norm is None else F.relu(self.norm(x))).flatten(1)
        if self.hidden is not None:
            x = self.hidden(x)
            x = F.elu(x) if self.norm is None else F.relu(x)
        return self.out(x)


class PlaneNetwork(nn.Module):
    """Boards, and Atari frames in front of which stands a downsampling.

    planes: of an observation; shape: its rows and columns. half: S; None for a value in [-1, 1] by tanh and no reward.
    """

    def __init__(
        self, planes: int, shape: tuple[int, int], actions: int, encoding: str, sizes: Sizes, half: int | None
    ) -> None:
        super().__init__()
        self.actions, self.encoding, self.sizes, self.is_outcome = actions, encoding, sizes, half is None
        channels, is_frames = sizes.channels, sizes.kind == "frames"
        self.shape = (-(-shape[0] // 16), -(-shape[1] // 16)) if is_frames else shape
        cells = self.shape[0] * self.shape[1]
        first = Downsampling(planes, channels) if is_frames else Convolution(planes, channels)
        self.representation = nn.Sequential(first, tower(channels, sizes.blocks))
        seen = channels + plane_count(encoding, actions)
        self.transition = nn.Sequential(Convolution(seen, channels), tower(channels, sizes.blocks))
        self.before_heads = tower(channels, sizes.head_blocks)
        normal, bins = sizes.is_normalised, 1 if half is None else 2 * half + 1
        self.value = PlaneHead(channels, sizes.value_planes, cells, sizes.hidden, bins, normal)
        policy_hidden = None if normal else sizes.hidden
        self.policy = PlaneHead(channels, sizes.policy_planes, cells, policy_hidden, actions, normal)
        self.reward = (
            None if half is None else PlaneHead(channels, sizes.value_planes, cells, sizes.hidden, bins, normal)
        )

    def represent(self, obs: Tensor) -> Tensor:
        """h: planes [B, P, H, W] -> state [B, C, H', W'] in [0, 1]."""
        return scale_hidden(self.representation(obs), is_per_channel=self.sizes.scales_channels)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """g: state, action [B] -> next state in [0, 1], reward output [B, bins] ([B, 0] without rewards)."""
        planes = action_planes(action, self.encoding, self.actions, *self.shape).to(state.dtype)
        raw = self.transition(torch.cat([state, planes], 1))
        # The reward is read before the scaling, which hides how large the state is.
        reward = state.new_zeros(len(state), 0) if self.reward is None else self.reward(raw)
        return scale_hidden(raw, is_per_channel=self.sizes.scales_channels), reward

    def predict(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """f: state -> policy logits [B, A], value output [B, bins]."""
        x = self.before_heads(state)
        value = self.value(x)
        return self.policy(x), value.tanh() if self.is_outcome else value


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ELU between them."""
    parts: list[nn.Module] = []
    for width_in, width in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(width_in, width), nn.ELU()]
    return nn.Sequential(*parts[:-1])


class VectorNetwork(nn.Module):
    """Vectors: stacks of linear layers. Not in the paper; for worlds without images.

    sizes.blocks hidden layers in h, one in g and in each head; hidden vectors of width sizes.channels.
    """

    def __init__(self, observed: int, actions: int, sizes: Sizes, half: int | None) -> None:
        super().__init__()
        self.actions, self.is_outcome = actions, half is None
        width, hidden, bins = sizes.channels, sizes.hidden, 1 if half is None else 2 * half + 1
        self.representation = layers([observed, *[hidden] * sizes.blocks, width])
        self.transition = layers([width + actions, hidden, width])
        self.reward = None if half is None else layers([width, hidden, bins])
        self.policy = layers([width, hidden, actions])
        self.value = layers([width, hidden, bins])

    def represent(self, obs: Tensor) -> Tensor:
        """h: [B, ...] -> state [B, D] in [0, 1]."""
        return scale_hidden(self.representation(obs.flatten(1)))

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """g: state, action [B] -> next state in [0, 1], reward output [B, bins] ([B, 0] without rewards)."""
        # The layer on [state, one-hot action], without building it: an action selects a column of the weights.
        first = self.transition[0]
        assert isinstance(first, nn.Linear)
        width = state.shape[1]
        x = F.linear(state, first.weight[:, :width], first.bias) + F.embedding(action.long(), first.weight[:, width:].T)
        raw = self.transition[1:](x)
        reward = state.new_zeros(len(state), 0) if self.reward is None else self.reward(raw)
        return scale_hidden(raw), reward

    def predict(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """f: state -> policy logits [B, A], value output [B, bins]."""
        value = self.value(state)
        return self.policy(state), value.tanh() if self.is_outcome else value


Network = PlaneNetwork | VectorNetwork


def for_inference(network: Network) -> Network:
    """A copy in which every batch norm has become part of the convolution before it; f, g and h stay the same."""
    folded = copy.deepcopy(network).eval()
    for module in folded.modules():
        if isinstance(module, Convolution | Block | PlaneHead) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    return folded


@torch.no_grad()
def refresh(folded: Network, network: Network) -> None:
    """Give a copy that `for_inference` once made the newest numbers, in the memory that it has."""
    done: set[nn.Module] = set()
    for module, copied in zip(network.modules(), folded.modules(), strict=True):
        if isinstance(module, Convolution | Block | PlaneHead) and isinstance(module.norm, nn.BatchNorm2d):
            conv, norm = module.conv, module.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            fused = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            for mine, new in zip(copied.conv.parameters(), fused, strict=True):  # type: ignore[union-attr]
                mine.copy_(new)
            done |= {conv, norm}
        elif module not in done:
            for mine, theirs in zip(copied.parameters(recurse=False), module.parameters(recurse=False), strict=True):
                mine.copy_(theirs)


def new_network(
    obs_shape: tuple[int, ...], actions: int, encoding: str, sizes: Sizes, half: int | None, seed: int
) -> Network:
    """An untrained network; the last layers of the value and reward heads start at zero.

    Deviation D7: the paper does not say how heads begin. Zero makes every first value and reward exactly 0, so that the
    first searches follow the priors and not noise.
    """
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    network: Network
    if sizes.kind == "vector":
        network = VectorNetwork(int(torch.Size(obs_shape).numel()), actions, sizes, half)
        last = [network.value[-1], None if network.reward is None else network.reward[-1]]
    else:
        planes, rows, columns = obs_shape
        network = PlaneNetwork(planes, (rows, columns), actions, encoding, sizes, half)
        last = [network.value.out, None if network.reward is None else network.reward.out]
    for layer in last:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.set_rng_state(state)
    # With the planes innermost convolutions are faster, on a CPU and on a GPU.
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network

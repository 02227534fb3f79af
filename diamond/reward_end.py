"""R: what a transition is worth and whether it ends the episode, from the frames on both sides of it.

B batch, T transitions; frames [B, T, 3, H, W] in [-1, 1].
Source: paper, section 3.3 and Appendix B; reference code: rew_end_model.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diamond.blocks import Downsample, conv3
from diamond.denoiser import Segments, mean_of_real
from diamond.unet import ResBlocks

REWARDS, ENDS = 3, 2
State = tuple[Tensor, Tensor]  # h and c, [1, B, lstm_size]


def init_lstm(lstm: nn.LSTM | nn.LSTMCell) -> None:
    """Xavier input weights, orthogonal recurrent ones, biases 0 but 1 for the forget gate; reference code."""
    for name, parameter in lstm.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # gates: input, forget, cell, output
                parameter.data[lstm.hidden_size : 2 * lstm.hidden_size] = 1


class Encoder(nn.Module):
    """[B, 6, H, W] and cond [B, K] → [B, C, H', W']; two blocks with attention at the end."""

    def __init__(
        self,
        channels_in: int,
        cond_size: int,
        channels: Sequence[int],
        depths: Sequence[int],
        attention: Sequence[bool],
    ) -> None:
        super().__init__()
        self.conv_in = conv3(channels_in, channels[0])
        blocks = [
            ResBlocks([c1] + [c2] * (depth - 1), [c2] * depth, cond_size, has_attention=has_attention)
            for c1, c2, depth, has_attention in zip(
                [channels[0], *channels[:-1]], channels, depths, attention, strict=True
            )
        ]
        blocks.append(ResBlocks([channels[-1]] * 2, [channels[-1]] * 2, cond_size, has_attention=True))
        self.blocks = nn.ModuleList(blocks)
        shrink: list[nn.Module] = [nn.Identity(), *(Downsample(c) for c in channels[:-1]), nn.Identity()]
        self.downsamples = nn.ModuleList(shrink)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = self.conv_in(x)
        for shrink, block in zip(self.downsamples, self.blocks, strict=True):
            x = block(shrink(x), cond)
        return x


@dataclass
class Play(Segments):
    """Segments with reward [B, T] raw, end and trunc [B, T] in {0, 1}, final_obs [B, 3, H, W], has_final [B].

    final_obs is what followed the action that ended the episode; it means nothing where has_final is False.
    """

    reward: Tensor
    end: Tensor
    trunc: Tensor
    final_obs: Tensor
    has_final: Tensor


class RewardEndModel(nn.Module):
    """An encoder of two frames and an action, an LSTM over time, and two classifications."""

    def __init__(
        self,
        actions: int,
        cond_size: int,
        channels: Sequence[int],
        depths: Sequence[int],
        attention: Sequence[bool],
        lstm_size: int,
        image_size: int,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(2 * image_channels, cond_size, channels, depths, attention)
        self.act_emb = nn.Embedding(actions, cond_size)
        side = math.ceil(image_size / 2 ** (len(channels) - 1))
        self.lstm = nn.LSTM(channels[-1] * side * side, lstm_size, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(lstm_size, lstm_size), nn.SiLU(), nn.Linear(lstm_size, REWARDS + ENDS, bias=False)
        )
        init_lstm(self.lstm)

    def forward(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, state: State | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Logits of the reward classes -1, 0, 1 [B, T, 3] and of going on and ending [B, T, 2]; the state after.

        action [B, T]; the state before the first transition is zero if none is given.
        """
        batch, time = action.shape
        pair = torch.cat([obs, next_obs], dim=2).flatten(0, 1)
        x = self.encoder(pair, self.act_emb(action.flatten()))
        x, after = self.lstm(x.flatten(1).unflatten(0, (batch, time)), state)
        logits = self.head(x)
        return logits[..., :REWARDS], logits[..., REWARDS:], after

    def losses(self, batch: Play) -> dict[str, Tensor]:
        """Cross entropies in nats of reward sign and end, means over the transitions that start at a real frame.

        Where a transition ends the episode, the frame behind it is the true last one instead of padding; after a
        time limit the padding stays, as in the reference code. Source: paper, Appendix B.
        """
        is_last = (batch.end[:, :-1] == 1) & batch.has_final[:, None]
        following = torch.where(is_last[:, :, None, None, None], batch.final_obs[:, None], batch.obs[:, 1:])
        reward, end, _ = self(batch.obs[:, :-1], batch.action[:, :-1], following)
        is_real, count = batch.is_real[:, :-1], batch.count[:-1].sum()
        targets = {"reward": batch.reward[:, :-1].sign().long() + 1, "end": batch.end[:, :-1].long()}
        losses = {}
        for (name, target), logits in zip(targets.items(), (reward, end), strict=True):
            error = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
            losses[name] = mean_of_real(error, is_real, count)
        return losses

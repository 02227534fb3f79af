"""M: the MDN-RNN of the paper, its losses, and sampling from it with a temperature.

This is the form to read. Training calculates `sequence_losses` and its gradients in the order that a processor likes
(memory_fast.py), dreams of a whole population step as in dream_fast.py; tests hold both to what stands here.

Shapes: B batch, T time, Z latent size, A action size, H hidden size, K mixtures; latents [B, T, Z].
Every latent dimension has a mixture of its own, with its own weights. The output vector holds, after the restart logit
(Doom only), Z rows of K logits, K means and K log standard deviations.
Source: paper, appendix A.2; reference code: rnn/rnn.py (CarRacing), doomrnn.py (Doom).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class State:
    """The LSTM state: c, h [B, H]."""

    c: Tensor
    h: Tensor


@dataclass(frozen=True)
class Prediction:
    """What M says of the next step. Leading shape [...] is [B] or [B, T].

    logmix, mean, logstd [..., Z, K]: logmix is normalised over K; logstd is unbounded.
    restart_logit [...]: the next frame begins an episode, so this one was the last; None without that output.
    """

    logmix: Tensor
    mean: Tensor
    logstd: Tensor
    restart_logit: Tensor | None


class MDNRNN(nn.Module):
    """LSTM and mixture density output.

    422,368 parameters for CarRacing (Z 32, A 3, H 256, no restart), 1,678,785 for Doom (Z 64, A 1, H 512, restart).
    kernel [(inputs + H), 4H] holds the blocks i (input gate), j (candidate), f (forget gate), o (output gate); one is
    added to f at run time, not in the stored bias.
    """

    def __init__(
        self, z_size: int, action_size: int, hidden_size: int, mixtures: int, *, predicts_restart: bool
    ) -> None:
        super().__init__()
        self.z_size, self.hidden_size, self.mixtures = z_size, hidden_size, mixtures
        self.predicts_restart = predicts_restart
        self.input_size = z_size + action_size + int(predicts_restart)
        outputs = 3 * z_size * mixtures + int(predicts_restart)
        self.kernel = nn.Parameter(torch.empty(self.input_size + hidden_size, 4 * hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.output_w = nn.Parameter(torch.empty(hidden_size, outputs))
        self.output_b = nn.Parameter(torch.empty(outputs))
        for parameter in self.parameters():  # glorot uniform, the biases of M included: TensorFlow's get_variable
            fan_in, fan_out = parameter.shape[0], parameter.shape[-1]
            nn.init.uniform_(parameter, -math.sqrt(6 / (fan_in + fan_out)), math.sqrt(6 / (fan_in + fan_out)))

    def initial_state(self, batch: int) -> State:
        zeros = self.bias.new_zeros(batch, self.hidden_size)
        return State(zeros, zeros)

    def inputs(self, z: Tensor, action: Tensor, restart: Tensor | None) -> Tensor:
        """[z, a, restart] along the last axis: z [..., Z], action [..., A], restart [...] in {0, 1}."""
        if self.predicts_restart != (restart is not None):
            raise ValueError("restart: needed exactly where M predicts it")
        parts = [z, action] if restart is None else [z, action, restart[..., None]]
        x = torch.cat(parts, dim=-1)
        if x.shape[-1] != self.input_size:
            raise ValueError(f"inputs: expected {self.input_size} numbers a step, got {x.shape[-1]}")
        return x

    def cell(self, gates: Tensor, c: Tensor) -> State:
        """c' = c sigmoid(f + 1) + sigmoid(i) tanh(j); h' = tanh(c') sigmoid(o). gates [B, 4H], c [B, H]."""
        i, j, f, o = gates.chunk(4, dim=1)
        c = c * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(j)
        return State(c, torch.tanh(c) * torch.sigmoid(o))

    def step(self, z: Tensor, action: Tensor, restart: Tensor | None, state: State) -> State:
        """Advance by one step: z [B, Z], action [B, A], restart [B]. Where restart is 1 the state is zeroed first.

        The flag itself is an input only where M predicts it.
        """
        c, h = state.c, state.h
        if restart is not None:
            keep = (restart <= 0.5).to(c.dtype)[:, None]
            c, h = c * keep, h * keep
        x = torch.cat([self.inputs(z, action, restart if self.predicts_restart else None), h], dim=1)
        return self.cell(torch.addmm(self.bias, x, self.kernel), c)

    def unroll_teacher_forced(
        self, z: Tensor, action: Tensor, restart: Tensor | None, state: State
    ) -> tuple[Tensor, State]:
        """Feed recorded steps: z [B, T, Z], action [B, T, A], restart [B, T]. Returns h [B, T, H], last state."""
        n = self.input_size
        # The inputs of all steps meet their part of the kernel in one product; only h is sequential.
        inputs = self.inputs(z, action, restart if self.predicts_restart else None)
        x = torch.matmul(inputs, self.kernel[:n]) + self.bias  # [B, T, 4H]
        recurrent, c, h = self.kernel[n:], state.c, state.h
        keep = None if restart is None else (restart <= 0.5).to(z.dtype)[..., None]  # [B, T, 1]
        hs = []
        for t, x_t in enumerate(x.unbind(1)):
            if keep is not None:
                c, h = c * keep[:, t], h * keep[:, t]
            state = self.cell(torch.addmm(x_t, h, recurrent), c)
            c, h = state.c, state.h
            hs.append(h)
        return torch.stack(hs, dim=1), state

    def predict(self, h: Tensor) -> Prediction:
        """h [..., H] -> the mixtures of the next latent and the restart logit."""
        out = torch.matmul(h, self.output_w) + self.output_b
        restart_logit = out[..., 0] if self.predicts_restart else None
        rows = out[..., int(self.predicts_restart) :].unflatten(-1, (self.z_size, 3 * self.mixtures))
        logits, mean, logstd = rows.split(self.mixtures, dim=-1)
        return Prediction(logits - logits.logsumexp(-1, keepdim=True), mean, logstd, restart_logit)


def mdn_nll(prediction: Prediction, target: Tensor) -> Tensor:
    """-mean logsumexp_k(logmix_k + log N(z; mean_k, exp(logstd_k))) over batch, time AND latent dimensions, in nats.

    target [..., Z]. An unused latent contributes 1/2 log(2 pi e) = 1.419; values below zero are possible. Scalar.
    Source: paper, appendix A.2 (Graves 2013, Eq. 26, one mixture per dimension).
    """
    deviation = (target[..., None] - prediction.mean) * torch.exp(-prediction.logstd)
    log_normal = -0.5 * deviation.square() - prediction.logstd - 0.5 * math.log(2 * math.pi)
    return -(prediction.logmix + log_normal).logsumexp(-1).mean()


def restart_loss(restart_logit: Tensor, restart: Tensor, weight: float) -> Tensor:
    """mean w * binary cross-entropy in nats, w = `weight` where the target is 1, else 1. Both [...]. Scalar.

    restart may be of any dtype.

    Source: reference code, doomrnn.py.
    """
    restart = restart.to(restart_logit.dtype)
    bce = F.binary_cross_entropy_with_logits(restart_logit, restart, reduction="none")
    return (bce * (1 + restart * (weight - 1))).mean()


def sequence_losses(
    memory: MDNRNN, z: Tensor, action: Tensor, restart: Tensor, state: State, restart_weight: float
) -> tuple[dict[str, Tensor], State]:
    """The losses of M on T + 1 recorded frames, i.e. T steps, from `state`: the next latent, and for Doom the restart.

    z [B, T + 1, Z], action [B, T + 1, A], restart [B, T + 1]: 1 on the first frame of an episode. M is trained on the
    sum of both. The target across the border of two episodes is the first frame of the next one and is not masked, as
    in the official code; the last frame is only ever a target.
    Returns "z_nll" and "restart" (where M predicts it) in nats, and the state after the last step.
    Source: paper, appendix A.2; reference code: rnn.py, doomrnn.py.
    """
    h, state = memory.unroll_teacher_forced(z[:, :-1], action[:, :-1], restart[:, :-1], state)
    prediction = memory.predict(h)
    losses = {"z_nll": mdn_nll(prediction, z[:, 1:])}
    if prediction.restart_logit is not None:
        losses["restart"] = restart_loss(prediction.restart_logit, restart[:, 1:], restart_weight)
    return losses, state


def sample_next_z(prediction: Prediction, temperature: float, uniform: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """z' ~ M at temperature tau: mixture index from softmax(logmix / tau), noise times sqrt(tau).

    uniform, normal [..., Z] are the random numbers: the index is the first k whose cumulative probability reaches
    `uniform`. logstd is not tempered. Returns z' and the index, both [..., Z].
    Source: paper, section 2.2 and appendix; reference code: doomrnn.py.
    """
    # Deviation D5: the official code subtracts one maximum over all latents, which can leave 0 / 0 in a row.
    cumulative = torch.softmax(prediction.logmix / temperature, dim=-1).cumsum(-1)
    index = (cumulative[..., :-1] < uniform[..., None]).sum(-1, keepdim=True)  # the last k takes what is left
    mean, logstd = prediction.mean.gather(-1, index), prediction.logstd.gather(-1, index)
    z = mean.squeeze(-1) + logstd.squeeze(-1).exp() * normal * math.sqrt(temperature)
    return z, index.squeeze(-1)

"""World model, actor, critic and slow critic put together: acting, and every loss of one update.

Shapes: B batch, T time, H imagination length, N = B * T starts, A action size, S stoch.
Source: paper, Methods; reference code: agent.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common import checkpoint, dist
from common.config import user_error
from common.precision import compute_dtype
from dreamerv3 import imagination_fast, layers_fast
from dreamerv3.actor_critic import (
    CRITIC_LAYERS,
    Actor,
    Imagined,
    ReturnNorm,
    actor_loss,
    imagine,
    lambda_return,
    move_slow_critic,
)
from dreamerv3.config import EDITIONS, SIZES, Config
from dreamerv3.distributions import two_hot_losses
from dreamerv3.env import Worlds
from dreamerv3.replay import Batch
from dreamerv3.rssm import State
from dreamerv3.spaces import ActionSpace, Edition, ObsSpaces, Sizes
from dreamerv3.world_model import Observed, TwoHotHead, WorldModel, scalar_head

STAGE = "train"  # the one loop: everything is trained at once


@dataclass(frozen=True)
class Noise:
    """All random numbers of one update: uniform posterior [B, T, S] and prior [H, N, S]; action [H + 1, N, .].

    The action's are uniform [.., 1] for discrete and standard normal [.., A] for continuous actions.
    """

    posterior: Tensor
    prior: Tensor
    action: Tensor


@dataclass(frozen=True)
class Outcome:
    """Losses by name, unscaled, [B, T] or [B, T - 1] each, and what else one update leaves.

    states: posterior, [B, T, ...], the latents to be stored. metrics: numbers for the log.
    """

    losses: dict[str, Tensor]
    states: State
    metrics: dict[str, Tensor]


class Agent(nn.Module):
    """The agent for one world, `sizes` and `edition` of its networks.

    `updates` counts the updates of the slow critic.
    """

    updates: Tensor

    def __init__(self, spaces: ObsSpaces, actions: ActionSpace, sizes: Sizes, edition: Edition, config: Config) -> None:
        super().__init__()
        self.config, self.edition, self.actions = config, edition, actions
        self.world = WorldModel(
            spaces,
            actions,
            sizes,
            edition,
            bins=config.bins,
            unimix=config.unimix,
            free_nats=config.free_nats,
            horizon=config.horizon,
            use_fast=config.use_fast,
            use_symlog=config.use_symlog,
            use_two_hot=config.use_two_hot,
        )
        self.actor = Actor(sizes, actions, config.actor_unimix)
        self.critic = scalar_head(sizes, CRITIC_LAYERS, config.bins, edition.has_even_outputs, config.use_two_hot)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_norm = ReturnNorm(config.return_percentiles, config.return_rate, config.return_limit)
        self.register_buffer("updates", torch.zeros(()))
        if config.use_fast:
            layers_fast.use_in(self)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser moves: everything but the slow critic."""
        return [p for p in self.parameters() if p.requires_grad]

    def parameter_counts(self) -> dict[str, int]:
        """Parameters per module, as the tables of the reference code have them; the slow critic is not counted."""
        modules = {
            "encoder": self.world.encoder,
            "rssm": self.world.rssm,
            "decoder": self.world.decoder,
            "reward": self.world.reward,
            "continue": self.world.cont,
            "actor": self.actor,
            "critic": self.critic,
        }
        return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}

    def draw_noise(self, batch: int, length: int, generator: torch.Generator) -> Noise:
        """Fresh numbers for an update on B x T steps, from `generator` and on its device."""
        device, starts, horizon = generator.device, batch * length, self.config.imagination_length
        stoch = self.world.rssm.sizes.stoch
        draw = torch.rand if self.actions.is_discrete else torch.randn
        return Noise(
            torch.rand(batch, length, stoch, generator=generator, device=device),
            torch.rand(horizon, starts, stoch, generator=generator, device=device),
            draw(horizon + 1, starts, self.actor.noise_size, generator=generator, device=device),
        )

    def draw_act_noise(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fresh numbers for `act` on N = `count` worlds: uniform [N, S] and what the policy takes [N, .]."""
        draw = torch.rand if self.actions.is_discrete else torch.randn
        uniform = torch.rand(count, self.world.rssm.sizes.stoch, generator=generator)
        return uniform, draw(count, self.actor.noise_size, generator=generator)

    @torch.no_grad()
    def act(
        self,
        state: State,
        prev_action: Tensor,
        obs: dict[str, Tensor],
        is_first: Tensor,
        uniform: Tensor,
        action_noise: Tensor,
    ) -> tuple[State, Tensor]:
        """The next actions [N] or [N, A] and the posterior state [N, ...] they were drawn from.

        prev_action as `act` gave it, is_first [N] bool, uniform [N, S], action_noise [N, .]. The policy always samples.
        """
        token = self.world.encoder(obs)
        vector = self.world.action_vector(prev_action)
        state, _ = self.world.rssm.observe_step(state, vector, token, is_first, uniform)
        return state, self.actor(state.feature).sample(action_noise)

    def losses(self, batch: Batch, noise: Noise, ranks: dist.Ranks) -> Outcome:
        """Every loss of one update. The gradient of the actor's and the critic's losses on imagined states stays with
        them; that of the critic's loss on replayed states goes into the world model. The return normaliser is moved.
        """
        observed = self.world.observe(batch, noise.posterior)
        losses = self.world.losses(batch, observed)
        starts = State(observed.states.h.detach().flatten(0, 1), observed.states.z.detach().flatten(0, 1))
        imagined = self.imagine(starts, noise)
        behaviour, returns, metrics = self.behaviour_losses(imagined, batch, ranks)
        losses |= {name: value.mean(0).view(batch.reward.shape) for name, value in behaviour.items()}
        losses["replay_critic"] = self.replay_critic_loss(batch, observed, returns[0].view(batch.reward.shape))
        return Outcome(losses, observed.states.detach(), metrics)

    def imagine(self, starts: State, noise: Noise) -> Imagined:
        """A rollout of the actor in the model from starts [N, ...]."""
        inputs = (self.world.rssm, self.actor, starts, noise.action, noise.prior)
        if self.config.use_fast:
            is_double = starts.h.dtype == torch.float64
            dtype = starts.h.dtype if is_double else compute_dtype(self.config.precision, starts.h.device)
            return imagination_fast.imagine(*inputs, dtype)
        return imagine(*inputs)

    def behaviour_losses(
        self, imagined: Imagined, batch: Batch, ranks: dist.Ranks
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Actor and critic losses [H, N] on imagined states, the λ-returns [H, N], and numbers for the log."""
        feature = imagined.feature
        with torch.no_grad():
            reward, cont = self.world.predict(feature)
            if self.edition.starts_from_true_continue:
                # Without the discount: a start at the end of an episode has weight 0 in all of its rollout.
                cont = torch.cat([(~batch.is_terminal).to(cont.dtype).view(1, -1), cont[1:]])
            weight = cont.cumprod(0)[:-1]
            slow = self.slow_critic.mean(self.slow_critic(feature[:-1]))
        logits = self.critic(feature)
        value = self.critic.mean(logits.detach())
        returns = lambda_return(reward, cont, torch.zeros_like(cont), value, self.config.lam)
        offset, scale = self.return_norm.update(gathered(returns, ranks))
        advantage = (returns - value[:-1]) / scale
        policy = self.actor(feature[:-1])
        losses = {
            "actor": actor_loss(policy, imagined.actions[:-1], advantage, weight, self.config.entropy_scale),
            "critic": weight * self.critic_loss(logits[:-1], returns, slow),
        }
        metrics = {"imagined_return": returns.mean(), "return_scale": scale, "return_offset": offset}
        metrics |= {"entropy": policy.entropy().mean(), "value": value.mean(), "imagined_reward": reward[1:].mean()}
        return losses, returns, {name: value.detach() for name, value in metrics.items()}

    def critic_loss(self, logits: Tensor, target: Tensor, slow: Tensor) -> Tensor:
        """Two-hot loss towards the return and, as a regulariser, towards the slow critic: logits [..., n] -> [...]."""
        if self.config.use_fast and isinstance(self.critic, TwoHotHead):
            return two_hot_losses(logits, [target, slow], [1.0, self.config.slow_regulariser], self.critic.bins)
        loss = self.critic.loss(logits, target)
        return loss + self.config.slow_regulariser * self.critic.loss(logits, slow)

    def replay_critic_loss(self, batch: Batch, observed: Observed, boot: Tensor) -> Tensor:
        """The critic's loss [B, T - 1] on the replayed rewards, with gradient into the world model.

        boot [B, T]: the return of the imagination begun at each step. Source: paper, "critic learning" on replay.
        """
        feature = observed.states.feature
        cont = (~batch.is_terminal).to(boot.dtype) * self.world.discount
        returns = lambda_return(batch.reward.t(), cont.t(), batch.is_last.t(), boot.t(), self.config.lam).t()
        logits = self.critic(feature)[:, :-1]
        with torch.no_grad():
            slow = self.slow_critic.mean(self.slow_critic(feature[:, :-1]))
        return (~batch.is_last[:, :-1]).to(boot.dtype) * self.critic_loss(logits, returns, slow)

    def after_update(self) -> None:
        """Let the slow critic follow."""
        move_slow_critic(self.slow_critic, self.critic, self.config.slow_rate, self.updates)


def seen(rows: Mapping[str, NDArray[Any]], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """What `Agent.act` sees of one step of W worlds: observations [W, ...] by name, and is_first [W]."""
    obs = {name.removeprefix("obs/"): torch.from_numpy(rows[name]).to(device) for name in rows if "obs/" in name}
    return obs, torch.from_numpy(rows["is_first"]).to(device)


def new_agent(spaces: ObsSpaces, actions: ActionSpace, config: Config) -> Agent:
    """An agent for a world, at the edition and size of the config."""
    return Agent(spaces, actions, SIZES[config.plan.size], EDITIONS[config.edition], config)


def refuse(folder: Path, error: ValueError) -> NoReturn:
    """One line and exit code 2 for a checkpoint that does not fit; `error` lists every difference."""
    faults = str(error).split("; ")
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    user_error(f"{folder}: the checkpoint is of another size or world: {faults[0]}{more}")


def gathered(returns: Tensor, ranks: dist.Ranks) -> Tensor:
    """The returns [H, N] of every rank, so that all normalise by the percentiles of the whole batch."""
    if ranks.world_size == 1:
        return returns
    return dist.gather_rows(returns.t().contiguous(), returns.shape[1] * ranks.world_size, ranks)


def load_agent(
    info: Mapping[str, Any], config: Config, worlds: Worlds, device: torch.device, *, is_final: bool = True
) -> tuple[Agent, int, int]:
    """The agent of a run, the steps that each world had taken then, and its updates.

    One line and exit code 2 if the run has not ended, or without is_final if it has no checkpoint yet.
    """
    folder, identity = info["folder"], info["meta"]["identity"]
    if is_final:
        found = checkpoint.load_final(folder / STAGE, config.plan.steps, device, identity)
    else:
        newest = checkpoint.load_latest(folder / STAGE, device, identity)
        found = newest or user_error(f"{folder} has no checkpoint yet")
    agent = new_agent(worlds.spaces, worlds.actions, config).to(device)
    try:
        checkpoint.load_module("agent", agent, found.tensors)
    except ValueError as error:
        refuse(folder, error)
    return agent.eval(), found.step, int(found.state["state"]["updates"])

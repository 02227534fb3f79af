"""Imagined play for throughput: what the policy and all games do in a step is one program, on a GPU a CUDA graph.

The mathematics to read is in imagination.py and actor_critic.py; tests show that both agree. What differs: a step of
the play has no gradient, so that it can be recorded, and the policy's gradient is taken afterwards over all frames of
the play at once; networks are compiled, and their products may be bfloat16.

N environments, L frames of history, T steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import eager
from diamond.actor_critic import ActorCritic, Outcome, Rollout, State, reset_where_dead, value_ahead
from diamond.agent import Agent
from diamond.config import Config
from diamond.denoiser import Denoiser, Segments, draw_normals
from diamond.imagination import Imagination, Numbers, pick, predict

WARM_UPS = 3  # steps before a CUDA graph is captured


@dataclass
class Inputs:
    """All that a step reads: obs [N, L, 3, H, W], action [N, L], the recurrent states of R and of the policy [N, ...],
    and random numbers: start [N, 3, H, W] normal, act, reward and end [N] uniform."""

    obs: Tensor
    action: Tensor
    h: Tensor
    c: Tensor
    policy_h: Tensor
    policy_c: Tensor
    act: Tensor
    start: Tensor
    reward: Tensor
    end: Tensor


@dataclass
class Outputs:
    """What comes of it: the action taken, reward and end [N], frame [N, 3, H, W], and the recurrent states after."""

    action: Tensor
    frame: Tensor
    reward: Tensor
    end: Tensor
    h: Tensor
    c: Tensor
    policy_h: Tensor
    policy_c: Tensor


def parts_of(bundle: Inputs | Outputs) -> list[Tensor]:
    """All tensors of a bundle, in the order of its fields."""
    return [getattr(bundle, field.name) for field in dataclasses.fields(bundle)]


@torch.no_grad()
def act_and_predict(agent: Agent, config: Config, given: Inputs) -> Outputs:
    """The policy acts in every game, and the world model answers.

    With `precision` bfloat16 the products of the world model are made in it on a GPU; the policy's stay float32, since
    they are what its gradient is taken of.
    """
    logits, _, (policy_h, policy_c) = agent.actor_critic(given.obs[:, -1], (given.policy_h, given.policy_c))
    taken = pick(logits, given.act)
    action = torch.cat([given.action[:, :-1], taken[:, None]], dim=1)
    numbers = Numbers(given.start, given.reward, given.end)
    half = config.precision == "bfloat16"
    with torch.autocast(given.obs.device.type, dtype=torch.bfloat16, enabled=half):
        found = predict(agent, config, given.obs, action, (given.h, given.c), numbers)
    states = found.h.float(), found.c.float(), policy_h, policy_c
    return Outputs(taken, found.frame.float(), found.reward.float(), found.end, *states)


class Program:
    """`act_and_predict` for one number of games; on a GPU recorded once as a CUDA graph and replayed.

    A graph works on fixed memory: what is given is copied into that of the first call, what comes out is overwritten by
    the next. Where it cannot be recorded, all steps are made as they are written. Not yet run on a GPU.
    """

    def __init__(self, agent: Agent, config: Config, device: torch.device) -> None:
        self.agent, self.config, self.captures = agent, config, device.type == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Inputs | None = None
        self.outputs: Outputs | None = None

    @property
    def is_captured(self) -> bool:
        """Whether steps are replays."""
        return self.graph is not None

    def __call__(self, given: Inputs) -> Outputs:
        """One step; valid until the next."""
        if self.captures and self.graph is None:
            self._capture(given)
        if self.graph is None:
            return act_and_predict(self.agent, self.config, given)
        assert self.inputs is not None
        assert self.outputs is not None
        for ours, theirs in zip(parts_of(self.inputs), parts_of(given), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.graph.replay()
        return self.outputs

    def _capture(self, given: Inputs) -> None:
        """Record a step, which changes none of its inputs, so that nothing of it counts."""
        inputs = Inputs(*(part.clone() for part in parts_of(given)))

        def record() -> tuple[torch.cuda.CUDAGraph, Outputs]:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # so that kernels are chosen and compiled before the capture
                for _ in range(WARM_UPS):
                    act_and_predict(self.agent, self.config, inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = act_and_predict(self.agent, self.config, inputs)
            return graph, outputs

        found = eager.captured("the imagination", record)
        if found is None:
            self.captures = False
        else:
            self.inputs, (self.graph, self.outputs) = inputs, found


def can_run(agent: Agent, config: Config) -> bool:
    """Whether a step draws no random numbers but those that it is given."""
    return isinstance(agent.denoiser, Denoiser) and config.s_churn == 0


def rollout(program: Program, dream: Imagination, state: State, steps: int) -> tuple[Rollout, Tensor, State]:
    """As `actor_critic.rollout` in the dream, whose draws the actions are of too."""
    policy = program.agent.actor_critic
    start, frames, actions, outcomes = state, [], [], []
    for _ in range(steps):
        act = dream.draws.uniform()
        numbers = dream.numbers()
        given = Inputs(
            dream.obs, dream.action, dream.h, dream.c, *state, act, numbers.start, numbers.reward, numbers.end
        )
        found = program(given)
        frames.append(dream.obs[:, -1])
        actions.append(found.action.clone())
        dream.action[:, -1] = found.action
        dream.h, dream.c = found.h.clone(), found.c.clone()
        state = found.policy_h.clone(), found.policy_c.clone()
        outcome = dream.advance(found.frame.clone(), found.reward.clone(), found.end.clone())
        if len(outcome.dead):
            with torch.no_grad():
                state = reset_where_dead(policy, state, outcome)
        outcomes.append(outcome)
    # Deviation D7: the reference code keeps the gradient of the pass that acted.
    return evaluated(policy, frames, start, actions, outcomes)


def evaluated(
    policy: ActorCritic, frames: Sequence[Tensor], state: State, actions: Sequence[Tensor], outcomes: Sequence[Outcome]
) -> tuple[Rollout, Tensor, State]:
    """Logits and values of a play, with gradient: T frames [N, 3, H, W] and actions [N], and what came of each.

    The encoder sees all frames at once, only the recurrence goes step by step.
    """
    features = policy.encoder(torch.cat(list(frames))).flatten(1).unflatten(0, (len(frames), -1))
    seen: list[Tensor] = []
    endings: list[Tensor] = []
    for feature, outcome in zip(features, outcomes, strict=True):
        state = policy.lstm(feature, state)
        seen.append(state[0])
        ended = feature.new_zeros(0)
        if len(outcome.dead):
            before = (state[0][outcome.dead], state[1][outcome.dead])
            with torch.no_grad():
                ended = policy(outcome.final_obs, before)[1]
            state = reset_where_dead(policy, state, outcome)
        endings.append(ended)
    hidden = torch.stack(seen, 1)
    value = policy.critic_linear(hidden).squeeze(-1)
    with torch.no_grad():
        last = policy(outcomes[-1].obs, state)[1]
    following = [*value.unbind(1)[1:], last]
    play = Rollout(
        logits=policy.actor_linear(hidden),
        value=value,
        bootstrap=torch.stack([value_ahead(*parts) for parts in zip(following, outcomes, endings, strict=True)], 1),
        action=torch.stack(list(actions), 1),
        reward=torch.stack([outcome.reward for outcome in outcomes], 1),
        end=torch.stack([outcome.end for outcome in outcomes], 1),
        trunc=torch.stack([outcome.trunc for outcome in outcomes], 1),
    )
    return play, outcomes[-1].obs, (state[0].detach(), state[1].detach())


def compile_networks(agent: Agent, config: Config, games: int, device: torch.device) -> bool:
    """Compile the convolutions of both imagined networks in place, and try them, with gradients and without.

    Where that fails, both run as they are written, and False comes back.
    """
    inner, encoder = agent.denoiser.inner_model, agent.reward_end.encoder
    random = torch.Generator(device).manual_seed(0)

    def blank(length: int) -> tuple[Tensor, Tensor]:
        """Frames and actions of so many steps."""
        obs = torch.zeros(games, length, 3, config.image_size, config.image_size, device=device)
        return obs, torch.zeros(games, length, dtype=torch.int64, device=device)

    def compile_and_try() -> bool:
        for network in (inner, encoder):
            network.compile()
        # What training and the imagination call, down to the strides: a form that they do not have is compiled in vain.
        terms = config.extra_terms + 1 if config.diffusion == "edm" else 1
        obs, action = blank(config.history + terms)
        normals = draw_normals(games, obs.shape[2:], terms, random)
        loss = agent.denoiser.loss(Segments(obs, action, action == 0, obs.new_ones(obs.shape[1])), normals)
        obs, action = blank(config.history + config.horizon)
        rewards, ends, _ = agent.reward_end(obs[:, :-1], action[:, :-1], obs[:, 1:])
        (loss + rewards.sum() + ends.sum()).backward()
        obs, action = blank(config.history)
        nought, state = obs.new_zeros(games), obs.new_zeros(games, config.reward_lstm)
        numbers = Numbers(obs[:, 0].clone(), nought, nought, random)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            predict(agent, config, obs, action, (state, state), numbers)
        return True

    is_compiled = bool(eager.captured("the networks", compile_and_try))
    if not is_compiled:
        for network in (inner, encoder):
            network._compiled_call_impl = None
    agent.zero_grad(set_to_none=True)
    return is_compiled

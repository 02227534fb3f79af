"""The three networks of a run: how they are built from a config, and read from a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from common import checkpoint
from common.config import user_error
from diamond.actor_critic import ActorCritic
from diamond.config import Config
from diamond.ddpm import DDPM
from diamond.denoiser import Denoiser, InnerModel
from diamond.reward_end import RewardEndModel

STAGE = "train"
PARTS = ("denoiser", "reward_end", "actor_critic")  # in the order of an epoch


class Agent(nn.Module):
    """Denoiser, reward and end model, and policy; each is trained alone."""

    def __init__(self, denoiser: Denoiser | DDPM, reward_end: RewardEndModel, actor_critic: ActorCritic) -> None:
        super().__init__()
        self.denoiser, self.reward_end, self.actor_critic = denoiser, reward_end, actor_critic

    def parameter_counts(self) -> dict[str, int]:
        """Trained numbers of each network."""
        return {part: sum(p.numel() for p in getattr(self, part).parameters()) for part in PARTS}


def new_agent(config: Config, actions: int) -> Agent:
    """Three untrained networks for a game of so many actions."""
    channels, depths = config.denoiser_channels, config.denoiser_depths
    # Nothing but the blocks in the middle has attention.
    inner = InnerModel(actions, config.denoiser_cond, channels, depths, [False] * len(channels), config.history)
    denoiser = Denoiser(inner, config.law, config.history) if config.diffusion == "edm" else DDPM(inner, config.history)
    reward_end = RewardEndModel(
        actions,
        config.reward_cond,
        config.reward_channels,
        config.reward_depths,
        [False] * len(config.reward_channels),
        config.reward_lstm,
        config.image_size,
    )
    halves = [True] * len(config.policy_channels)
    policy = ActorCritic(actions, config.policy_channels, halves, config.policy_lstm, config.image_size)
    # With the channels behind, convolutions are faster, and queries and keys of the attention lie in one piece.
    return Agent(denoiser, reward_end, policy).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def check_sizes(config: Config, actions: int) -> None:
    """Raises ValueError in one line if networks of these sizes cannot be made, or cannot take a frame."""
    length = config.history
    obs = torch.zeros(1, length + 1, 3, config.image_size, config.image_size)
    action = torch.zeros(1, length, dtype=torch.int64)
    try:
        agent = new_agent(config, actions)
        agent.denoiser.inner_model(obs[:, 0], torch.zeros(1), obs[:, 1:].flatten(1, 2), action)
        agent.reward_end(obs[:, :-1], action, obs[:, 1:])
        agent.actor_critic(obs[:, 0], agent.actor_critic.initial_state(1))
    except (RuntimeError, ValueError) as error:  # RuntimeError: heads of an attention that do not divide
        raise ValueError(f"networks of these sizes cannot be made: {' '.join(str(error).split())}") from None


def load_agent(info: Mapping[str, Any], config: Config, actions: int, device: torch.device) -> tuple[Agent, Any]:
    """The agent of a finished run and the state of its checkpoint; one line and exit code 2 if it has not ended."""
    folder = info["folder"]
    found = checkpoint.load_latest(folder / STAGE, device, info["meta"]["identity"])
    if found is None or not found.state["state"]["is_finished"]:
        user_error(f"{folder}: its training has not ended; the same train command goes on from there")
    agent = new_agent(config, actions).to(device)
    try:
        checkpoint.load_module("agent", agent, found.tensors)
    except ValueError as error:
        refuse(folder, error)
    return agent.eval(), found.state["state"]


def refuse(folder: Path, error: ValueError) -> NoReturn:
    """One line and exit code 2: the checkpoint is of other networks."""
    user_error(f"{folder} was made by another version of this program or for a game of other actions: {error}")

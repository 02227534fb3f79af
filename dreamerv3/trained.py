"""The agent of a run folder, for whoever tests, films or watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from common import checkpoint
from common.config import user_error
from dreamerv3.agent import STAGE, Agent, new_agent, refuse
from dreamerv3.config import Config
from dreamerv3.env import Worlds


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

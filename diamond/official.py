"""Official checkpoints: reading the published Atari models into our networks.

Parameter names are ours too, behind the prefix of their network. Every one of them is asked for, and nothing may be
left over. Source: reference code: agent.py, trainer.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.files import check_is_file
from diamond.agent import Agent

# Our network and the prefix of its names in a file.
PREFIXES = {"denoiser": "denoiser.", "reward_end": "rew_end_model.", "actor_critic": "actor_critic."}


def official_names(agent: Agent) -> dict[str, tuple[str, str]]:
    """The names that a file must have, each with our network and our name."""
    return {
        prefix + name: (part, name) for part, prefix in PREFIXES.items() for name in getattr(agent, part).state_dict()
    }


def load(path: Path, agent: Agent) -> None:
    """Copies an official file, .safetensors or .pt, into the networks once every name and size is checked.

    Nothing is unpickled but tensors. Raises ValueError in one line for a file that is none, or of other sizes; one of
    another set of actions is named as such.
    """
    given = _read(path)
    names = official_names(agent)
    missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
    if missing or unknown:
        raise ValueError(f"init_from: {path} lacks {_some(missing)}, and has {_some(unknown)} besides")
    states: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES}
    for official, (part, name) in names.items():
        states[part][name] = given[official]
    wanted = agent.actor_critic.actor_linear.out_features
    actions = len(states["actor_critic"]["actor_linear.weight"])
    if actions != wanted:
        raise ValueError(f"init_from: {path} is of a game with {actions} actions, this one has {wanted}")
    for part, state in states.items():
        for name, tensor in getattr(agent, part).state_dict().items():
            if state[name].shape != tensor.shape:
                found = f"{list(state[name].shape)}, here {list(tensor.shape)}"
                raise ValueError(f"init_from: {path}: {PREFIXES[part]}{name} is {found}")
    for part, state in states.items():
        getattr(agent, part).load_state_dict(state, strict=True)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        check_is_file(path)
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"init_from: {path}: {error.strerror or 'there is no such file'}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"init_from: {path} is no checkpoint ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"init_from: {path} holds no table of tensors")
    return content


def _some(names: list[str]) -> str:
    """At most three names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"

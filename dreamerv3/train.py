from torch import Tensor

from dreamerv3.config import Config


def scales(config: Config) -> dict[str, float]:
    """The weight of every loss; a name stands for all losses that begin with it and a slash."""
    ones = dict.fromkeys(("rec", "reward", "cont", "actor", "critic"), 1.0)
    return ones | {"dyn": config.dyn_scale, "rep": config.rep_scale, "replay_critic": config.replay_critic_scale}


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    names = {name.split("/")[0] for name in losses}
    if names != set(weights):
        raise ValueError(f"losses {sorted(names)} do not match weights {sorted(weights)}")
    return sum((weights[name.split("/")[0]] * loss.mean() for name, loss in losses.items()))

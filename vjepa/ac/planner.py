"""Planning by sampling: the cross-entropy method (CEM) and model predictive path integrals (MPPI).

A plan minimises a cost that a world model gives to sequences of actions. Shapes: E episodes, S samples, H steps of the
horizon, A numbers of an action. All episodes are planned at once; nothing here mixes them.
Source: V-JEPA 2, section 3.2 and appendix B.2, reference code: notebooks/utils/mpc_utils.py; MPPI and CEM of Two Rooms:
facebookresearch/eb_jepa: eb_jepa/planning.py; CEM of Wall and PointMaze: DINO-WM, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.seeding import derive_seed

Cost = Callable[[Tensor], Tensor]  # actions [E, S, H, A] -> costs [E, S]
Noise = Callable[[int], Tensor]  # iteration -> [E, S, H, A] of a standard normal
Bound = Callable[[Tensor], Tensor]  # actions [E, S, H, A] -> those that are allowed, [E, S, H, A]

NORM_EPS = 1e-6
GRIPPER_MOST, GRIPPER_LEAST = 0.75, 0.25  # of what is sampled; of what is done


@dataclass(frozen=True)
class Plan:
    """actions [E, H, A]; mean and std of the last iteration [E, H, A]; costs [I, E, S] of every iteration."""

    actions: Tensor
    mean: Tensor
    std: Tensor
    costs: Tensor


def anywhere(actions: Tensor) -> Tensor:
    """No bound."""
    return actions


def within_norm(most: float) -> Bound:
    """Actions longer than `most` are shortened to it."""

    def bound(actions: Tensor) -> Tensor:
        norms = actions.norm(dim=-1, keepdim=True)
        return actions * (norms.clamp(max=most) / (norms + NORM_EPS))

    return bound


def cem(
    cost: Cost,
    noise: Noise,
    mean: Tensor,
    std: Tensor,
    *,
    iterations: int,
    elites: int,
    bound: Bound = anywhere,
    momentum_mean: Tensor | float = 0.0,
    momentum_std: Tensor | float = 0.0,
    has_mean: bool = False,
) -> Plan:
    """The cross-entropy method: sample, keep the best, fit a normal law to them, again.

    mean, std [E, H, A]: where it begins. momenta, broadcast over [E, H, A]: the share of the old value that stays.
    has_mean: the first sample is the mean itself (DINO-WM). The plan is the last mean; std of the elites is unbiased.
    """
    costs = []
    for iteration in range(iterations):
        samples = mean[:, None] + std[:, None] * noise(iteration)
        if has_mean:
            samples = torch.cat([mean[:, None], samples[:, 1:]], 1)
        samples = bound(samples)
        found = cost(samples)
        costs.append(found)
        best = _pick(samples, found.topk(elites, 1, largest=False).indices)
        mean = (1 - momentum_mean) * best.mean(1) + momentum_mean * mean
        std = (1 - momentum_std) * best.std(1) + momentum_std * std
    return Plan(mean, mean, std, torch.stack(costs))


def mppi(
    cost: Cost,
    noise: Noise,
    mean: Tensor,
    std: Tensor,
    choice: Tensor,
    *,
    iterations: int,
    elites: int,
    sharpness: float,
) -> Plan:
    """Path integrals: as CEM, but the better of the elites weigh more, and the plan is one of them, drawn by weight.

    choice [E]: uniform in [0, 1), which draws it. sharpness: the published code multiplies costs by its temperature of
    0.005, where its README divides, so that weights are nearly equal; this is the code's.
    """
    costs = []
    for iteration in range(iterations):
        samples = mean[:, None] + std[:, None] * noise(iteration)
        found = cost(samples)
        costs.append(found)
        values, index = found.topk(elites, 1, largest=False)
        best = _pick(samples, index)
        weights = torch.softmax(-sharpness * values, 1)
        mean = (weights[..., None, None] * best).sum(1)
        std = (weights[..., None, None] * (best - mean[:, None]) ** 2).sum(1).sqrt()
    drawn = (weights.cumsum(1) < choice[:, None]).sum(1, keepdim=True).clamp(max=elites - 1)
    return Plan(_pick(best, drawn)[:, 0], mean, std, torch.stack(costs))


def _pick(samples: Tensor, index: Tensor) -> Tensor:
    """samples [E, S, H, A] at index [E, K] -> [E, K, H, A]."""
    return samples.gather(1, index[..., None, None].expand(-1, -1, *samples.shape[2:]))


class EpisodeNoise:
    """Random numbers of one plan, of each episode from its own seed alone, whichever others are planned beside it.

    Drawn on the CPU, hence the same on every device.
    """

    def __init__(self, seeds: tuple[int, ...], step: int, shape: tuple[int, int, int], device: torch.device) -> None:
        """step: of the world, at which the plan is made; shape: samples, horizon, numbers of an action."""
        self.shape, self.device = shape, device
        self.generators = [torch.Generator().manual_seed(derive_seed(seed, "plan", step)) for seed in seeds]
        self.choice = torch.cat([torch.rand(1, generator=each) for each in self.generators]).to(device)

    def __call__(self, iteration: int) -> Tensor:
        """The next [E, S, H, A]; iterations are asked for in their order."""
        return torch.stack([torch.randn(self.shape, generator=each) for each in self.generators]).to(self.device)


# --- the robot of V-JEPA 2-AC -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RobotSettings:
    """Planning for an arm: xyz and gripper are searched, rotations stay 0. Defaults: the paper; what it is silent about
    from the released notebook.

    most: metres a step on each axis. Deviation D2: the paper calls it an L1 ball of radius 0.075, but its "about 13 cm"
    is the diagonal of this box, the code's. fixed: (axis, value) pairs, where axis 3 is the gripper, which never leave
    their value. close_gripper: the step from which on the gripper is told to close (-1: never).
    """

    samples: int = 800
    iterations: int = 10
    elites: int = 10
    horizon: int = 1
    most: float = 0.075
    momentum_mean: float = 0.15
    momentum_std: float = 0.75
    momentum_mean_gripper: float = 0.15
    momentum_std_gripper: float = 0.15
    close_gripper: int = -1
    fixed: tuple[tuple[int, float], ...] = ()


ROBOT = {
    "paper": RobotSettings(),
    "code": RobotSettings(400, 10, 10, 2, 0.05, 0.15, 0.15, 0.15, 0.15),  # the wrapper's defaults
    "notebook": RobotSettings(25, 2, 10, 2, 0.075, 0.15, 0.75, 0.15, 0.15),
}


def plan_robot(cost: Cost, noise: Noise, episodes: int, settings: RobotSettings, device: torch.device) -> Plan:
    """A plan [E, H, 7]: xyz difference, three rotations of 0, gripper difference, which is 0 if it is small.

    noise: [E, S, H, 4]; cost sees actions [E, S, H, 7].
    """
    shape = episodes, settings.horizon, 1

    def wide(arm: float, gripper: float) -> Tensor:
        return torch.tensor([arm, arm, arm, gripper], device=device).expand(*shape[:2], 4)

    def bound(actions: Tensor) -> Tensor:
        arm = actions[..., :3].clamp(-settings.most, settings.most)
        gripper = actions[..., 3:].clamp(-GRIPPER_MOST, GRIPPER_MOST)
        bounded = torch.cat([arm, gripper], -1)
        for axis, value in settings.fixed:
            bounded[..., axis] = value
        if settings.close_gripper >= 0:
            bounded[:, :, settings.close_gripper :, 3] = 1.0
        return bounded

    mean = wide(0.0, 0.0).clone()
    for axis, value in settings.fixed:
        mean[..., axis] = value

    plan = cem(
        lambda actions: cost(_with_rotations(actions)),
        noise,
        mean,
        wide(settings.most, 1.0),
        iterations=settings.iterations,
        elites=settings.elites,
        bound=bound,
        momentum_mean=wide(settings.momentum_mean, settings.momentum_mean_gripper),
        momentum_std=wide(settings.momentum_std, settings.momentum_std_gripper),
    )
    gripper = plan.mean[..., 3:]
    done = torch.cat([plan.mean[..., :3], torch.where(gripper.abs() < GRIPPER_LEAST, 0, gripper)], -1)
    return Plan(_with_rotations(done), plan.mean, plan.std, plan.costs)


def _with_rotations(actions: Tensor) -> Tensor:
    """[..., 4] -> [..., 7]."""
    return torch.cat([actions[..., :3], torch.zeros_like(actions[..., :3]), actions[..., 3:]], -1)

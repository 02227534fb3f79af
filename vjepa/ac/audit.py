"""What a success is worth: judged at the end or on the way, strictly too, beside a random policy.

Public audits of these benchmarks found random policies at 26 % (TwoRoom) and 49 % (Cube) in protocols that print 0,
episodes that start solved, and agents that walk through walls because only end points were looked at.
Shapes: E episodes, T steps; trace [E, T + 1, S] holds the states from start to end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.ac.worlds.world import Episodes, World, generator_of


@dataclass(frozen=True)
class Verdicts:
    """What the episodes came to, each [E].

    is_reached: by the published rule. is_strict: besides, it stands still there and has crossed no wall. is_solved:
    the start already lies at the goal. distance: to the goal, when it was judged. steps: until then.
    """

    is_reached: Tensor
    is_strict: Tensor
    is_solved: Tensor
    crossings: Tensor
    distance: Tensor
    steps: Tensor


def judge(world: World, episodes: Episodes, trace: Tensor, *, judged_every: int = 0) -> Verdicts:
    """Verdicts on traces. judged_every: 0: by the final state alone; n: whenever n more steps have been made.

    What follows the first state that is judged a success is not looked at.
    """
    layout = episodes.layout[:, None].expand(-1, trace.shape[1] - 1, -1)
    distances = world.distance(trace, episodes.goal[:, None])
    last = trace.shape[1] - 1
    is_judged = torch.zeros(last + 1, dtype=torch.bool, device=trace.device)
    is_judged[-1] = True
    if judged_every:
        is_judged[judged_every::judged_every] = True
    is_good = (distances < world.radius) & is_judged
    is_reached = is_good.any(1)
    end = torch.where(is_reached, is_good.float().argmax(1), last)
    moved = world.distance(trace[:, 1:], trace[:, :-1])
    pace = moved.gather(1, (end - 1).clamp(min=0)[:, None])[:, 0]
    is_crossing = world.crosses(trace[:, :-1], trace[:, 1:], layout)
    crossings = (is_crossing & (torch.arange(last, device=trace.device) < end[:, None])).sum(1)
    return Verdicts(
        is_reached=is_reached,
        is_strict=is_reached & (pace < world.still) & (crossings == 0),
        is_solved=distances[:, 0] < world.radius,
        crossings=crossings,
        distance=distances.gather(1, end[:, None])[:, 0],
        steps=end,
    )


def play_random(world: World, episodes: Episodes, steps: int) -> Tensor:
    """The trace [E, steps + 1, S] of the random policy: the floor of every score. Each episode has its own numbers."""
    drawn = [world.random_actions(1, steps, generator_of(seed, "random policy")) for seed in episodes.seeds]
    return play(world, episodes, torch.cat(drawn).to(episodes.start.device))


def play(world: World, episodes: Episodes, actions: Tensor) -> Tensor:
    """The trace [E, T + 1, S] of given actions [E, T, A]."""
    pushes = push_noise(episodes, actions.shape[1])
    state, states = episodes.start, [episodes.start]
    for t in range(actions.shape[1]):
        state = world.step(state, actions[:, t], episodes.layout, pushes[:, t])
        states.append(state)
    return torch.stack(states, 1)


def push_noise(episodes: Episodes, steps: int) -> Tensor:
    """What the walls of each episode add, [E, steps, 2] of a standard normal, from its own seed."""
    drawn = [torch.randn(steps, 2, generator=generator_of(seed, "walls")) for seed in episodes.seeds]
    return torch.stack(drawn).to(episodes.start.device)

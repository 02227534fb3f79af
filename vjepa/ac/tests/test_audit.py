"""What a trace is worth: ends and ways, strict or not, and the random floor."""

from __future__ import annotations

import torch

from vjepa.ac import audit
from vjepa.ac.worlds.rooms import TWO_ROOMS
from vjepa.ac.worlds.world import Episodes, new_episodes, seeds_of_test


def episodes_to(goal: tuple[float, float], *traces: list[tuple[float, float]]) -> tuple[Episodes, torch.Tensor]:
    trace = torch.tensor(traces)
    count = len(trace)
    layout, place = torch.tensor([[32.0, 18.0]]).expand(count, 2), torch.tensor([goal]).expand(count, 2)
    return Episodes(trace[:, 0], place, layout, tuple(range(count))), trace


def test_ends_ways_walls_and_standing_still():
    episodes, trace = episodes_to(
        (50.0, 40.0),
        [(40.0, 40.0), (45.0, 40.0), (49.0, 40.0), (49.0, 40.0)],  # gets there and stands
        [(40.0, 40.0), (45.0, 40.0), (47.0, 40.0), (49.0, 40.0)],  # gets there and runs on
        [(20.0, 40.0), (45.0, 40.0), (49.0, 40.0), (49.0, 40.0)],  # through the wall
        [(40.0, 40.0), (49.0, 40.0), (49.0, 40.0), (40.0, 40.0)],  # there on the way, gone at the end
        [(49.0, 40.0), (49.0, 40.0), (49.0, 40.0), (49.0, 40.0)],  # solved at the start
    )
    at_end = audit.judge(TWO_ROOMS, episodes, trace)
    assert at_end.is_reached.tolist() == [True, True, True, False, True]
    assert at_end.is_strict.tolist() == [True, False, False, False, True]
    assert at_end.is_solved.tolist() == [False, False, False, False, True]
    assert at_end.crossings.tolist() == [0, 0, 1, 0, 0]
    assert at_end.distance.tolist() == [1, 1, 1, 10, 1]
    on_the_way = audit.judge(TWO_ROOMS, episodes, trace, judged_every=2)
    assert on_the_way.is_reached.tolist() == [True, True, True, True, True]
    assert on_the_way.steps.tolist() == [2, 2, 2, 2, 2]


def test_an_episode_of_the_random_policy_is_the_same_alone_and_among_others():
    seeds = seeds_of_test(6)
    together = audit.play_random(TWO_ROOMS, new_episodes(TWO_ROOMS, seeds), 40)
    alone = audit.play_random(TWO_ROOMS, new_episodes(TWO_ROOMS, seeds[3:4]), 40)
    assert torch.equal(together[3], alone[0])


def test_the_random_floor_of_two_rooms_is_low():
    episodes = new_episodes(TWO_ROOMS, seeds_of_test(300))
    found = audit.judge(TWO_ROOMS, episodes, audit.play_random(TWO_ROOMS, episodes, 200))
    assert float(found.is_reached.float().mean()) < 0.06
    assert not bool(found.is_solved.any())

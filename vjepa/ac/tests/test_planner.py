"""Planning: minima are found, bounds hold, and an episode's plan does not depend on those beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vjepa.ac import play, pose
from vjepa.ac.config import PRESETS, TASKS, Config
from vjepa.ac.imagination import RecipeImagination, cost_of
from vjepa.ac.planner import (
    ROBOT,
    EpisodeNoise,
    RobotSettings,
    cem,
    mppi,
    plan_robot,
    within_norm,
)
from vjepa.ac.play import plan_once, play_all
from vjepa.ac.recipe import new_recipe
from vjepa.ac.worlds.rooms import TWO_ROOMS
from vjepa.ac.worlds.world import new_episodes, seeds_of_test

CPU = torch.device("cpu")
GOALS = torch.tensor([[1.0, -0.5], [-0.7, 0.3], [0.0, 1.2]])
SEEDS = (11, 12, 13)


def cost_to(goals: Tensor):
    """The squared distance between the sum of a plan's actions and a goal."""
    return lambda actions: (actions.sum(2) - goals[:, None]).square().sum(-1)


def plan(goals: Tensor, seeds: tuple[int, ...], method: str, step: int = 0, **options) -> Tensor:
    noise = EpisodeNoise(seeds, step, (100, 3, 2), CPU)
    mean, std = torch.zeros(len(goals), 3, 2), torch.ones(len(goals), 3, 2)
    if method == "cem":
        return cem(cost_to(goals), noise, mean, std, iterations=8, elites=10, **options).actions
    return mppi(cost_to(goals), noise, mean, std, noise.choice, iterations=8, elites=10, sharpness=0.005).actions


@pytest.mark.parametrize(("method", "atol"), [("cem", 0.1), ("mppi", 0.2)])
def test_a_minimum_is_found(method, atol):
    """Path integrals do one of their elites, not the mean."""
    found = plan(GOALS, SEEDS, method).sum(1)
    assert torch.allclose(found, GOALS, atol=atol)


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_an_episode_is_planned_the_same_alone_and_in_any_batch(method):
    together = plan(GOALS, SEEDS, method)
    for k, seed in enumerate(SEEDS):
        assert torch.equal(plan(GOALS[k : k + 1], (seed,), method)[0], together[k])
    other = plan(GOALS.flip(0), SEEDS[::-1], method)
    assert torch.equal(other.flip(0), together)


def test_noise_differs_by_episode_by_step_and_by_iteration():
    noise = EpisodeNoise((1, 2), 0, (4, 3, 2), CPU)
    first, second = noise(0), noise(1)
    later = EpisodeNoise((1, 2), 5, (4, 3, 2), CPU)(0)
    drawn = [first[0], first[1], second[0], second[1], later[0], later[1]]
    assert all(not torch.equal(a, b) for k, a in enumerate(drawn) for b in drawn[:k])


def test_bounds_and_the_mean_among_the_samples():
    seen: list[Tensor] = []

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions)
        return cost_to(GOALS)(actions)

    noise = EpisodeNoise(SEEDS, 0, (50, 3, 2), CPU)
    mean = torch.zeros(3, 3, 2)
    cem(cost, noise, mean, mean + 3, iterations=3, elites=5, bound=within_norm(2.45), has_mean=True)
    assert all(float(actions.norm(dim=-1).max()) <= 2.45 + 1e-6 for actions in seen)
    assert bool((seen[0][:, 0] == 0).all())
    assert not bool((seen[1][:, 0] == 0).any())


def test_the_better_elites_weigh_more_in_path_integrals():
    """Two samples, costs 0 and log(3) / sharpness: weights 3/4 and 1/4, and the first is drawn below 3/4."""
    sharpness = 0.005
    samples = torch.tensor([[[[2.0]], [[-2.0]]]])
    costs = torch.tensor([[0.0, 219.7225]])
    for choice, drawn in ((0.74, 2.0), (0.76, -2.0)):
        found = mppi(
            lambda actions: costs,
            lambda iteration: samples,
            torch.zeros(1, 1, 1),
            torch.ones(1, 1, 1),
            torch.tensor([choice]),
            iterations=1,
            elites=2,
            sharpness=sharpness,
        )
        assert float(found.mean) == pytest.approx(1.0, abs=1e-4)
        assert float(found.std) == pytest.approx(3**0.5, abs=1e-4)
        assert float(found.actions) == drawn


def test_the_robot_stays_in_its_box_and_never_turns():
    seen: list[Tensor] = []
    wanted = torch.tensor([0.3, -0.05, 0.0])

    def cost(actions: Tensor) -> Tensor:
        seen.append(actions)
        return (actions[..., :3].sum(2) - wanted).abs().sum(-1) + (actions[..., 6].sum(2) - 0.1).abs()

    settings = RobotSettings(samples=200, momentum_std=0.15, horizon=2, fixed=((2, 0.01),))
    noise = EpisodeNoise((1,), 0, (200, 2, 4), CPU)
    found = plan_robot(cost, noise, 1, settings, CPU).actions
    assert found.shape == (1, 2, 7)
    assert bool((found[..., 3:6] == 0).all())
    assert float(found[..., 6].abs().max()) == 0, "a small command of the gripper is none"
    everything = torch.cat(seen)
    assert float(everything[..., :2].abs().max()) <= 0.075 + 1e-8
    assert bool((everything[..., 2] == 0.01).all())
    assert float(everything[..., 6].abs().max()) <= 0.75
    assert found[0, :, 0].tolist() == pytest.approx([0.075, 0.075], abs=0.01)


@pytest.mark.parametrize("axis", [0, 3])
def test_a_fixed_axis_keeps_its_value_whatever_the_momenta(axis):
    settings = RobotSettings(20, 3, momentum_mean=0.5, momentum_mean_gripper=0.5, fixed=((axis, 0.6),))
    noise = EpisodeNoise((1,), 0, (20, 1, 4), CPU)
    found = plan_robot(lambda actions: actions.square().sum((2, 3)), noise, 1, settings, CPU).actions
    assert float(found[0, 0, 6 if axis == 3 else axis]) == pytest.approx(0.6, abs=1e-6)


def test_angles_near_a_steep_pitch_are_those_of_double_precision():
    """Worked out in float32, roll and yaw would lose half of their digits."""
    steep, place = torch.rand(2, 50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)
    steep[:, 4] = torch.pi / 2 - 1e-3
    cases = (
        (pose.difference, place, pose.advance(place, steep)),
        (pose.advance, place, pose.difference(place, steep)),
        (pose.in_camera, place, pose.difference(steep, place)[:, :6]),
    )
    for calculation, one, other in cases:
        one, other = one.float(), other.float()
        found, wanted = calculation(one, other), calculation(one.double(), other.double())
        assert found.dtype == torch.float32
        assert bool((wanted[:, 4] > 1.56).all())
        torch.testing.assert_close(found, wanted.float(), atol=3e-7, rtol=0)


def test_a_pitch_that_is_nearly_steep_keeps_its_yaw():
    angles = torch.tensor([0.4, torch.pi / 2 - 5e-7, -0.9], dtype=torch.float64)
    torch.testing.assert_close(pose.to_angles(pose.to_matrix(angles)), angles, atol=1e-8, rtol=0)
    steep = torch.tensor([0.4, torch.pi / 2, -0.9], dtype=torch.float64)
    found = pose.to_angles(pose.to_matrix(steep))
    assert float(found[2]) == 0
    assert float(found[0]) == pytest.approx(1.3), "roll minus yaw is all that there is"


def test_the_published_settings_of_the_robot():
    assert (ROBOT["paper"].samples, ROBOT["paper"].iterations, ROBOT["paper"].elites) == (800, 10, 10)
    assert (ROBOT["paper"].horizon, ROBOT["paper"].most) == (1, 0.075)
    assert (ROBOT["code"].samples, ROBOT["code"].horizon, ROBOT["code"].most) == (400, 2, 0.05)
    assert (ROBOT["notebook"].samples, ROBOT["notebook"].iterations) == (25, 2)


def test_the_published_settings_of_two_rooms():
    config = Config(**TASKS["two-rooms"])
    assert (config.planner, config.samples, config.iterations, config.elites) == ("mppi", 200, 20, 20)
    assert (config.horizon, config.execute, config.std, config.objective) == (90, 1, 2.0, "sum")
    assert (config.episodes, config.checkpoints, config.budget, config.judged) == (20, 3, 200, "end")
    assert PRESETS["paper"].values == {}


def test_the_cost_of_a_plan():
    model = new_recipe((2, 17, 17), (4, 4), 8, 2, 0)
    imagination = RecipeImagination(model, 17)
    present, goal = torch.randn(2, 2, 8)
    actions = torch.randn(2, 5, 3, 2)
    with torch.no_grad():
        total = cost_of(imagination, present, torch.zeros(2, 2), goal, "sum")(actions)
        last = cost_of(imagination, present, torch.zeros(2, 2), goal, "last")(actions)
        z, distances = present[1:], [(present[1] - goal[1]).square().mean()]
        for step in range(3):
            z = model.encoder.norm(model.gru(actions[1:, 4, step], z))
            distances.append((z[0] - goal[1]).square().mean())
    assert float(total[1, 4]) == pytest.approx(float(torch.stack(distances).sum()), rel=1e-5)
    assert float(last[1, 4]) == pytest.approx(float(distances[-1]), rel=1e-5)


SMALL = Config(
    **{
        **TASKS["two-rooms"],
        **{"side": 17, "channels": (4, 4), "width": 16, "samples": 20, "iterations": 3, "elites": 5},
        **{"horizon": 6, "execute": 4, "budget": 12},
    }
)


def test_a_played_episode_is_bit_equal_alone_and_among_others():
    imagination = RecipeImagination(new_recipe((2, 17, 17), (4, 4), 16, 2, 0).eval(), 17)
    episodes = new_episodes(TWO_ROOMS, seeds_of_test(4))
    together, _ = play_all(imagination, TWO_ROOMS, episodes, SMALL, "test")
    alone, _ = play_all(imagination, TWO_ROOMS, episodes.select(slice(2, 3)), SMALL, "test")
    assert torch.equal(together[2], alone[0])


def test_an_interrupted_test_goes_on(tmp_path, monkeypatch):
    imagination = RecipeImagination(new_recipe((2, 17, 17), (4, 4), 16, 2, 0).eval(), 17)
    episodes = new_episodes(TWO_ROOMS, seeds_of_test(4))
    whole, _ = play_all(imagination, TWO_ROOMS, episodes, SMALL, "test", tmp_path)
    (tmp_path / "1.npz").write_bytes(b"half")
    (tmp_path / "3.npz").unlink()
    played: list[int] = []
    original = play.play_plans

    def noted(imagination, world, episodes, config):
        played.append(episodes.seeds[0])
        return original(imagination, world, episodes, config)

    monkeypatch.setattr(play, "play_plans", noted)
    again, _ = play_all(imagination, TWO_ROOMS, episodes, SMALL, "test", tmp_path)
    assert torch.equal(again, whole)
    assert played == [episodes.seeds[1], episodes.seeds[3]]


def test_one_batch_of_all_episodes_agrees_to_rounding():
    """What a GPU does; costs agree to the rounding of products with other numbers of rows, random numbers exactly."""
    imagination = RecipeImagination(new_recipe((2, 17, 17), (4, 4), 16, 2, 0).eval(), 17)
    episodes = new_episodes(TWO_ROOMS, seeds_of_test(4))
    goal = imagination.encode(TWO_ROOMS.render(episodes.goal, episodes.layout)).detach()
    all_at_once = plan_once(imagination, TWO_ROOMS, episodes, episodes.start, goal, 0, SMALL)
    for k in range(4):
        one = episodes.select(slice(k, k + 1))
        alone = plan_once(imagination, TWO_ROOMS, one, one.start, goal[k : k + 1], 0, SMALL)
        torch.testing.assert_close(all_at_once.costs[0, k], alone.costs[0, 0], rtol=1e-5, atol=1e-6)

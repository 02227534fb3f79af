"""Targets at ends and cuts, the ring of the replay, and what is drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muzero import targets
from muzero.config import PRESETS, TASKS, Config
from muzero.data import Replay, Rules, forget
from muzero.env import Space, stacked
from muzero.unroll import Predictions, scale_gradient, step_losses, weighted_loss

RULES = Rules(
    0.9, td_steps=2, unroll_steps=3, priority_exponent=1.0, priority_correction=1.0, keeps_outcome=False
)  # fmt: skip
SPACE = Space((2,), "float32", 1, 3, 1, "tiled")
LANES = 2


def filled(steps: int, rows: int = 64, rules: Rules = RULES, cut_every: int = 7, end_every: int = 5) -> Replay:
    """Lane 0 is cut by a limit after every `cut_every` actions, lane 1 ends after every `end_every`."""
    replay, rng = Replay(SPACE, LANES, rows, rules), np.random.default_rng(0)
    age, is_over = np.zeros(LANES, np.int64), np.zeros(LANES, np.bool_)
    for step in range(steps):
        frames = np.stack([np.full(2, step), age], 0).astype(np.float32)
        replay.begin(frames, np.ones((LANES, 3), np.bool_), is_over)
        age = np.where(is_over, 0, age + 1)
        ended, cut = np.array([False, age[1] == end_every]), np.array([age[0] == cut_every, False]) & ~is_over
        policy = rng.dirichlet(np.ones(3), LANES).astype(np.float32)
        reward = np.where(is_over, 0.0, step + 1.0).astype(np.float32)
        replay.finish(rng.integers(3, size=LANES), rng.random(LANES).astype(np.float32), policy, reward, (ended, cut))
        age[ended], is_over = 0, cut
    return replay


def test_a_cut_bootstraps_where_an_end_does_not() -> None:
    rewards, values = np.array([[1.0, 1.0, 1.0, 9.0]]), np.array([[5.0, 5.0, 5.0, 7.0]])
    for is_cut, wanted in (
        (False, [2.71, 1.9, 1.0, 0.0]),
        (True, [2.71 + 0.729 * 7, 1.9 + 0.81 * 7, 1 + 0.9 * 7, 7.0]),
    ):
        found = targets.value_targets(
            rewards, values, np.array([3]), np.array([is_cut]), discount=0.9, td_steps=5, unroll_steps=3
        )
        assert found[0] == pytest.approx(wanted)
    left, cut = np.array([1]), np.array([True])
    assert targets.policy_mask(left, cut, 3).tolist() == [[True, True, False, False]]
    assert targets.known_mask(left, cut, 3).tolist() == [[True, True, False, False]]
    assert targets.policy_mask(left, ~cut, 3).tolist() == [[True, False, False, False]]
    assert targets.known_mask(left, ~cut, 3).all()


def test_a_finished_game_keeps_its_outcome_for_whoever_is_to_move() -> None:
    """The player who won at the second move: lost for the other, then won, and so on."""
    found = targets.value_targets(
        np.array([[0.0, 1.0, 0.0, 0.0]]), np.zeros((1, 4)), np.array([2]), np.array([False]),
        discount=-1.0, td_steps=None, unroll_steps=4, keeps_outcome=True,
    )  # fmt: skip
    assert found[0].tolist() == [-1.0, 1.0, -1.0, 1.0, -1.0]


def test_every_position_that_can_be_drawn_has_its_targets() -> None:
    replay = filled(60)
    picks = replay.choose(500, np.random.default_rng(1))
    assert set(np.unique(picks.lane)) == {0, 1}
    row = picks.step % replay.rows
    assert not replay.arrays["is_over"][row, picks.lane].any()
    assert (picks.step < replay.count).all()
    # Lane 0 counts steps, so its frames tell where a window is.
    lane = picks.lane == 0
    assert np.array_equal(replay.observe(picks.step, picks.lane)[lane, 0], picks.step[lane])
    batch = replay.batch(picks, np.random.default_rng(2), torch.device("cpu"))
    for k in range(1, RULES.unroll_steps + 1):
        known = (batch.mask[:, k] > 0).numpy() & (replay.end[row, picks.lane] >= picks.step + k)
        assert np.array_equal(batch.reward[:, k].numpy()[known], picks.step[known] + k)
    torch.testing.assert_close(batch.policy.sum(-1), batch.policy_mask)


def test_positions_are_drawn_by_their_priority() -> None:
    replay = filled(60)
    picks = replay.choose(20_000, np.random.default_rng(3))
    place = (picks.step % replay.rows) * LANES + picks.lane
    share = np.bincount(place, minlength=replay.priority.size) / len(picks)
    wanted = replay.priority.reshape(-1) / replay.priority.sum()
    assert np.abs(share - wanted).max() < 5 * np.sqrt(wanted.max() / len(picks))
    assert np.allclose(picks.probability, wanted[place])


def test_the_ring_forgets_the_oldest() -> None:
    replay = filled(200, rows=32)
    picks = replay.choose(1000, np.random.default_rng(4))
    assert picks.step.min() >= 200 - 32
    assert np.array_equal(replay.observe(picks.step, picks.lane)[picks.lane == 0, 0], picks.step[picks.lane == 0])


def test_a_replay_comes_back_from_its_files(tmp_path) -> None:
    whole = Replay(SPACE, LANES, 32, RULES)
    files: list[list[int]] = []
    for steps in (20, 45, 90):
        whole = filled(steps, rows=32)
        files = whole.save(tmp_path, files)
    assert files == [[58, 90]]
    forget(tmp_path, files)
    assert len(list(tmp_path.iterdir())) == 1
    back = Replay(SPACE, LANES, 32, RULES)
    back.load(tmp_path, whole.count, files, whole.small())
    for name, array in whole.arrays.items():
        assert np.array_equal(array, back.arrays[name]), name
    one, two = (r.choose(50, np.random.default_rng(5)) for r in (whole, back))
    assert np.array_equal(one.step, two.step)
    next(tmp_path.iterdir()).write_bytes(b"no")
    with pytest.raises(ValueError, match="missing or of another size or world"):
        back.load(tmp_path, whole.count, files, whole.small())


def test_history_stops_where_the_episode_began() -> None:
    space = Space((1, 2, 2), "uint8", 3, 4, 1, "tiled")
    assert space.obs_shape == (6, 2, 2)
    replay = Replay(space, 1, 16, RULES)
    for step in range(6):
        replay.begin(
            np.full((1, 1, 2, 2), 51 * (step + 1) % 256, np.uint8), np.ones((1, 4), np.bool_), np.zeros(1, bool)
        )
        ends = (np.array([step == 2]), np.array([False]))
        replay.finish(np.array([step % 4]), np.zeros(1), np.full((1, 4), 0.25), np.zeros(1), ends)
    found = replay.observe(np.array([4, 3, 2]), np.zeros(3, np.int64))[:, :, 0, 0]
    # Step 3 is the first of its episode, so it sees itself alone and no action.
    assert found[1].tolist() == pytest.approx([0, 0, 204 / 255, 0, 0, 0])
    assert found[0].tolist() == pytest.approx([0, 204 / 255, 255 / 255, 0, 0, 3 / 4])
    assert found[2].tolist() == pytest.approx([51 / 255, 102 / 255, 153 / 255, 0, 0, 1 / 4])
    assert stacked(np.zeros((1, 3, 1, 2, 2), np.uint8), np.full((1, 3), -1), space).max() == 0


def test_gradients_of_steps_are_scaled_and_values_are_not() -> None:
    x = torch.tensor([2.0], requires_grad=True)
    y = scale_gradient(x, 0.25)
    y.backward()
    assert y.item() == 2.0
    assert x.grad is not None
    assert x.grad.item() == 0.25
    losses = {name: torch.ones(3, 4, requires_grad=True) for name in ("value", "reward", "policy")}
    loss = weighted_loss(losses, torch.ones(3), 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(4 * 2.5)
    grad = losses["value"].grad
    assert grad is not None
    assert grad[0].tolist() == pytest.approx([0.5 / 3] + 3 * [0.5 / 9])


def test_a_board_without_reward_head_has_no_reward_loss() -> None:
    replay = filled(60)
    batch = replay.batch(replay.choose(4, np.random.default_rng(0)), np.random.default_rng(0), torch.device("cpu"))
    found = Predictions(torch.zeros(4, 4, 3), torch.zeros(4, 4, 1), torch.zeros(4, 3, 0), torch.zeros(4, 4, 1))
    assert not step_losses(found, batch)["reward"].any()


def test_the_updates_of_a_run_are_all_due_at_its_last_move() -> None:
    for preset in PRESETS.values():
        config = Config(**{**TASKS["tictactoe"], **preset.values, **preset.by_task.get("tictactoe", {})})
        total = targets.total_moves(config)
        assert targets.updates_due(total * config.envs, config) == config.updates
        assert targets.updates_due((total - 1) * config.envs, config) < config.updates

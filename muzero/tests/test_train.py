"""The real train command: killed and resumed, on two ranks, with bad options, with a loss that is not finite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, testing
from common.program import RunError
from common.run import NonFiniteError, Run, run_config
from muzero import evaluate, train
from muzero.agent import load_network, network_for
from muzero.boards import GAMES
from muzero.config import PRESETS, TASKS, Config
from muzero.data import Replay, Rules
from muzero.env import GymWorlds, make_worlds
from muzero.judges import uniform_moves
from muzero.reanalyze import refreshed
from muzero.self_play import LearnedModel, search_settings
from muzero.spiel import MAX_MOVES
from muzero.tests.conftest import SMOKE
from muzero.train import new_optimizer, train_step

CARTPOLE = ("--task", "cartpole")


@pytest.mark.parametrize("words", [(), (*CARTPOLE, "--policy", "gumbel")])
def test_killed_and_resumed_equals_one_go(words: tuple[str, ...], trained: Path, tmp_path: Path) -> None:
    whole = trained
    if words:
        whole = tmp_path / "whole"
        testing.run("muzero.train", *SMOKE, *words, "--run", str(whole))
    folder = tmp_path / "run"
    command = ("muzero.train", *SMOKE, *words, "--run", str(folder))
    process = testing.start(*command)
    testing.kill_when(process, lambda: testing.has_step(folder, "train", 12))
    newest = checkpoint.load_latest(folder / "train")
    total = checkpoint.load_latest(whole / "train")
    assert newest is not None
    assert total is not None
    assert newest.step < total.step, "killed too late to show anything"
    testing.run(*command)
    testing.same_log(folder, whole)
    testing.same_checkpoints(folder / "train", whole / "train")


def test_two_ranks_train_and_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["muzero.train", "--", *SMOKE, "--run", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(testing.ROOT), "OMP_NUM_THREADS": "1"}
    found = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        newest = checkpoint.load_latest(folder / "train")
        assert newest is not None
        found.append((testing.log_lines(folder), newest.tensors))
        newest.path.unlink()  # back to the checkpoint before
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_ranks_agree_on_batch_norms_and_on_episodes_of_any_length(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = os.environ | {"PYTHONPATH": str(testing.ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "muzero.tests.ranks"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[[5, -1, -1], [-1, -1, -1], [1, 2, 3], [4, 5, -1]] (4, 0) True True\n"


def test_averaged_gradients_are_those_of_the_whole_batch() -> None:
    """Halves of a batch, averaged, give the update of the whole: no term depends on the batch as a whole."""
    config = _smoke("tictactoe", size="vector-small", optimizer="sgd")
    worlds = make_worlds(config, [0])
    network = network_for(worlds.space, config)
    batch = _batch(config)
    gradients = []
    for parts in (slice(None),), (slice(0, 4), slice(4, 8)):
        total = [torch.zeros_like(p) for p in network.parameters()]
        for part in parts:
            some = replace(batch, **{name: getattr(batch, name)[part] for name in vars(batch)})
            copy = network_for(worlds.space, config)
            train_step(copy, new_optimizer(copy, replace(config, lr=0.0)), some, config, 0)
            for kept, p in zip(total, copy.parameters(), strict=True):
                if p.grad is not None:
                    kept += p.grad / len(parts)
        gradients.append(total)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def _smoke(task: str, **changes) -> Config:
    return Config(**{**TASKS[task], **PRESETS["smoke"].values, "task": task, **changes})


def _batch(config: Config):
    replay = _played(config)
    picks = replay.choose(config.batch_size, np.random.default_rng(0))
    return replay.batch(picks, np.random.default_rng(1), torch.device("cpu"))


def _played(config: Config, moves: int = 60) -> Replay:
    """Random play in the worlds of a config, with random values and policies."""
    worlds, rng = make_worlds(config, range(config.envs)), np.random.default_rng(0)
    sign = -1 if worlds.space.players == 2 else 1
    rules = Rules(sign * config.discount, config.td_steps, config.unroll_steps, 0.0, 0.0, config.support is None)
    replay = Replay(worlds.space, worlds.count, 100, rules)
    for _ in range(moves):
        legal = worlds.legal()
        replay.begin(worlds.observe(), legal, worlds.is_over.copy())
        action = np.where(legal, rng.random(legal.shape), -1.0).argmax(1)
        step = worlds.step(action)
        policy = rng.dirichlet(np.ones(worlds.space.actions), worlds.count)
        replay.finish(action, rng.random(worlds.count), policy, step.reward, (step.terminated, step.truncated))
    return replay


def test_one_batch_can_be_learnt_by_heart() -> None:
    config = _smoke("tictactoe", size="board-tiny", lr=3e-3)
    network = network_for(make_worlds(config, [0]).space, config)
    optimizer, batch = new_optimizer(network, config), _batch(config)
    losses = [float(train_step(network, optimizer, batch, config, k)["loss_value"]) for k in range(60)]
    assert losses[-1] < 0.2 * losses[0]


def test_reanalyze_replaces_the_share_that_it_should() -> None:
    config = _smoke("cartpole", size="vector-small", support=10, td_steps=3, reanalyze=0.5, envs=2)
    worlds, replay = make_worlds(config, [0]), _played(_smoke("cartpole", td_steps=3, support=10, envs=2))
    network = network_for(worlds.space, config).eval()
    settings = search_settings(config, worlds.space)
    picks = replay.choose(200, np.random.default_rng(0))
    batch = replay.batch(picks, np.random.default_rng(1), torch.device("cpu"))
    model = LearnedModel(network, settings.discount)
    found = refreshed(batch, picks, replay, model, settings, config, np.random.default_rng(2))
    changed = (found.policy != batch.policy).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    assert torch.equal(found.value[~changed], batch.value[~changed])
    torch.testing.assert_close(found.policy.sum(-1), batch.policy_mask)
    # The untrained network says 0 everywhere, so that a fresh value is the sum of three rewards of 1 at most.
    assert found.value[changed].max() <= 1 + 0.997 + 0.997**2 + 1e-6


@pytest.mark.parametrize("task", ["cartpole", "go9"])
def test_worlds_come_back_into_the_middle_of_an_episode(task: str) -> None:
    """Without a replay, which may hold less than an episode."""
    if task == "go9":
        pytest.importorskip("pyspiel", reason="OpenSpiel is not installed")
    config, rng = _smoke(task), np.random.default_rng(0)
    ours, theirs = make_worlds(config, range(3)), make_worlds(config, range(3))
    for _ in range(25):
        ours.step(uniform_moves(ours.legal(), rng))
    theirs.restore(ours.state())
    for _ in range(25):
        assert np.array_equal(ours.observe(), theirs.observe())
        action = uniform_moves(ours.legal(), rng)
        one, two = ours.step(action), theirs.step(action)
        assert np.array_equal(one.terminated, two.terminated)


def test_a_clipped_gradient_moves_weights_less() -> None:
    config = _smoke("tictactoe", size="vector-small", optimizer="sgd", momentum=0.0, lr=1.0)
    worlds, batch, moved = make_worlds(config, [0]), _batch(config), []
    for clip in (None, 1e-3):
        network = network_for(worlds.space, config)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        changed = replace(config, gradient_clip=clip)
        train_step(network, new_optimizer(network, changed), batch, changed, 0)
        parts = [(new.detach() - old).square().sum() for new, old in zip(network.parameters(), before, strict=True)]
        moved.append(float(torch.stack(parts).sum().sqrt()))
    assert moved[0] > 0.01
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_a_time_limit_leaves_one_more_observation() -> None:
    """CartPole cut after three actions: its last state is shown, and the step after it begins an episode."""
    worlds = GymWorlds("CartPole-v1", [0], 0, "train")
    worlds.envs[0].unwrapped.spec.max_episode_steps = 3  # type: ignore[union-attr]
    worlds.envs[0]._max_episode_steps = 3  # type: ignore[attr-defined]
    shown = []
    for _ in range(5):
        shown.append((worlds.observe()[0].copy(), bool(worlds.is_over[0])))
        step = worlds.step(np.array([1]))
    assert [is_over for _, is_over in shown] == [False, False, False, True, False]
    assert not np.array_equal(shown[3][0], shown[4][0])
    assert not step.truncated[0]


def train_here(*words: str) -> None:
    """The train command in this process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        train.main([*SMOKE, *words])
    finally:
        torch.use_deterministic_algorithms(deterministic)


def test_a_loss_that_is_not_finite_names_stage_step_term_and_the_checkpoint_before_it(tmp_path, monkeypatch) -> None:
    """Between two lines of the log, when checkpoints are written after each move."""
    real = train.train_step

    def broken(*args):
        metrics = real(*args)
        return {**metrics, "loss_value": torch.tensor(torch.nan)} if args[-1] == 23 else metrics

    monkeypatch.setattr(train, "train_step", broken)
    # The first move with an update is the eleventh.
    named = r"train step 34: loss_value is nan; last good checkpoint: .*step-000000033\.safetensors"
    with pytest.raises(NonFiniteError, match=named):
        train_here("--run", str(tmp_path / "run"))


def test_a_network_that_is_not_finite_moves_no_stone(tmp_path) -> None:
    """Weights that an update has made too large, with losses that were numbers: no illegal move is anyone's mistake."""
    words = ("--lr", "1e38", "--run")
    with pytest.raises(NonFiniteError, match=r"train step 12: (policy|value) of a search is \w+; no checkpoint yet"):
        train_here(*words, str(tmp_path / "late"), "--checkpoint-seconds", "1000")
    with pytest.raises(NonFiniteError, match="train step 11: a weight of network is .*step-000000010"):
        train_here(*words, str(tmp_path / "run"))


def test_a_run_that_could_not_learn_does_not_say_that_it_has(tmp_path) -> None:
    """Three moves of a world, in which no game ends."""
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="0 of 2 updates were made"):
        train_here("--first-steps", "4", "--updates", "2", "--run", str(folder))
    info = Run.load("muzero", folder)
    assert load_network(info, run_config(Config, info), torch.device("cpu"))[1] == 0


def test_boards_of_the_smoke_preset_end_before_they_are_learnt_from() -> None:
    for task, longest in (("gomoku", GAMES["gomoku"].cells), *MAX_MOVES.items()):
        for preset in ("smoke", "cpu", "night", "gpu"):
            found = PRESETS[preset]
            config = Config(**{**TASKS[task], **found.values, **found.by_task[task], "task": task})
            assert config.first_steps >= longest * config.envs


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--task", "conect4"], "did you mean 'connect4'"),
        (["--simulations", "0"], "at least 1"),
        (["--policy", "alphazero"], "muzero, gumbel"),
        (["--size", "bord"], "allowed: atari"),
        (["--size", "atari-small"], "does not fit task tictactoe"),
        (["--temperatures", "1,1"], "three numbers"),
        (["--task", "cartpole", "--support", "none"], "has rewards"),
        (["--task", "gym", "--gym-id", "NoSuchWorld-v0"], "NoSuchWorld"),
        (["--task", "gym", "--gym-id", "Pendulum-v1"], "discrete actions"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--preset", "nite"], "night"),
        (["--lr", "fast"], "fast"),
        (["--preset", "night", "--task", "atari_pong"], "no sizes for task atari_pong; those that have: paper, smoke"),
        (["--replay-steps", "1000000000000", "--updates", "100000000000"], "GiB of memory in each process"),
    ],
)
@pytest.mark.parametrize("module", [train, evaluate])
def test_bad_options_end_in_one_line_and_leave_nothing(module, words, complaint, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        module.main(["--preset", "smoke", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert module is evaluate or complaint in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"size": "vector-small"}, "of another game or size"), ({"envs": 2, "updates": 400}, "of another game or size")],
)
def test_a_run_changed_by_hand_is_refused(changed, reason, trained, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with pytest.raises(SystemExit) as end:
            train.main([*SMOKE, "--run", str(folder), *words])
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_replay_file_that_is_gone_is_named(trained, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    newest = checkpoint.load_latest(folder / "train")
    assert newest is not None
    newest.path.unlink()
    for path in folder.glob("replay-0/rows-*"):
        path.unlink()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with pytest.raises(SystemExit) as end:
            train.main([*SMOKE, "--run", str(folder)])
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert end.value.code == 2
    assert "rows-" in capsys.readouterr().err

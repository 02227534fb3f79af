"""The real commands: killed and resumed, untrained, without imagination, and with what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from common import checkpoint, testing
from common.config import parse
from common.run import NonFiniteError
from common.stage import Stage
from diamond import evaluate, train, watch
from diamond.config import PRESETS, TASKS, Config
from diamond.train import Schedule, schedule_of

SMOKE = ("--preset", "smoke")
CATCH = (*SMOKE, "--task", "catch")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of an Atari run trained in one go. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    testing.run("diamond.train", *SMOKE, "--run", str(folder), cwd=folder.parent)
    return folder


def test_killed_and_resumed_equals_one_go(trained, tmp_path):
    """In the middle of an epoch, of a game, and of imagined games."""
    folder = tmp_path / "run"
    words = ("diamond.train", *SMOKE, "--checkpoint-seconds", "0.2", "--run", str(folder))
    testing.kill_when(testing.start(*words, cwd=tmp_path), lambda: testing.has_step(folder, "train", 17))
    found = checkpoint.load_latest(folder / "train")
    assert found is not None
    assert not found.state["state"]["is_finished"]
    testing.run(*words, cwd=tmp_path)
    testing.same_log(folder, trained)
    testing.same_checkpoints(folder / "train", trained / "train")
    for name in ("frames.bin", "facts.bin"):
        assert (folder / "replay-0" / name).read_bytes() == (trained / "replay-0" / name).read_bytes()


def test_the_test_leaves_record_film_and_pictures(trained):
    evaluate.main(["--run", str(trained)])
    record = json.loads((trained / "record.json").read_text())
    assert (record["claim"], record["protocol"]) == ("agent", "atari100k-games")
    assert {"drift, 1 step", "drift, 3 steps", "drift, 10 steps", "mean frame"} <= set(record["measurements"])
    for name in ("video.webm", "curves.png", "steps.png"):
        assert (trained / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "claim"),
    [
        (("--no-is-imagined",), "agent-real"),
        (("--actor-critic-updates", "0", "--denoiser-updates", "0", "--reward-end-updates", "0"), "agent-untrained"),
    ],
)
def test_controls_are_runs_like_any_other(tmp_path, capsys, words, claim):
    train.main([*CATCH, *words, "--run", str(tmp_path / "run")])
    evaluate.main(["--run", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["claim"], record["unit"]) == (claim, "%")


@pytest.mark.parametrize(("bad", "due"), [(3, 4), (5, 7)])  # the second when another network is being trained
def test_no_checkpoint_follows_a_loss_that_is_no_number_between_two_lines_of_the_log(tmp_path, monkeypatch, bad, due):
    real, calls = train.train_step, []

    def broken(module, optimizer, terms, *rest):
        calls.append(1)
        terms = {name: term * float("nan") if len(calls) == bad + 1 else term for name, term in terms.items()}
        return real(module, optimizer, terms, *rest)

    monkeypatch.setattr(train, "train_step", broken)
    monkeypatch.setattr(Stage, "due", lambda stage, update: update in (bad - 1, due))
    folder = tmp_path / "run"
    message = rf"train step {due + 1}: denoiser/loss is nan; last good checkpoint: .*step-{bad:09d}\.safetensors"
    with pytest.raises(NonFiniteError, match=message):
        train.main([*CATCH, "--run", str(folder)])
    assert sorted(path.name for path in (folder / "train").glob("step-*"))[-1] == f"step-{bad:09d}.safetensors"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "atari100k_breakot"), "did you mean 'atari100k_breakout'"),
        (("--task", "catch", "--device", "tpu"), "no torch device"),
        (("--image-size", "20"), "cannot be halved"),
        (("--age-weights", "0.5,0.6"), "add up to 1"),
        (("--denoiser-depths", "1,1"), "levels"),
        (("--denoiser-channels", "17,17,17"), "networks of these sizes cannot be made"),
        (("--policy-channels", "100,16"), "networks of these sizes cannot be made"),
        (("--policy-channels", ","), "policy_channels has no stage"),
        (("--task", "own", "--data", ".", "--no-is-imagined"), "is_imagined false is for games that a policy plays"),
        (("--diffusion", "ddpm", "--init-from", "Pong.pt"), "an official checkpoint is of diffusion edm, not ddpm"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_no_folder(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        train.main([*SMOKE, *words, "--run", str(tmp_path / "run")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (error.value.code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_the_schedule_is_the_papers():
    """A long first epoch, then 950 epochs with collection and 50 without; every update has its place."""
    plan = schedule_of(Config(), 5000)
    assert (plan.epochs, plan.total) == (1000, 2 * 409_600 + 404_600)
    assert plan.at(0) == (0, "denoiser", 0, True)
    assert plan.at(10_000) == (0, "reward_end", 0, False)
    assert plan.at(25_000) == (1, "denoiser", 10_000, True)
    assert plan.at(plan.total - 1) == (999, "actor_critic", 404_599, False)
    small = Schedule((0, 2, 1), (0, 1, 1), 3)
    assert [small.at(k)[1:3] for k in range(small.total)] == [
        ("reward_end", 0), ("reward_end", 1), ("actor_critic", 0), ("reward_end", 2), ("actor_critic", 1),
        ("reward_end", 3), ("actor_critic", 2),
    ]  # fmt: skip
    assert [small.at(k)[3] for k in range(small.total)] == [True, False, False, True, False, True, False]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", ["video_pong", "video_coin", "own"])
def test_a_video_is_one_epoch_of_the_denoiser_at_every_preset(capsys, preset, task):
    config, _ = parse(Config, TASKS, PRESETS, ["--preset", preset, "--task", task], prog="", description="")
    plan = schedule_of(config, config.collect_first)
    assert (plan.epochs, plan.total) == (1, config.denoiser_first)


@pytest.mark.parametrize(("preset", "most"), [("smoke", 100), ("cpu", 2000), ("night", 11_000)])
def test_no_task_of_a_small_preset_falls_back_to_the_papers_sizes(preset, most):
    for task in TASKS:
        config, _ = parse(Config, TASKS, PRESETS, ["--preset", preset, "--task", task], prog="", description="")
        assert schedule_of(config, config.collect_first).total <= most, task
        for name in ("image_size", "denoiser_channels", "reward_channels", "policy_channels", "env_steps"):
            assert getattr(config, name) != getattr(Config, name), (task, name)


def test_the_policy_plays_in_the_dream_without_a_display(trained, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    watch.main(["--run", str(trained), "--film", str(tmp_path / "a.webm"), "--steps", "6"])
    assert (tmp_path / "a.webm").stat().st_size > 1000


def test_two_processes_train_as_one_does_and_go_on_where_they_stopped(tmp_path):
    """World models alone are those of one process: each process draws beginnings of its own for the policy."""
    folder, networks = tmp_path / "two", ("denoiser", "reward_end")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "diamond.train", "--")
    words = [*CATCH, "--denoiser-first", "4", "--reward-end-first", "4", "--actor-critic-first", "4"]
    words += ["--env-steps", "50", "--checkpoint-seconds", "0", "--run"]
    testing.run(*launch, *words, str(folder), cwd=tmp_path)
    first, second = ((folder / f"replay-{rank}" / "frames.bin").read_bytes() for rank in range(2))
    assert first == second
    train.main([*words, str(tmp_path / "one")])
    one, two = (checkpoint.load_latest(tmp_path / name / "train") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert two.state["state"]["is_finished"]
    for name, tensor in one.tensors.items():
        if any(network in name for network in networks):  # sums of another order; an update moves a weight by 1e-4
            torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    two.path.unlink()  # back to the checkpoint before, in the middle of imagined games
    testing.run(*launch, *words, str(folder), cwd=tmp_path)
    again = checkpoint.load_latest(folder / "train")
    assert again is not None
    assert again.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in two.tensors.items())

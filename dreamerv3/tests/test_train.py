"""The real train command: killed and resumed, on two ranks, with bad options, with a loss that is not finite."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from common import checkpoint, testing, video
from common.run import NonFiniteError, read_metrics
from dreamerv3 import evaluate, pictures, train
from dreamerv3.config import Config
from dreamerv3.tests.calculation import calculate
from dreamerv3.tests.conftest import SMOKE

IMAGE = ("--task", "crafter")
FAST = (*SMOKE, "--checkpoint-seconds", "0")
CHANGING = ("meta.json", "clock.json", ".lock")  # at every start
TOTAL = 100  # agent steps of each environment in the smoke preset of a control task


def same_runs(ours, theirs):
    """Log, weights, optimiser, normaliser, and every row of the replay with its latents."""
    testing.same_log(ours, theirs)
    testing.same_checkpoints(ours / "train", theirs / "train")
    assert newest(ours).state == newest(theirs).state
    names = {path.name for path in (theirs / "replay-0").glob("*.bin") if not path.name.startswith("undo")}
    names -= {"checks.bin", "latent-checks.bin"}  # of the run, too
    assert {"h.bin", "z.bin", "action.bin", "reward.bin"} <= names
    for name in names:
        a, b = (np.fromfile(folder / "replay-0" / name, np.uint8) for folder in (ours, theirs))
        assert np.array_equal(a, b), name


def newest(folder) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(folder / "train")
    assert found is not None
    return found


def kill_at(process, folder, step, rng):
    """SIGKILL at a random moment after the checkpoint of `step`."""

    def is_time() -> bool:
        if not testing.has_step(folder, "train", step):
            return False
        time.sleep(rng.uniform(0, 0.05))
        return True

    testing.kill_when(process, is_time)
    assert newest(folder).step < TOTAL, "killed too late to show anything"


def test_killed_twice_and_resumed_equals_one_go(trained, start, tmp_path):
    """The second time the newest checkpoint is gone too, and half a line of the log has just been written."""
    folder, rng = tmp_path / "run", random.Random(0)
    words = ("dreamerv3.train", *FAST, "--run", str(folder))
    kill_at(start(*words), folder, 40, rng)
    kill_at(start(*words), folder, 70, rng)
    max(folder.glob("train/step-*")).unlink()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": "train", "st')
    testing.finish(start(*words))
    same_runs(folder, trained)
    assert len(json.loads((folder / "meta.json").read_text())["restarts"]) == 2


def test_an_image_task_resumes_too(start, tmp_path):
    """Crafter: pixels, discrete actions, the Nature edition."""
    small = ("--edition", "nature", "--env-frames", "60", "--sequence-length", "8", "--batch-size", "2")
    folders = tmp_path / "one", tmp_path / "two"
    words = ("dreamerv3.train", *FAST, *IMAGE, *small)
    testing.finish(start(*words, "--run", str(folders[0])))
    kill_at(start(*words, "--run", str(folders[1])), folders[1], 12, random.Random(0))
    testing.finish(start(*words, "--run", str(folders[1])))
    same_runs(*folders)


@pytest.mark.usefixtures("egl")
def test_worlds_that_render_are_trained_and_tested_without_a_word(start, tmp_path):
    """Also none of a renderer that is freed too late, when the program ends."""
    words = ("dreamerv3.train", *SMOKE, "--task", "dmc_vision_cartpole_balance", "--first-windows", "2")
    small = ("--action-repeat", "100", "--env-frames", "1200", "--sequence-length", "4", "--batch-size", "2")
    for command in ((*words, *small), ("dreamerv3.evaluate",)):
        assert testing.finish(start(*command, "--run", str(tmp_path / "run")))[1] == ""
    images = np.fromfile(tmp_path / "run" / "replay-0" / "obs-image.bin", np.uint8, 6 * 64 * 64 * 3).reshape(3, 2, -1)
    assert images.std(-1).min() > 5
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[:, 0], images[:, 1])


def test_a_finished_run_started_again_changes_nothing(trained, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*.*") if path.name not in CHANGING}
    seeds = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    try:
        train.main([*SMOKE, "--run", str(trained)])
    finally:
        torch.set_rng_state(seeds[0])
        torch.use_deterministic_algorithms(seeds[1])
    assert "trained" in capsys.readouterr().out
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_two_ranks_equal_one(start, tmp_path):
    """Gradients, summed in another order, to rounding; the return percentiles are those of the whole batch."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dreamerv3.tests.calculation")
    process = start(*launch, str(folders[1]))
    calculate(folders[0])
    testing.finish(process)
    one, two = (safetensors.torch.load_file(folder / "result.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4 * float(value.abs().max()), msg=name)


def test_two_ranks_train_and_resume(tmp_path):
    """Behind two dashes, or else torchrun takes --run for an option of its own."""
    folder = tmp_path / "run"
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dreamerv3.train", "--")
    words = ("--task", "gym", "--gym-id", "CartPole-v1", "--env-frames", "160", "--run", str(folder))
    found: list[tuple[Path, list[np.ndarray]]] = []
    for _ in range(2):
        testing.run(*launch, *FAST, *words, cwd=tmp_path)
        assert (folder / "replay-1" / "h.bin").exists()
        copy = tmp_path / f"copy{len(found)}"
        shutil.copytree(folder, copy)
        found.append((copy, [np.fromfile(path, np.float32) for path in folder.glob("*/h.bin")]))
        newest(folder).path.unlink()  # back to the checkpoint before
    testing.same_log(found[0][0], found[1][0])
    testing.same_checkpoints(found[0][0] / "train", found[1][0] / "train")
    episodes = [line for line in read_metrics(folder) if line["stage"] == "train episode"]
    assert sum(line["length"] for line in episodes) > 80, "more than the worlds of one rank can have played"
    assert all(np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_loss_that_is_not_finite_names_stage_step_term_and_checkpoint(tmp_path, monkeypatch):
    calls = []
    real = train.train_step

    def broken(*args, **names):
        calls.append(1)
        metrics, states = real(*args, **names)
        return ({**metrics, "loss_reward": torch.tensor(torch.nan)} if len(calls) == 10 else metrics), states

    monkeypatch.setattr(train, "train_step", broken)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with pytest.raises(NonFiniteError, match=r"train step \d+: loss_reward is nan; last good checkpoint: .*step-"):
            train.main([*FAST, "--run", str(tmp_path / "run")])
    finally:
        torch.use_deterministic_algorithms(deterministic)


def test_films_while_it_trains_change_nothing(trained, tmp_path, monkeypatch, capsys):
    """Log, weights, optimiser, replay: all bits. A film that cannot be written costs a line."""
    folder, films = tmp_path / "run", []
    real = video.write_video

    def write_video(path, frames, fps):
        films.append(frames.shape)
        if len(films) == 1:
            raise RuntimeError("no encoder")
        real(path, frames, fps)

    monkeypatch.setattr(pictures, "write_video", write_video)
    monkeypatch.setattr(pictures, "LENGTH", 8)
    monkeypatch.setattr(pictures, "time", SimpleNamespace(monotonic=itertools.count().__next__))  # a second a step
    seeds = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    try:
        train.main([*SMOKE, "--film-seconds", "30", "--run", str(folder)])
    finally:
        torch.set_rng_state(seeds[0])
        torch.use_deterministic_algorithms(seeds[1])
    same_runs(folder, trained)
    assert len(films) == 3
    assert "latest.webm is not written: no encoder" in capsys.readouterr().err
    assert (folder / "latest.webm").stat().st_size > 1000
    assert not (trained / "latest.webm").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--bins", "2"], "bins is 2, allowed: at least 3"),
        (["--agc", "0"], "agc must be above 0"),
        (["--momentum", "1"], "momentum must be below 1"),
        (["--set", "second_moment=1"], "second_moment must be below 1"),
        (["--return-limit", "0"], "return_limit must be above 0"),
        (["--task", "dmc_proprio_cartpole_balanc"], "did you mean 'dmc_proprio_cartpole_balance'"),
        (["--edition", "v1"], "arxiv_v2, nature"),
        (["--size", "2m"], "1m, 12m"),
        (["--return-percentiles", "5"], "two numbers"),
        (["--set", "x=1"], "'x'"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--preset", "nite"], "night"),
        (["--lr", "fast"], "fast"),
        (["--lr", "0.001", "--lr-by-size"], "--no-lr-by-size"),
        (["--task", "gym", "--gym-id", "NoSuchWorld-v0"], "NoSuchWorld"),
        (["--task", "gym", "--gym-id", "Blackjack-v1"], "Blackjack-v1"),
    ],
)
@pytest.mark.parametrize("program", [train, evaluate])
def test_bad_options_end_in_one_line_and_leave_nothing(program, words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        program.main(["--preset", "smoke", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert program is evaluate or complaint in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "ratio", "rate"), [("200m", 32, 4.0e-5), ("12m", 512, 4.9e-5), ("1m", 512, 2.6e-4)])
def test_the_learning_rate_by_size_is_that_of_the_authors_rule(size, ratio, rate):
    config = Config(size=size, train_ratio=ratio, lr_by_size=True)
    assert float(f"{train.learning_rate(config):.1e}") == rate
    for other in (Config(), replace(config, lr_by_size=False), replace(config, train_ratio=0.0)):
        assert train.learning_rate(other) == 4e-5


def test_a_run_of_other_settings_is_refused(trained, capsys):
    with pytest.raises(SystemExit) as end:
        train.main([*SMOKE, "--run", str(trained), "--size", "12m"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "size (was 1m, now 12m)" in error


def end_of(command, capsys) -> str:
    """What a command that must end with exit code 2 says."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        with pytest.raises(SystemExit) as end:
            command()
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words", "reason"),
    [
        ({"size": "12m"}, ("--size", "12m"), "the checkpoint is of another size or world: agent: actor"),
        ({"envs": 4}, ("--envs", "4"), "the replay is of another size or world: "),
        ({"edition": "nature"}, ("--edition", "nature"), "the checkpoint is of another size or world: agent: critic"),
    ],
)
def test_a_run_changed_by_hand_is_refused_and_loses_nothing(changed, words, reason, trained, tmp_path, capsys):
    """A run of an earlier version: newer ones do not take another config.json for theirs."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for name, change in (("config.json", changed), ("meta.json", {"identity": ""})):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.name not in CHANGING}
    error = end_of(lambda: train.main([*SMOKE, "--run", str(folder), *words]), capsys)
    assert error.count("\n") == 1
    assert f"{folder}" in error
    assert reason in error
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.name not in CHANGING} == before


def test_a_run_without_a_good_checkpoint_or_with_a_replay_gone_says_so(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "replay-0" / "h.bin").unlink()
    assert "h.bin: the replay is" in end_of(lambda: train.main([*SMOKE, "--run", str(folder)]), capsys)
    for path in folder.glob("train/step-*"):
        path.write_bytes(path.read_bytes()[:-1])
    for command in (lambda: train.main([*SMOKE, "--run", str(folder)]), lambda: evaluate.main(["--run", str(folder)])):
        assert end_of(command, capsys).splitlines()[-1].startswith("error: every checkpoint in ")


def test_the_log_tells_updates_frames_and_episodes(trained):
    found = testing.log_lines(trained)
    assert [line["updates"] for line in found if line["stage"] == "train"][-1] == 20
    assert found[-1]["env_frames"] == 400
    names = {"loss", "loss_rec/position", "loss_dyn", "loss_actor", "return_scale", "entropy"}
    assert names <= set(found[-1])

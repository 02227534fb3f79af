"""Recorded play and own videos: what is written comes back, is trained on and tested; each fault is one line that
leaves nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from common import checkpoint, testing
from common.config import parse
from common.seeding import derive_seed
from common.video import write_video
from diamond import convert, data, evaluate, recorder, rollouts, train
from diamond.agent import new_agent
from diamond.collect import Player
from diamond.config import PRESETS, TASKS, Config
from diamond.env import new_game
from diamond.replay import Replay

LENGTHS = {"a": 30, "b": 22, "c": 12}
HISTORY = 4


def videos(folder, lengths=LENGTHS):
    """Videos of one grey level a frame, 24 x 32 pixels, and an action for each."""
    for name, length in lengths.items():
        levels = 40 + 5 * np.arange(length, dtype=np.uint8)
        write_video(folder / f"{name}.webm", np.broadcast_to(levels[:, None, None, None], (length, 24, 32, 3)), 15)
        (folder / f"{name}.txt").write_text("".join(f"{t % 3}\n" for t in range(length)))
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Data of three videos; the last is kept for the test. Tests must not change it."""
    folder = tmp_path_factory.mktemp("own")
    convert.main([str(videos(folder / "videos")), str(folder / "data"), "--size", "16"])
    return folder / "data"


def test_videos_come_back_with_their_actions(converted):
    found = data.load(str(converted), HISTORY)
    assert (found.counts, found.actions, found.image_size, found.tested) == ((30, 22, 12), 3, 16, 1)
    assert found.steps == 29 + 21
    assert found.action[1].tolist() == [t % 3 for t in range(21)]
    levels = found.frames(1).mean((1, 2, 3))
    np.testing.assert_allclose(levels, 40 + 5 * np.arange(22), atol=4)


def test_the_test_is_of_the_last_video_alone(converted):
    found = data.load(str(converted), HISTORY)
    piece = rollouts.recorded(found, Config(image_size=16, test_length=4, test_rollouts=3))
    assert piece.frames.shape == (3, 8, 3, 16, 16)
    assert np.array_equal(piece.frames[:, 0], found.frames(2)[[0, 2, 4]])
    assert piece.action[1].tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    long = rollouts.recorded(found, Config(image_size=16, test_length=40, test_rollouts=3))
    assert long.is_real.sum(1).tolist() == [12]


def test_a_world_model_is_trained_on_them_and_tested(converted, tmp_path):
    folder = tmp_path / "run"
    words = ["--preset", "smoke", "--task", "own", "--data", str(converted), "--env-steps", "1000"]
    words += ["--denoiser-first", "20", "--checkpoint-seconds", "0", "--run", str(folder)]
    start = testing.start("diamond.train", *words, cwd=tmp_path)
    testing.kill_when(start, lambda: testing.has_step(folder, "train", 5))
    train.main(words)
    found = checkpoint.load_latest(folder / "train")
    assert found is not None
    assert (found.state["state"]["count"], found.state["state"]["is_finished"]) == (50, True)
    replay = Replay(folder / "replay-0", 50, 16)
    replay.restore(50)
    assert replay.lengths == [29, 21]
    recordings = data.load(str(converted), HISTORY)
    assert np.array_equal(replay.frames[29:50], recordings.frames(1)[:-1])
    assert np.array_equal(replay.finals[1], recordings.frames(1)[-1])
    evaluate.main(["--run", str(folder)])
    record = json.loads((folder / "record.json").read_text())
    assert (record["claim"], record["metric"], record["episodes"]) == ("video", "drift", 2)
    assert record["budget"]["env_frames"] == 50  # nothing is known of a frame skip


def broken(folder, fault):
    if fault == "cut":
        whole = (folder / "b.webm").read_bytes()
        (folder / "b.webm").write_bytes(whole[: len(whole) // 2])
    elif fault == "half a header":
        (folder / "b.avi").write_bytes(b"RIFF\x00\x10\x00\x00AVI LIST" + b"no video" * 100)
        (folder / "b.webm").unlink()
    elif fault == "noise":
        (folder / "b.webm").write_bytes(b"no video" * 100)
    elif fault == "few":
        (folder / "b.txt").write_text("0\n1\n")
    elif fault == "word":
        (folder / "b.txt").write_text("0\nleft\n")
    elif fault == "time":
        (folder / "b.txt").write_text("1795899600000000000000\n" * 22)
    elif fault == "no actions":
        (folder / "b.txt").unlink()
    elif fault == "other size":
        write_video(folder / "b.webm", np.zeros((22, 26, 32, 3), np.uint8), 15)
    elif fault == "twice":
        shutil.copy(folder / "a.webm", folder / "a.mp4")
    elif fault == "alone":
        for path in folder.glob("[bc].*"):
            path.unlink()


@pytest.mark.parametrize(
    ("fault", "size", "message"),
    [
        ("cut", 16, "b.webm: "),
        ("half a header", 16, "b.avi: no video that can be read"),
        ("noise", 16, "b.webm: no video that can be read"),
        ("few", 16, "b.webm: 22 frames and 2 actions; one for each frame is needed"),
        ("word", 16, "b.txt: line 2 is 'left', not a whole number from 0 to 99,999"),
        ("time", 16, "b.txt: line 1 is '1795899600000000000000', not a whole number from 0 to 99,999"),
        ("no actions", 16, "b.txt: no action file"),
        ("other size", 16, "b.webm: frames of 26 x 32 pixels, those of a.webm have 24 x 32 pixels"),
        ("twice", 16, "two videos are named a"),
        ("alone", 16, "1 videos; at least two are needed"),
        ("", 32, "a.webm: frames of 24 x 32 pixels are smaller than --size 32"),
        ("", 20, "--size must be a multiple of 16, not 20"),
    ],
)
def test_a_fault_of_the_videos_is_one_line_and_leaves_nothing(tmp_path, capfd, fault, size, message):
    folder = videos(tmp_path / "videos")
    broken(folder, fault)
    with pytest.raises(SystemExit) as error:
        convert.main([str(folder), str(tmp_path / "data"), "--size", str(size)])
    lines = capfd.readouterr().err.strip().splitlines()
    assert (error.value.code, len(lines)) == (2, 1), lines
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda folder: shutil.rmtree(folder), (), "does not exist"),
        (lambda folder: (folder / "data.json").write_text("{"), (), "is damaged"),
        (lambda folder: (folder / "00000.frames").write_bytes(b"1" * 100), (), "00000.frames"),
        (lambda folder: None, ("--image-size", "32"), "its frames have 16 rows, not 32"),
        (lambda folder: None, ("--history", "12"), "no more than the history 12"),
    ],
)
def test_damaged_data_is_one_line(converted, tmp_path, capsys, change, words, message):
    folder = tmp_path / "data"
    shutil.copytree(converted, folder)
    change(folder)
    argv = ["--preset", "smoke", "--task", "own", "--data", str(folder), "--run", str(tmp_path / "run"), *words]
    if words[:1] == ("--history",):
        argv += ["--denoiser-cond", "96"]
    with pytest.raises(SystemExit) as error:
        train.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (error.value.code, len(lines)) == (2, 1), lines
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


def test_own_data_must_be_named(capsys):
    with pytest.raises(SystemExit):
        train.main(["--preset", "smoke", "--task", "own"])
    assert "needs --data FOLDER" in capsys.readouterr().err


PONG = ["--preset", "smoke", "--task", "video_pong", "--env-steps", "60", "--denoiser-first", "3"]


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Recorded play of Pong. Tests must not change it."""
    folder = tmp_path_factory.mktemp("play") / "play"
    recorder.main([*PONG, "--data", str(folder)])
    return folder


def test_recorded_play_is_what_the_run_would_play_itself(play, tmp_path):
    """Frames, actions, weights and the measured drift are equal; and no game is made."""
    train.main([*PONG, "--run", str(tmp_path / "played")])
    evaluate.main(["--run", str(tmp_path / "played")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diamond.env.Atari", None)
        train.main([*PONG, "--data", str(play), "--run", str(tmp_path / "read")])
        evaluate.main(["--run", str(tmp_path / "read")])
    ours, theirs = (checkpoint.load_latest(tmp_path / name / "train") for name in ("read", "played"))
    assert ours is not None
    assert theirs is not None
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors if "denoiser" in name)
    replays = [Replay(tmp_path / name / "replay-0", 60, 16) for name in ("read", "played")]
    for replay in replays:
        replay.restore(60)
    assert np.array_equal(replays[0].frames, replays[1].frames)
    assert np.array_equal(replays[0].facts["action"], replays[1].facts["action"])
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("read", "played")]
    assert records[0]["measurements"] == records[1]["measurements"]
    assert [record["budget"]["env_frames"] for record in records] == [4 * 60, 4 * 60]


def test_each_episode_is_a_video_that_ends_with_its_last_frame():
    """Of the coin's video an episode has 100 frames."""
    words = ["--preset", "smoke", "--task", "video_coin", "--env-steps", "250"]
    config, _ = parse(Config, TASKS, PRESETS, words, prog="", description="")
    policy = new_agent(config, 1).actor_critic
    found = list(recorder.played(Player(policy, config, torch.device("cpu")), 250))
    assert [len(video.frames) for video in found] == [101, 101, 51]
    assert [len(video.action) for video in found] == [100, 100, 50]
    game = new_game(config)
    frames = [game.reset(derive_seed(config.seed, "game", 1) % 2**31), *(game.step(0).frame for _ in range(100))]
    assert np.array_equal(found[1].frames, np.stack(frames))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "video_boxing"), "holds pong, not play of boxing"),
        (("--image-size", "32"), "its frames have 16 rows, not 32"),
        (("--env-steps", "61"), "has 60 steps to train on, not 61"),
        (("--task", "catch"), "data is for task own and the tasks video_*, not for catch"),
    ],
)
def test_play_of_another_game_size_or_length_is_one_line(play, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as error:
        train.main([*PONG, "--data", str(play), "--run", str(tmp_path / "run"), *words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (error.value.code, len(lines)) == (2, 1), lines
    assert message in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name the folder to write with --data"),
        (("--data", "."), ". exists; give a folder that does not"),
        (("--data", "new", "--task", "own"), "only the play of a task video_* is recorded, not that of own"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        recorder.main([*PONG, *words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (error.value.code, len(lines)) == (2, 1), lines
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []

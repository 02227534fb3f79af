"""The test of a run: what an episode's return depends on, the curve, and the files of an evaluated run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common import testing
from common.record import RECORD_KEYS
from dreamerv3 import evaluate, pictures, train
from dreamerv3.agent import new_agent
from dreamerv3.config import Config
from dreamerv3.env import Worlds, make_world
from dreamerv3.evaluate import agent_policy, play, random_policy, training_curve
from dreamerv3.replay import Replay
from dreamerv3.spaces import Sizes
from dreamerv3.tests.conftest import SMOKE

CONFIG = Config(task="gym", gym_id="CartPole-v1", size="1m")


def worlds(count):
    return Worlds(lambda: make_world(CONFIG), range(count), 0, "test")


def test_random_play_depends_on_the_seed_alone():
    returns = []
    for seed in (0, 0, 1):
        with worlds(5) as games:
            returns.append(play(games, random_policy(games, seed)))
    assert returns[0] == returns[1] != returns[2]
    assert len(returns[0]) == 5
    assert 8 <= min(returns[0]) <= max(returns[0]) < 150


def test_the_agent_plays_and_repeats_itself():
    found: list[Any] = []
    for _ in range(2):
        with worlds(3) as games:
            agent = new_agent(games.spaces, games.actions, CONFIG)
            if found:
                agent.load_state_dict(found[0][0])
            found.append((agent.state_dict(), play(games, agent_policy(agent, 3, 0))))
    assert found[0][1] == found[1][1]
    assert all(8 <= value <= 500 for value in found[0][1])


def test_the_training_curve_has_the_published_bins():
    ends = [(400, 1.0), (1000, 3.0), (1001, 10.0), (3500, 5.0), (3600, 7.0)]
    lines = [{"stage": "train episode", "env_frames": frames, "total": total} for frames, total in ends]
    curve, last = training_curve([*lines, {"stage": "train"}], 1000)
    assert (curve["x"], curve["y"]) == ([1000, 2000, 4000], [2.0, 10.0, 6.0])
    assert last == [5.0, 7.0]
    assert training_curve([], 1000)[1] == []


def test_each_control_of_robustness_has_a_claim_of_its_own():
    cpu = Config(env_frames=20_000, train_ratio=80.0)
    configs = [
        cpu,
        replace(cpu, free_nats=0.0),
        replace(cpu, use_symlog=False),
        replace(cpu, use_two_hot=False),
        replace(cpu, env_frames=5000, train_ratio=32.0),
        replace(cpu, train_ratio=512.0, free_nats=0.5),
    ]
    words = [evaluate.claim(config, "cpu") for config in configs]
    assert words[:4] == ["learns", "learns-free0", "learns-no-symlog", "learns-no-two-hot"]
    assert words[4:] == ["learns-frames5000-ratio32", "learns-free0.5-ratio512"]
    assert evaluate.claim(Config(env_frames=40_000), "night") == "learns"
    for preset, config in (("cpu", cpu), ("night", Config(env_frames=40_000))):
        assert evaluate.claim(replace(config, lr_by_size=True), preset) == "learns-lr-by-size"
    assert evaluate.claim(replace(cpu, train_ratio=0.0), "cpu") == "learns-untrained"
    assert evaluate.claim(replace(cpu, train_ratio=0.0, free_nats=0.0), "cpu") == "learns-free0-untrained"


def test_the_score_of_crafter():
    """Two achievements at 50 % and 0 %: exp(ln(51) / 2) - 1."""
    lines = [{"stage": "train episode", "total": 1.0, "achievement a": float(k), "achievement b": 0.0} for k in (0, 1)]
    assert evaluate.crafter_score(lines) == pytest.approx(51**0.5 - 1)


def check_record(folder, output):
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["finished"] is True
    assert record["claim"] == "learns"
    samples = [record, *record["controls"].values(), *record["measurements"].values()]
    for part in samples:
        assert len(part["values"]) == part["episodes"] >= 1
        assert part["value"] == pytest.approx(sum(part["values"]) / part["episodes"])
    controls = record["controls"]
    assert controls["twice uniform random"]["value"] == pytest.approx(2 * controls["uniform random"]["value"])
    for curve in record["curves"].values():
        assert len(curve["x"]) == len(curve["y"]) >= 1
    assert f"{record['value']:.1f}" in output
    for name in ("curves.png", "latents.png"):
        assert (folder / name).stat().st_size > 1000
    film = cv2.VideoCapture(str(folder / "video.webm"))
    frames = []
    while True:
        ok, frame = film.read()
        if not ok:
            break
        frames.append(frame)
    film.release()
    assert len(frames) > 5
    assert min(frame.std() for frame in frames) > 5
    return record


def test_a_trained_run_is_tested_filmed_and_recorded(trained, start, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    output, errors = testing.finish(start("dreamerv3.evaluate", "--run", str(folder)))
    assert errors == ""
    record = check_record(folder, output)
    assert (record["paper"], record["preset"], record["seed"]) == ("dreamerv3", "smoke", 0)
    assert record["protocol"] == "dmc_proprio-episodes"
    assert record["budget"] == {"env_frames": 400, "updates": 20}
    assert sum(record["parameters"].values()) == 637_576


def test_a_run_without_updates_is_tested_too(tmp_path):
    deterministic = torch.are_deterministic_algorithms_enabled()
    for frames in (4000, 1000):  # with the end of an episode, and without any curve
        folder = tmp_path / f"{frames}"
        words = ("--train-ratio", "0", "--action-repeat", "100", "--env-frames", str(frames))
        train.main([*SMOKE, *words, "--run", str(folder)])
        evaluate.main(["--run", str(folder)])
        record = json.loads((folder / "record.json").read_text())
        assert record["budget"]["updates"] == 0
        assert list(record["curves"]) == (["training return"] if frames == 4000 else [])
        assert (folder / "curves.png").exists() == (frames == 4000)
        protocols = {name: part["protocol"] for name, part in record["measurements"].items()}
        assert protocols == ({"last training episodes": "dmc_proprio-training"} if frames == 4000 else {})
    torch.use_deterministic_algorithms(deterministic)


def test_a_film_of_an_image_world_has_four_panels_and_three_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LENGTH", 8)
    config = Config(task="crafter", size="1m", test_episodes=1)
    with Worlds(lambda: make_world(config), [0], 0, "film") as games:
        agent = new_agent(games.spaces, games.actions, config)
        pictures.film(agent, games, agent_policy(agent, 1, 0), config, tmp_path)
    film = cv2.VideoCapture(str(tmp_path / "video.webm"))
    ok, frame = film.read()
    film.release()
    assert ok
    assert frame.shape == (128 + 3 * pictures.HEIGHT, 4 * 128, 3)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_can_be_shown(channels):
    shape = (6, 64, 64, channels)
    shown = {part: {"x": np.full(shape, 0.5)} for part in ("open loop", "dream")}
    assert pictures._image_film(np.zeros(shape, np.uint8), shown, "x").shape == (6, 128, 4 * 128, 3)


def test_below_a_film_stands_what_the_model_expects():
    with worlds(1) as games:
        agent = new_agent(games.spaces, games.actions, CONFIG)
    feature = torch.randn(4, agent.world.rssm.sizes.feature)
    with torch.no_grad():
        agent.critic.mlp.out.bias[CONFIG.bins - 1] = 40.0  # the highest bin alone
    found = pictures.signals(agent, feature)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(
        ("reward", "value", "continue"), (4,)
    )
    assert np.all(found["reward"] == 0)
    assert found["value"].min() > 1e8
    assert np.all((found["continue"] > 0) & (found["continue"] < 1 / agent.world.discount))


def test_the_latest_film_is_of_the_newest_long_stretch_of_one_episode(tmp_path):
    """Of the longest as long as all are short; never across a beginning."""
    with worlds(1) as games:
        rows = Replay(tmp_path, games.spaces, games.actions, Sizes(4, 4, 4, 4, 4, 4, 1), 2, 1000, 4).rows
    for number in range(200):
        begins = number in (0, 30, 40, 130, 190)
        values: dict[str, Any] = {
            "z": np.zeros((2, 4), np.uint8),
            "obs/obs": np.full((2, 4), number, np.float32),
            "action": np.full(2, number % 2, np.int32),
        }
        values |= {"reward": np.full(2, number, np.float32), "h": np.zeros((2, 4), np.float32)}
        flags = dict.fromkeys(("is_first", "is_last", "is_terminal"), np.array([begins, False]))
        rows.add(values | flags)
        found = pictures.remembered(rows)
        first, last = found.reward[[0, -1]]
        assert list(found.obs) == ["obs"]
        assert found.obs["obs"].shape == (len(found.actions), 4)
        assert len(found.reward) == last - first + 1
        if number in (20, 45, 110, 150, 199):
            expected = {20: (0, 20), 45: (0, 29), 110: (51, 110), 150: (70, 129), 199: (130, 189)}
            assert (first, last) == expected[number]


def test_an_imagination_is_long_enough_and_leaves_reality_alone():
    with worlds(1) as games:
        agent = new_agent(games.spaces, games.actions, CONFIG)
        obs = {"obs": np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)}
        actions = np.zeros(9, np.int64)
        states, open_loop, dream = pictures.imaginations(agent, obs, actions, 0)
        assert states.h.shape[0] == 9
        assert open_loop.h.shape[0] == dream.h.shape[0] == 4
        obs["obs"][5:] += 1  # not seen by either
        _, again, _ = pictures.imaginations(agent, obs, actions, 0)
        assert np.array_equal(open_loop.h.numpy(), again.h.numpy())


def test_a_run_that_is_not_there_or_not_ended_or_of_another_size_is_named_in_one_line(trained, tmp_path, capsys):
    unfinished, other = tmp_path / "unfinished", tmp_path / "other"
    shutil.copytree(trained, unfinished)
    max(unfinished.glob("train/step-*")).unlink()
    shutil.copytree(trained, other)
    for name, change in (("config.json", {"size": "12m"}), ("meta.json", {"identity": ""})):
        (other / name).write_text(json.dumps(json.loads((other / name).read_text()) | change))
    cases = (
        (tmp_path / "none", "is no run folder"),
        (unfinished, "of 100 steps stands there unharmed"),
        (other, "another size or world: agent: actor"),
    )
    for folder, reason in cases:
        with pytest.raises(SystemExit) as end:
            evaluate.main(["--run", str(folder)])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{folder}" in error
        assert reason in error
    assert not (tmp_path / "none").exists()


def test_an_unfinished_run_is_tested_as_far_as_it_has_come_if_that_is_asked_for(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "LENGTH", 8)
    folder, deterministic = tmp_path / "run", torch.are_deterministic_algorithms_enabled()
    shutil.copytree(trained, folder)
    max(folder.glob("train/step-*")).unlink()
    step = int(max(folder.glob("train/step-*")).stem.split("-")[1])
    words = ["--run", str(folder), "--unfinished"]
    evaluate.main([*words, "--test-episodes", "1"])
    torch.use_deterministic_algorithms(deterministic)
    record = json.loads((folder / "record.json").read_text())
    assert record["finished"] is False
    assert record["budget"]["env_frames"] == 4 * step < 400
    lines = [line for line in testing.log_lines(folder) if line["stage"] == "train" and line["step"] <= step]
    assert record["curves"].get("dyn", {"x": []})["x"] == [line["updates"] for line in lines]
    assert f"unfinished: {step} of 100 steps" in capsys.readouterr().out
    shutil.rmtree(folder / "train")
    with pytest.raises(SystemExit) as end:
        evaluate.main(words)
    assert end.value.code == 2
    assert "has no checkpoint yet" in capsys.readouterr().err
    torch.use_deterministic_algorithms(deterministic)

"""The test in the real game: what an episode's return depends on, and the files of an evaluated run."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from common.config import parse
from common.record import RECORD_KEYS
from common.run import run_under_test
from ha2018 import env, evaluate, rollout, train, watch
from ha2018.agent import Agent
from ha2018.config import PRESETS, TASKS, Config
from ha2018.controller import Controller
from ha2018.evaluate import fresh_seeds, play, random_returns
from ha2018.memory import MDNRNN
from ha2018.random_play import RANDOM_POLICIES
from ha2018.rollout import open_games
from ha2018.tests.conftest import SMOKE
from ha2018.vision import VAE

SEEDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def agent():
    """Never trained, but its actions depend on z and on the state."""
    torch.manual_seed(0)
    memory = MDNRNN(4, 1, 6, 5, predicts_restart=True)
    return Agent(VAE(4).eval(), memory, Controller("zch"), torch.randn(16))


def returns_of(agent, seeds, max_steps, games):
    with open_games(Config(), min(games, len(seeds)), max_steps) as games:
        return play(agent, seeds, games)


def random_ones(policy, seeds, max_steps, games):
    with open_games(Config(), games, max_steps) as games:
        return random_returns(policy, seeds, games, "doom")


@pytest.fixture
def actions(monkeypatch):
    """Every action that is taken, in order."""
    taken = []

    def command(action):
        taken.append(float(action[0]))
        return env.command(action)

    monkeypatch.setattr(rollout, "command", command)
    return taken


def test_random_returns_depend_on_the_seed_alone():
    for policy in RANDOM_POLICIES["doom"]:
        returns = random_ones(policy, SEEDS, 110, 3)
        assert returns == random_ones(policy, SEEDS, 110, 1)
        assert returns[1] == returns[3]
        assert max(returns) <= 110
    assert len(set(random_ones("uniform", [0, 1, 2, 3, 4, 5], 600, 2))) > 2


def test_play_is_deterministic(agent, actions):
    first = returns_of(agent, SEEDS, 110, 2)
    taken = actions.copy()
    actions.clear()
    assert returns_of(agent, SEEDS, 110, 2) == first
    assert actions == taken
    assert len(taken) == sum(first)
    assert first[1] == first[3]


def test_an_episode_does_not_begin_with_the_state_of_the_one_before(agent, actions):
    returns_of(agent, [7], 25, 1)
    alone = actions.copy()
    actions.clear()
    returns_of(agent, [2, 7], 25, 1)
    assert actions[25:] == pytest.approx(alone, abs=1e-5)


def test_games_side_by_side_do_not_mix(agent, actions):
    alone = []
    for seed in (6, 7, 8):
        returns_of(agent, [seed], 25, 1)
        alone.append(actions.copy())
        actions.clear()
    assert returns_of(agent, [6, 7, 8], 25, 3) == [25, 25, 25]
    for k in range(3):
        assert actions[k::3] == pytest.approx(alone[k], abs=1e-5)
    assert alone[0] != alone[1]


def test_games_in_two_halves_answer_as_in_one(agent, monkeypatch):
    """With more episodes than games, so that both halves begin and end episodes at different times."""
    seeds = list(range(9))
    whole = returns_of(agent, seeds, 300, 4)
    monkeypatch.setattr(rollout, "DIVIDED_GAMES", 4)
    assert returns_of(agent, seeds, 300, 4) == whole
    assert len(set(whole)) > 1


def test_fresh_seeds_are_distinct_and_fit_the_game():
    seeds = fresh_seeds(0, 1000)
    assert len({*seeds, *fresh_seeds(1, 1000)}) == 2000
    assert fresh_seeds(0, 10) == seeds[:10]
    assert 0 <= min(seeds) < max(seeds) < 2**31


def test_a_trained_run_is_tested_filmed_and_recorded(trained, start, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames"))
    process = start("ha2018.evaluate", "--run", str(folder))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["finished"] is True
    assert record["claim"] == "dream-transfer"
    assert (record["paper"], record["task"], record["preset"], record["seed"]) == ("ha2018", "doom", "smoke", 0)
    assert record["protocol"] == "doom-4-cap200"
    assert record["parameters"] == {"V": 4_446_915, "M": 44_385, "C": 128}
    assert record["budget"]["generations"] == 10
    assert record["budget"]["rollouts"] == 10 * 8 * 2
    blind = {"still", "left", "right", "best blind sweep", "C blind"}
    assert set(record["controls"]) == {"uniform random", "held random", *blind}
    assert {"dream return", "dream uniform random", *(f"dream {name}" for name in blind)} <= set(record["measurements"])
    samples = [record, *record["controls"].values(), *record["measurements"].values()]
    for part in samples:
        assert len(part["values"]) == part["episodes"] >= 1
        assert part["value"] == pytest.approx(sum(part["values"]) / part["episodes"])
        assert isinstance(part["protocol"], str)
    for curve in record["curves"].values():
        assert len(curve["x"]) == len(curve["y"]) >= 2
    assert f"{record['value']:.1f}" in output
    assert (folder / "curves.png").stat().st_size > 1000
    film = cv2.VideoCapture(str(folder / "video.webm"))
    ok, frame = film.read()
    film.release()
    assert ok
    assert frame.std() > 5


def test_a_random_policy_is_recorded_without_a_run(tmp_path, capsys):
    folder = tmp_path / "random"
    evaluate.main(["--random", "none", "--preset", "smoke", "--run", str(folder)])
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["claim"] == "random-none"
    assert record["values"] == random_ones("none", fresh_seeds(0, 4), 200, 2)
    assert record["protocol"] == "doom-4-cap200"
    assert str(folder / "record.json") in capsys.readouterr().out


def test_a_run_that_is_not_there_or_not_ended_is_named_in_one_line(trained, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained, unfinished, ignore=shutil.ignore_patterns("frames", "controller*"))
    for folder, reason in ((tmp_path / "none", "is no run folder"), (unfinished, "training has not ended")):
        with pytest.raises(SystemExit) as end:
            evaluate.main(["--run", str(folder)])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{folder}" in error
        assert reason in error
    assert not (tmp_path / "none").exists()
    assert not (unfinished / "record.json").exists()


def copy_of(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames", "latents"))
    return folder


def is_refused(folder, capsys, *words):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(folder)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for word in words:
        assert str(word) in error.splitlines()[-1]
    assert not (folder / "record.json").exists()


@pytest.mark.parametrize(("stage", "total"), [("vision", 4), ("memory", 20)])
def test_a_record_is_never_of_an_earlier_step_than_the_last(trained, tmp_path, capsys, stage, total):
    """A damaged newest checkpoint fell back to the one before, and a finished record was written of it."""
    folder = copy_of(trained, tmp_path)
    newest = folder / stage / f"step-{total:09d}.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    is_refused(folder, capsys, folder / stage, f"step {total - 1} of {total}")


def test_a_flipped_byte_in_the_controller_is_named(trained, tmp_path, capsys):
    folder = copy_of(trained, tmp_path)
    path = folder / "controller.safetensors"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    is_refused(folder, capsys, path, "checksum")


def test_the_networks_of_another_seed_are_no_networks_of_this_run(trained, tmp_path, capsys):
    other, folder = tmp_path / "other", copy_of(trained, tmp_path)
    train.main([*SMOKE, "--seed", "1", "--run", str(other), "--model-from", str(trained), "--stage", "memory"])
    for path in (folder / "memory").iterdir():
        path.unlink()
    for path in (other / "memory").iterdir():
        shutil.copy(path, folder / "memory")
    is_refused(folder, capsys, folder / "memory")


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_test(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "record_of_random", lambda *_: pytest.fail("the test has run"))
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--random", "none", "--preset", "smoke", "--run", str(path)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error


def test_the_settings_of_the_test_are_free_and_those_of_the_training_choose_the_run(trained, tmp_path, monkeypatch):
    """The run is found without --run whatever the test settings are; another training setting is another run."""
    monkeypatch.chdir(tmp_path)
    config, options = parse(
        Config, TASKS, PRESETS, ["--preset", "smoke", "--test-episodes", "3"], prog="", description=""
    )
    folder = Path("runs/ha2018/doom-smoke-seed0")
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("frames"))
    info, found = run_under_test("ha2018", Config, config, options, evaluate.TEST_SETTINGS)
    assert (info["folder"], found.test_episodes, found.generations) == (folder, 3, 10)
    for words in (["--run", str(folder), "--temperature", "0.5"], ["--temperature", "0.5", "--test-episodes", "3"]):
        with pytest.raises(SystemExit) as end:
            evaluate.main(["--preset", "smoke", *words])
        assert end.value.code == 2


def test_a_run_of_another_version_is_named_in_one_line(trained, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(trained, old, ignore=shutil.ignore_patterns("frames"))
    for name in ("config.json", "meta.json"):
        values = json.loads((old / name).read_text())
        if name == "config.json":
            values["vision_layers"] = 4
        else:
            del values["identity"]
        (old / name).write_text(json.dumps(values))
    for program in (evaluate, watch):
        with pytest.raises(SystemExit) as end:
            program.main(["--run", str(old)])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "vision_layers" in error


def test_claims_tell_apart_what_c_sees_and_dreams():
    """The words by which the rows of the report find their records."""
    car = {**TASKS["car"], "task": "car"}
    claims = {
        "dream-transfer": Config(),
        "dream-transfer-tau0.10": Config(temperature=0.1),
        "dream-transfer-tau1.00": Config(temperature=1.0),
        "dream-transfer-untrained": Config(memory_updates=0),
        "real-zh": Config(**car),
        "real-zh-untrained": Config(**car, memory_updates=0),
        "real-z": Config(**{**car, "controller_inputs": "z"}),
        "real-z-hidden40": Config(**{**car, "controller_inputs": "z"}, controller_hidden=40),
    }
    for claim, config in claims.items():
        assert evaluate.claim(config) == claim
        assert evaluate.protocol(config) == ("doom-100" if config.task == "doom" else "carracing-100")


def test_the_population_is_shown_at_what_the_published_run_had_spent():
    """Generations of a quarter of the published steps; a trial costs steps too, but is not part of the population."""
    spent = evaluate.PUBLISHED_STEPS // 4
    lines = [{"stage": "controller", "step": k + 1, "env_frames": spent, "pop_mean": float(k)} for k in range(5)]
    trial = {"stage": "controller trial", "step": 2, "env_frames": 10**9}
    curve = evaluate.population_at_equal_steps([*lines[:2], trial, *lines[2:]])
    assert curve == {
        "x": [0.25, 0.5, 0.75, 1.0, 1.25],
        "y": [0.0, 1.0, 2.0, 3.0, 4.0],
        "x_unit": "generation",
        "y_unit": "return",
    }

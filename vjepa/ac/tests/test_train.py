"""The real commands: killed and resumed, controls, bad options, on two ranks; and that training learns."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, dist, eager, testing
from common.config import from_dict, parse
from common.run import Run
from vjepa.ac import build, data, evaluate, pictures, play, train
from vjepa.ac.config import PRESETS, TASKS, Config
from vjepa.ac.tests.conftest import SMOKE, WALL
from vjepa.ac.worlds import rooms
from vjepa.ac.worlds.catalogue import new_world
from vjepa.ac.worlds.rooms import WALL as WALL_WORLD
from vjepa.ac.worlds.world import new_episodes, seeds_of_test

TOTAL = 24


def config_of(*words: str) -> Config:
    return parse(Config, TASKS, PRESETS, [*words], prog="test", description="")[0]


def same_run(ours: Path, theirs: Path, stages: tuple[str, ...]) -> None:
    testing.same_log(ours, theirs)
    for stage in stages:
        testing.same_checkpoints(ours / stage, theirs / stage)
    for place in sorted((theirs / "snapshots").iterdir()):
        testing.same_checkpoints(ours / "snapshots" / place.name, place)


def test_killed_twice_and_resumed_equals_one_go(trained, start, tmp_path):
    folder, rng = tmp_path / "run", random.Random(0)
    words = ("vjepa.ac.train", *SMOKE, "--run", str(folder))
    for share in (0.2, 0.6):
        is_time = functools.partial(testing.has_step, folder, "training", int(share * TOTAL) - rng.randint(0, 2))
        testing.kill_when(start(*words), is_time)
        found = checkpoint.load_latest(folder / "training")
        assert found is not None
        assert found.step < TOTAL, "killed too late to show anything"
        found.path.unlink()
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"stage": "training", "st')
    testing.finish(start(*words))
    same_run(folder, trained, ("training",))
    assert len(json.loads((folder / "meta.json").read_text())["restarts"]) == 2


def test_both_stages_of_the_frozen_encoder_are_resumed(trained_wall, start, tmp_path):
    folder = tmp_path / "run"
    words = ("vjepa.ac.train", *WALL, "--run", str(folder))
    for stage, step in (("pretraining", 2), ("post-training", 8)):
        testing.kill_when(start(*words), functools.partial(testing.has_step, folder, stage, step))
    (folder / data.WALKS).write_bytes(b"half a file")
    testing.finish(start(*words))
    same_run(folder, trained_wall, ("pretraining", "post-training"))


@pytest.mark.parametrize("name", ["trained", "trained_wall"])
def test_a_run_is_tested_and_leaves_its_record(name, start, request):
    folder = request.getfixturevalue(name)
    testing.finish(start("vjepa.ac.evaluate", "--run", str(folder)))
    record = json.loads((folder / "record.json").read_text())
    assert (record["paper"], record["task"]) == ("vjepa", "two-rooms" if name == "trained" else "wall")
    assert record["episodes"] == 6, "three episodes with the networks of two epochs"
    assert set(record["values"]) <= {0.0, 100.0}
    assert record["controls"]["random policy"]["episodes"] == evaluate.RANDOM_EPISODES
    assert record["measurements"]["solved at the start"]["protocol"] == record["protocol"]
    with np.load(folder / "traces.npz", allow_pickle=False) as traces:
        assert traces["states"].shape[:3] == (2, 3, record["config"]["budget"] + 1)
    evaluate.main(["--run", str(folder)])
    again = json.loads((folder / "record.json").read_text())
    for part in ("value", "values", "controls"):
        assert again[part] == record[part]
    assert again["measurements"]["distance when judged"] == record["measurements"]["distance when judged"]
    assert {path.name for path in folder.iterdir()} >= {"curves.png", "ways.png", "video.webm"}


def test_a_test_that_was_interrupted_at_its_end_plans_no_episode_again(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    words = ("--updates", "0", "--episodes", "2", "--budget", "4", "--epochs", "1", "--checkpoints", "1")
    train.main([*SMOKE, *words, "--run", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "show", raises(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(["--run", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(play, "play_plans", raises(AssertionError))
        patch.setattr(pictures, "show", lambda *words: None)
        evaluate.main(["--run", str(folder)])
    assert (folder / "record.json").is_file()
    assert not list(folder.glob("test-*"))


def raises(error: type[BaseException]) -> Callable[..., None]:
    def function(*words: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "plan-success"),
        (("--updates", "0"), "plan-success-untrained"),
        (("--inverse-dynamics", "0"), "plan-success-no-inverse-dynamics"),
        (("--planner", "cem"), "plan-success-cem"),
        (("--objective", "last"), "plan-success-last"),
        (("--task", "wall"), "plan-success-ac"),
        (("--task", "wall", "--encoder-updates", "0"), "plan-success-ac-untrained-encoder"),
        (("--task", "wall", "--rollout-steps", "1"), "plan-success-ac-no-rollout-loss"),
    ],
)
def test_claims(words, expected):
    assert evaluate.claim(config_of(*SMOKE, *words)) == expected


def test_protocols():
    assert evaluate.protocol(config_of("--preset", "paper")) == "two-rooms-200-end"
    assert evaluate.protocol(config_of("--preset", "paper", "--task", "tworoom-swm")) == "tworoom-swm-50-step"


@pytest.mark.parametrize("words", [(*SMOKE,), (*WALL, "--encoder-updates", "0")])
def test_an_untrained_control_is_a_valid_run(words, tmp_path):
    folder = tmp_path / "run"
    train.main([*words, "--updates", "0", "--run", str(folder)])
    evaluate.main(["--run", str(folder)])
    record = json.loads((folder / "record.json").read_text())
    assert record["claim"].endswith("-untrained")
    assert record["budget"]["updates"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--elites", "9"), "elites 9 are more than samples 8"),
        (("--updates", "25"), "no multiple of epochs"),
        (("--task", "walls"), "did you mean 'wall'"),
        (("--rollout-steps", "5"), "needs more than the 5 frames"),
        (("--init-from", "x.pt"), "model recipe is for two-rooms"),
        (("--model", "recipe", "--task", "wall"), "model recipe is for two-rooms"),
        (("--task", "wall", "--frames", "20"), "trajectory_steps"),
        (("--task", "wall", "--side", "60"), "no multiple of patch"),
        (("--task", "wall", "--encoder-updates", "0", "--init-from", "absent.pt"), "there is no file absent.pt"),
        (("--device", "cuda:9"), "CUDA devices"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(words, message, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as ending:
        train.main([*SMOKE, *words, "--run", str(folder)])
    assert ending.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not folder.exists()


def test_a_simulator_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(SystemExit) as ending:
        train.main([*SMOKE, "--task", "pointmaze", "--run", str(tmp_path / "run")])
    assert ending.value.code == 2
    errors = capsys.readouterr().err
    assert "task pointmaze needs gymnasium-robotics" in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_not_tested(start, tmp_path, capsys):
    folder = tmp_path / "run"
    process = start("vjepa.ac.train", *SMOKE, "--run", str(folder))
    testing.kill_when(process, functools.partial(testing.has_step, folder, "training", 3))
    with pytest.raises(SystemExit) as ending:
        evaluate.main(["--run", str(folder)])
    assert ending.value.code == 2
    assert "the same train command goes on" in capsys.readouterr().err


def test_every_field_is_read_somewhere():
    package = Path(train.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in package.glob("*.py") if path.name != "config.py")
    text += (package / "config.py").read_text(encoding="utf-8").split("__post_init__")[1]
    names = [field.name for field in dataclasses.fields(Config)]
    unread = [name for name in names if re.search(rf"\bconfig\.{name}\b", text) is None]
    assert unread == []


def test_every_preset_of_every_task_is_a_config():
    for preset in PRESETS:
        for task in TASKS:
            config = config_of("--preset", preset, "--task", task)
            assert from_dict(Config, {**vars(config)}) == config


def test_windows_are_steps_of_the_walk():
    config, world = config_of(*WALL), WALL_WORLD
    walks = data.Walks(*world.trajectories(8, config.trajectory_steps, torch.Generator().manual_seed(0)))
    first = data.starts_of(config, 8, torch.Generator().manual_seed(0))
    batch = data.windows(world, config, walks, first)
    assert batch.pictures.shape == (8, 4, 3, 65, 65)
    assert batch.actions.shape == (8, 4, 10)
    state = batch.states[:, 0]
    for move in batch.actions[:, 0].split(2, -1):
        state = world.step_stopping(state, move, walks.layouts)
    assert torch.allclose(state, batch.states[:, 1])
    assert torch.equal(walks.states[0, first[0]], batch.states[0, 0])
    drawn = data.starts_of(config, 200, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(24 - 20 + 1))


def test_walks_and_traces_with_a_flipped_bit_are_made_again_or_the_same(tmp_path):
    config, world = config_of(*WALL, "--trajectories", "2"), WALL_WORLD
    data.make_walks(tmp_path, world, config)
    walks, episodes = data.load_walks(tmp_path, config, torch.device("cpu")), new_episodes(world, seeds_of_test(1))
    assert walks is not None
    play._write_trace(tmp_path / "0.npz", episodes.start[:, None].repeat(1, config.budget + 1, 1), 1.0)

    def walked() -> torch.Tensor | None:
        found = data._read(tmp_path, config)
        return None if found is None else found.states

    def traced() -> torch.Tensor | None:
        found = play._read_trace(tmp_path / "0.npz", episodes, config)
        return None if found is None else found[0]

    for path, read in ((tmp_path / data.WALKS, walked), (tmp_path / "0.npz", traced)):
        whole, kept = path.read_bytes(), read()
        assert kept is not None
        lost = 0
        for k in range(0, 8 * len(whole), 61):
            path.write_bytes(whole[: k // 8] + bytes([whole[k // 8] ^ 1 << k % 8]) + whole[k // 8 + 1 :])
            found = read()
            assert found is None or torch.equal(found, kept)
            lost += found is None
        assert lost
    data.make_walks(tmp_path, world, config)
    again = data.load_walks(tmp_path, config, torch.device("cpu"))
    assert again is not None
    assert torch.equal(again.states, walks.states)


def parts_of_two(config: Config, walks: data.Walks | None) -> list[data.Batch]:
    world, cpu = new_world(config.task), torch.device("cpu")
    return [data.batch_of(world, config, walks, "training", 3, dist.Ranks(k, 2, k, cpu)) for k in (0, 1)]


def test_two_ranks_draw_other_windows():
    config = config_of(*SMOKE)
    one, two = parts_of_two(config, None)
    assert len(one.states) == len(two.states) == config.batch_size // 2
    assert not torch.equal(one.states, two.states)


def test_two_ranks_have_the_windows_of_one_process():
    config = config_of(*WALL)
    walks = data.Walks(*WALL_WORLD.trajectories(8, config.trajectory_steps, torch.Generator().manual_seed(0)))
    whole = data.batch_of(WALL_WORLD, config, walks, "training", 3, dist.setup())
    assert torch.equal(torch.cat([part.states for part in parts_of_two(config, walks)]), whole.states)


def test_two_processes_train_what_one_does(start, tmp_path):
    """Post-training on an untrained encoder; to the rounding of a sum in another order."""
    words = (*WALL, "--encoder-updates", "0", "--updates", "6")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vjepa.ac.train", "--")
    process = start(*launch, *words, "--run", str(tmp_path / "two"))
    train.main([*words, "--run", str(tmp_path / "one")])
    testing.finish(process)
    one, two = (checkpoint.load_latest(tmp_path / name / "post-training") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        if name.startswith("predictor") and "qkv.bias" not in name:
            torch.testing.assert_close(two.tensors[name], value, rtol=0, atol=2e-5, msg=name)


def test_the_recipe_learns_the_place_of_the_dot():
    """In a hundred updates the loss falls, and the watch reads the dot's place better than its mean (1.0)."""
    config = config_of(*SMOKE, "--side", "33", "--channels", "8,16", "--width", "32", "--batch-size", "16")
    config = dataclasses.replace(config, updates=120)
    world = new_world("two-rooms")
    model, schedule = build.new_model(config, world), build.new_schedule(config)
    optimizer, ranks = train.optimizer_of(model), dist.setup()
    log = []
    for update in range(config.updates):
        batch = data.batch_of(world, config, None, "training", update, ranks)
        log.append(train.train_step(model, optimizer, batch, world, config, schedule, update))
    last = {name: float(torch.stack([line[name] for line in log[-10:]]).mean()) for name in log[0]}
    assert last["loss"] < 0.8 * float(log[0]["loss"])
    assert last["probe"] < 0.6


@pytest.mark.parametrize("task", ["two-rooms", "wall"])
def test_a_model_has_one_graph_however_many_were_trained_before_it(monkeypatch, task):
    """Without a code generator: what counts is that the losses are traced whole, and never in a second form.

    torch.compile gives up on a function after eight, and takes functions of one code for one function.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    monkeypatch.setattr(eager, "_marks", [])
    config, world = config_of("--preset", "smoke", "--task", task, "--set", "trajectories=0"), new_world(task)
    found = []
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for dtype in (torch.float32, torch.bfloat16):
            for losses in (train.model_losses, train.compiled_losses()):
                model = build.new_model(config, world)
                optimizer, schedule = train.optimizer_of(model), build.new_schedule(config)
                for update in range(2):
                    batch = data.batch_of(world, config, None, "test", update, dist.Ranks(0, 1, 0, torch.device("cpu")))
                    numbers = train.train_step(
                        model, optimizer, batch, world, config, schedule, update, dtype=dtype, losses=losses
                    )
                found.append(numbers["loss"])
    torch.testing.assert_close(found[1::2], found[::2])
    assert eager.marks() == ()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_encoder_is_pretrained_in_the_precision_asked_for(precision, tmp_path, monkeypatch):
    config, seen = config_of(*WALL, "--set", "encoder_updates=1", "trajectories=0", f"precision={precision}"), []
    jepa = build.new_pretraining(config)
    jepa.encoder.blocks[0].register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    monkeypatch.setattr(train, "new_pretraining", lambda config: jepa)
    run = Run.open("vjepa", config, "smoke", tmp_path / "run")
    train.pretrain(run, config, dist.setup(), WALL_WORLD, None)
    assert set(seen) == {getattr(torch, precision)}


def test_walks_of_both_kinds_of_rooms_and_two_sizes_are_compiled(monkeypatch):
    """Walks of another number are another form, but the other rooms do not count them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    monkeypatch.setattr(eager, "_marks", [])
    rooms._compiled.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for world in (rooms.TWO_ROOMS, rooms.TWO_ROOMS_RANDOM):
            for count in (2, 3):
                generator = torch.Generator().manual_seed(count)
                states, actions, layouts = world.trajectories(count, 2, generator)
                step = rooms._compiled(world)
                torch.testing.assert_close(step(states[:, 0], actions[:, 0], layouts), states[:, 1])
    rooms._compiled.cache_clear()
    assert eager.marks() == ()

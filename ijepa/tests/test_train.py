"""The real train command: killed and resumed, on two ranks, with bad options, with a loss that is not finite."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from common import checkpoint, dist, testing
from common.config import from_dict, parse
from common.run import NonFiniteError, Run
from ijepa import crops, data, evaluate, official, train
from ijepa.build import mask_config, new_model, new_schedule
from ijepa.config import PRESETS, TASKS, Config
from ijepa.data import Arrays, MicroBatches
from ijepa.images import DamagedImageError
from ijepa.masks import check_masks
from ijepa.shapes import Shapes
from ijepa.tests.calculation import CONFIG, calculate
from ijepa.tests.conftest import SMOKE
from ijepa.vit import patch_grid

TOTAL = 30
MODULES = ("encoder/", "predictor/", "target_encoder/")


def newest(folder) -> checkpoint.Checkpoint:
    found = checkpoint.load_latest(folder / "jepa")
    assert found is not None
    return found


def test_killed_twice_and_resumed_equals_one_go(trained, start, tmp_path):
    """SIGKILL at a random moment; then as if the newest checkpoint had not been finished, and half a line been left."""
    folder, rng = tmp_path / "run", random.Random(0)
    words = ("ijepa.train", *SMOKE, "--run", str(folder))
    for share in (0.2, 0.6):
        is_time = functools.partial(testing.has_step, folder, "jepa", int(share * TOTAL) - rng.randint(0, 2))
        testing.kill_when(start(*words), is_time)
        found = newest(folder)
        assert found.step < TOTAL, "killed too late to show anything"
        found.path.unlink()
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"stage": "jepa", "st')
    testing.finish(start(*words))
    testing.same_log(folder, trained)
    testing.same_checkpoints(folder / "jepa", trained / "jepa")
    assert newest(folder).step == TOTAL
    assert len(json.loads((folder / "meta.json").read_text())["restarts"]) == 2


def test_the_number_of_workers_changes_nothing(trained, start, tmp_path):
    testing.finish(start("ijepa.train", *SMOKE, "--workers", "0", "--run", str(tmp_path / "run")))
    testing.same_checkpoints(tmp_path / "run" / "jepa", trained / "jepa")


def test_two_ranks_equal_one(start, tmp_path):
    """Each takes one of the two micro-batches; to the rounding of a sum in another order, but for the keys' bias."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ijepa.tests.calculation")
    process = start(*launch, str(folders[1]))
    calculate(folders[0])
    testing.finish(process)
    # What cannot be read is counted over all ranks.
    assert [(folders[1] / f"known-{rank}.txt").read_text().split() for rank in (0, 1)] == [["0.jpg", "1.jpg"]] * 2
    one, two = (newest(folder / "run").tensors for folder in folders)
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.startswith(MODULES) and "qkv.bias" not in name:
            torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5, msg=name)


def test_the_log_holds_the_collapse_watch(trained):
    found = testing.log_lines(trained)
    assert [line["step"] for line in found] == [1, 11, 21, 30]
    for line in found:
        assert line.keys() == {"stage", "step", "loss", "std", "rank", "vs_constant"}
    assert found[-1]["loss"] < found[0]["loss"]


def test_a_loss_that_is_not_finite_names_step_term_and_checkpoint(tmp_path, monkeypatch):
    config = Config(**{**vars(CONFIG), "updates": 15})
    calls: list[int] = []

    def to_input(images, statistics, device):
        calls.append(1)
        return crops.to_input(images, statistics, device) * (float("nan") if len(calls) > 2 * 5 else 1.0)

    monkeypatch.setattr(train, "to_input", to_input)
    run = Run.open("ijepa", config, "smoke", tmp_path / "run")
    images = Arrays(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8), np.zeros(20, int))
    with pytest.raises(NonFiniteError, match=r"jepa step 6: loss is nan; .*step-000000005\.safetensors"):
        train.train_encoder(run, config, dist.setup(), new_model(config, 3), images)


class Damaged(Shapes):
    """Drawn shapes of which some cannot be read."""

    bad: tuple[int, ...] = ()

    def read(self, index):
        if index in self.bad:
            raise DamagedImageError(f"image {index}")
        return super().read(index)


def test_a_resumed_run_knows_which_images_cannot_be_read(tmp_path, capsys):
    images = Damaged(32, 300, 0)
    batches = MicroBatches(images, CONFIG, mask_config(CONFIG, (4, 4)))
    batches[0]
    first, second = (f"image {k}" for k in batches._order[[0, 17]])  # in the first and in the third update
    images.bad = tuple(batches._order[[0, 17]])
    for named in ((first, second), (second,)):
        run = Run.open("ijepa", CONFIG, "smoke", tmp_path / "run")
        train.train_encoder(run, CONFIG, dist.setup(), new_model(CONFIG, 3), images)
        assert newest(tmp_path / "run").state["state"]["faults"] == sorted((first, second))
        warned = capsys.readouterr().err.splitlines()
        assert [line.split(" is missing")[0] for line in warned] == [f"warning: {name}" for name in named]
        newest(tmp_path / "run").path.unlink()


def test_an_official_file_takes_the_place_of_the_training(tmp_path, monkeypatch):
    """However few images there are: no update is made. They are looked for once."""
    model = new_model(CONFIG, 3)
    with torch.no_grad():
        model.target_encoder.norm.bias.add_(1)
    official.export(tmp_path / "file.pth.tar", model, 300, 0.1)
    options = [f"{name}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in vars(CONFIG).items()]
    gone = ("updates", "init_from", "data=", "batch", "micro", "lr_", "pixel_")
    options = [word for word in options if not word.startswith(gone)]
    options += ["updates=none", "batch_size=2048", f"init_from={tmp_path / 'file.pth.tar'}"]
    folder, load_splits = tmp_path / "run", data.load_splits
    calls: list[Config] = []

    def counted(config):
        calls.append(config)
        return load_splits(config)

    monkeypatch.setattr(data, "load_splits", counted)
    train.main(["--preset", "smoke", "--run", str(folder), "--set", *options])
    assert len(calls) == 1
    found = newest(folder)
    assert found.step == 0
    assert torch.equal(found.tensors["target_encoder/norm.bias"], model.target_encoder.norm.bias)


def test_a_run_without_updates_leaves_the_first_weights_and_is_tested(tmp_path, start):
    """The untrained control."""
    folder = tmp_path / "run"
    testing.finish(start("ijepa.train", *SMOKE, "--updates", "0", "--run", str(folder)))
    config = from_dict(Config, json.loads((folder / "config.json").read_text()))
    first = new_model(config, 3).target_encoder.state_dict()
    found = newest(folder)
    assert found.step == 0
    assert all(torch.equal(value, found.tensors[f"target_encoder/{name}"]) for name, value in first.items())
    testing.finish(start("ijepa.evaluate", "--run", str(folder)))
    record = json.loads((folder / "record.json").read_text())
    assert (record["claim"], record["budget"]["updates"], record["curves"]) == ("probe-accuracy-untrained", 0, {})
    assert record["value"] == record["controls"]["untrained encoder"]["value"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--task", "pongg"], "pong"),
        (["--encoder", "enormous"], "encoder"),
        (["--batch-size", "10"], "batch_size 10 is no multiple of micro_batch_size 8"),
        (["--size", "60,64"], "an image of 60 x 64 pixels is no whole number of patches of 8 x 8"),
        (["--size", "64"], "size takes two numbers"),
        (["--patch", "16"], "4 x 4 patches has target blocks"),
        (["--target-scale", "0.3,0.2"], "target_scale"),
        (["--task", "imagenet"], "task imagenet needs data"),
        (["--init-from", "nowhere.pth.tar"], "there is no file nowhere.pth.tar"),
        (["--batch-size", "208"], "needs more than the 200 there are"),
        (["--task", "pong", "--env-steps", "8"], "env_steps"),
        (
            ["--task", "pong", "--env-steps", "100", "--batch-size", "100", "--micro-batch-size", "4"],
            "a batch of 100 images needs more than the 96 frames to be played",  # by eight, twelve each
        ),
        (["--predictor-width", "30"], "a width that 4 divides, not 30"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--masking", "none"], "masking"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_nothing(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        train.main(["--preset", "smoke", "--task", "shapes", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not list(tmp_path.iterdir())


def test_every_preset_of_every_task_has_masks_that_fit():
    for preset in PRESETS:
        for task in TASKS:
            config, _ = parse(Config, TASKS, PRESETS, ["--preset", preset, "--task", task], prog="", description="")
            height, width = config.size
            check_masks(mask_config(config, patch_grid(height, width, config.patch)))


def test_large_checkpoints_are_rare_and_small_ones_are_not():
    def seconds(*words):
        return parse(Config, TASKS, PRESETS, list(words), prog="", description="")[0].checkpoint_seconds

    assert seconds("--preset", "paper") == 1800
    assert {seconds("--preset", "cpu", "--task", task) for task in TASKS} == {60}
    assert seconds("--preset", "gpu") == seconds("--preset", "night") == 60


def test_the_defaults_are_the_released_config():
    config = Config()
    assert (config.batch_size, config.micro_batch_size, config.micro_batches) == (2048, 128, 16)
    rates = new_schedule(config, 300 * 625)
    assert (rates.total, rates.warmup) == (187_500, 25_000)
    assert (rates.lr_start, rates.lr, rates.lr_end) == (2e-4, 1e-3, 1e-6)
    assert PRESETS["paper"].values == {}
    # The beginning and the end follow another rate, unless they are given.
    rates = new_schedule(replace(config, lr=5e-4), 100)
    assert (rates.lr_start, rates.lr_end) == (1e-4, 5e-7)
    rates = new_schedule(replace(config, lr=5e-4, lr_start=0.0, lr_end=1e-5), 100)
    assert (rates.lr_start, rates.lr_end) == (0.0, 1e-5)


@pytest.mark.parametrize("program", [train, evaluate])
def test_help_explains_every_field(program, capsys):
    with pytest.raises(SystemExit) as end:
        program.main(["--help"])
    assert end.value.code == 0
    assert "--target-scale" in capsys.readouterr().out

"""The files of an evaluated run, the probes on labels, and the controls without a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from common import checkpoint, testing
from common.config import from_dict
from common.record import RECORD_KEYS
from common.run import read_metrics
from ijepa import data, evaluate, label_probe, official, play, train
from ijepa.ablations import TARGETS
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.label_probe import EVERY, LARS, Recipe, Sweep, linear_probe, low_shot, nearest_neighbours
from ijepa.masks import STRATEGIES
from ijepa.shapes import Shapes
from ijepa.statistics import IMAGENET


def check_record(folder, task):
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["finished"] is True
    assert (record["paper"], record["task"], record["seed"]) == ("ijepa", task, 0)
    for part in (record, *record["controls"].values(), *record["measurements"].values()):
        assert len(part["values"]) == part["episodes"] >= 1
        assert part["value"] == pytest.approx(sum(part["values"]) / part["episodes"], abs=1e-6)
        assert isinstance(part["protocol"], str)
    return record


def test_a_run_on_shapes_is_probed_pictured_and_recorded(trained, start, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    output, errors = testing.finish(start("ijepa.evaluate", "--run", str(folder)))
    assert errors == ""
    record = check_record(folder, "shapes")
    assert record["claim"] == "probe-accuracy"
    assert record["protocol"] == "shapes-linear"
    assert record["budget"] == {"env_frames": 0, "updates": 30, "images": 480}
    assert set(record["controls"]) == {"untrained encoder", "pixels"}
    assert {"last", "last four", "nearest neighbours", "1 % of the labels"} <= set(record["measurements"])
    factors = {name: record["measurements"][f"factor {name}"]["value"] for name in Shapes.factors}
    assert record["value"] == pytest.approx((factors["class"] + factors["number"]) / 2)
    assert set(record["curves"]) == {"loss", "loss beside a constant", "feature spread", "effective rank"}
    assert f"{record['value']:.1f}" in output
    # On the last layer and on all four: 13 fits each, with the best once more, of all four factors. Of the untrained
    # encoder for two factors; so too of pixels, which have one layer.
    assert "probes on labels: 182 fits of 2 epochs on 100 images for 3 encoders, whose features take up to" in output
    for name in ("curves.png", "masks.png", "neighbours.png", "features.png"):
        picture = cv2.imread(str(folder / name))
        assert picture is not None, name
        assert picture.std() > 5, name
    film = cv2.VideoCapture(str(folder / "video.webm"))
    ok, frame = film.read()
    film.release()
    assert ok
    assert frame.std() > 5
    calls: list[Config] = []
    load_splits = data.load_splits

    def counted(config):
        calls.append(config)
        return load_splits(config)

    monkeypatch.setattr(data, "load_splits", counted)
    evaluate.main(["--run", str(folder), "--without-controls"])
    assert len(calls) == 1
    alone = check_record(folder, "shapes")
    assert alone["controls"] == {}
    control = record["measurements"].pop("known from the context, untrained encoder")
    assert control["value"] != record["measurements"]["known from the context"]["value"]
    assert (alone["values"], alone["measurements"]) == (record["values"], record["measurements"])


def test_a_sweep_is_chosen_and_its_cost_is_said_before_it_begins(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    words = ["--probe-layers", "last", "--probe-head", "norm", "--probe-lr", "0.1", "--probe-weight-decay", "0"]
    evaluate.main(["--run", str(folder), "--without-controls", *words])
    output = capsys.readouterr().out
    # One probe and the same once more on all images, of each of four factors.
    assert output.startswith("probes on labels: 8 fits of 2 epochs on 100 images for 1 encoder, whose features take")
    record = check_record(folder, "shapes")
    assert "batch norm + linear on the last layer, lr 0.1, weight decay 0.0;" in record["policy"]
    assert record["policy"].endswith("; of a sweep that was chosen")
    assert {"last", "last four"} & set(record["measurements"]) == {"last"}


def test_the_time_of_all_probes_is_told_from_a_first_epoch(monkeypatch, capsys):
    clock = iter((100.0, 103.0))
    monkeypatch.setattr("ijepa.evaluate.time.monotonic", lambda: next(clock))
    images = Shapes(32, 50, 0, IMAGENET[3])
    cost = evaluate.Cost(Recipe("lars", 50, 64), {"I-JEPA": (4, 1000), "pixels": (1, 10)}, images, images)
    cost.begin()
    for _ in range(3):
        cost.after_epoch()
    first, second = capsys.readouterr().out.splitlines()
    # 13 fits on one layer and 13 on four, of four factors; 13 on pixels, of two; 4 bytes of 100 times 4,000 numbers.
    assert first.startswith("probes on labels: 130 fits of 50 epochs on 50 images for 2 encoders")
    assert "up to 0.0016 GB" in first
    hours = 3 * 50 * (4 * 13 * 5 + 2 * 13) / 3600
    assert f"about {hours:.1f} h" in second


def test_a_sweep_of_several_layers_is_of_all_there_are():
    sweep = Sweep("several", (False,), (0.1, 1.0), (0.0,))
    assert {name: [one.layers for one in part] for name, part in sweep.of("sgd", 3).items()} == {"last three": [3, 3]}
    assert list(sweep.of("sgd", 1)) == ["last"]
    assert {name: len(part) for name, part in EVERY.of("lars", 4).items()} == {"last": 12, "last four": 12}


def test_each_ablation_has_a_claim_of_its_own():
    configs = [Config(masking=value) for value in STRATEGIES] + [Config(target=value) for value in TARGETS]
    words = {evaluate.claim(replace(config, task="shapes")) for config in configs}
    others = (set(STRATEGIES) | set(TARGETS)) - {Config().masking, Config().target}
    assert words == {"probe-accuracy"} | {f"probe-accuracy-{value}" for value in others}
    assert evaluate.claim(Config(task="pong")) == "probe-f1"
    assert evaluate.claim(Config(task="pong", updates=0)) == "probe-f1-untrained"
    assert evaluate.claim(Config(init_from="file")) == evaluate.claim(Config(init_from="file", updates=0))
    assert evaluate.claim(Config(init_from="file")) == "probe-accuracy-official"
    assert evaluate.claim(Config(init_from="file", updates=8)) == "probe-accuracy"
    assert evaluate.claim(Config(task="pong", masking="block", target="online")) == "probe-f1-block-online"


def test_a_game_is_probed_with_its_controls(start, tmp_path):
    folder = tmp_path / "run"
    words = ("--preset", "smoke", "--task", "pong", "--updates", "4", "--run", str(folder))
    for program in (("ijepa.train", *words), ("ijepa.evaluate", "--run", str(folder), "--matrix")):
        testing.finish(start(*program))
    record = check_record(folder, "pong")
    assert record["claim"] == "probe-f1"
    assert record["protocol"] == "atariari-f1-standardised"
    assert set(record["controls"]) == {"majority", "random-cnn", "random-cnn, standardised", "untrained encoder"}
    assert {record["episodes"]} == {part["episodes"] for part in record["controls"].values()}
    measured = record["measurements"]
    assert {"ball_x", "agent_localization", "interval low"} <= set(measured)
    assert {"known from the context", "known from the context, untrained encoder"} <= set(measured)
    components = "256 components of all tokens"
    for name in ("I-JEPA", "untrained encoder"):
        assert measured[f"{name}, raw"]["protocol"] == "atariari-f1"
    for name in ("I-JEPA", "untrained encoder", "random-cnn"):
        assert measured[f"{name}, {components}"]["episodes"] == record["episodes"]
        assert measured[f"{name}, {components}"]["protocol"] == "atariari-f1-components"
    # Of every form of every encoder, as many variables as are named for ours.
    forms = [name for name in measured if name.startswith("by variable, ")]
    assert len(forms) == len(record["controls"]) + 5
    assert len({measured[name]["episodes"] for name in forms}) == 1
    assert record["measurements"]["interval low"]["value"] <= record["value"]


def test_controls_are_recorded_without_a_run(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "controls"
    words = ["--controls", "--task", "pong", "--preset", "smoke", "--run", str(folder)]
    evaluate.main(words)
    first = check_record(folder, "pong")
    assert first["claim"] == "control-random-cnn"
    assert set(first["controls"]) == {"majority"}
    assert str(folder / "record.json") in capsys.readouterr().out
    monkeypatch.setattr(play, "_play", None)  # the game is not played again
    evaluate.main(words)
    assert check_record(folder, "pong")["values"] == first["values"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--controls", "--task", "shapes", "--preset", "smoke"], "--controls is for games"),
        (["--controls", "--task", "pong", "--preset", "smoke", "--probe-env-steps", "512"], "too few to split"),
        (["--run", "nowhere"], "is no run folder"),
        (["--controls", "--without-controls"], "not allowed with argument"),
        (["--probe-lr", "0", "--run", "nowhere"], "--probe-lr: learning rates are above 0"),
        (["--probe-weight-decay", "nan", "--run", "nowhere"], "--probe-weight-decay: it is at least 0"),
        (["--probe-lr", "0.1", "--controls", "--task", "pong", "--preset", "smoke"], "nothing is tried on labels"),
        (["--controls", "--matrix", "--task", "pong", "--preset", "smoke"], "--matrix is of a run"),
    ],
)
def test_what_cannot_be_tested_is_named_in_one_line(words, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluate.main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error


def test_a_run_on_images_without_labels_ends_in_one_line_and_can_be_exported(tmp_path, capsys):
    for k in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / f"{k}.png"), np.full((40, 40, 3), k, np.uint8))
    words = ["task=imagenet", f"data={tmp_path / 'images'}", "size=32,32", "patch=8", "min_keep=0", "updates=0"]
    train.main(["--preset", "smoke", "--run", str(tmp_path / "run"), "--set", *words])
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(tmp_path / "run")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: data: probes need labels: name a folder with train/ and val/")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "record.json").exists()
    evaluate.main(["--run", str(tmp_path / "run"), "--export", str(tmp_path / "out.pth.tar")])
    assert (tmp_path / "out.pth.tar").exists()


def test_a_run_becomes_an_official_checkpoint(trained, tmp_path, capsys):
    path = tmp_path / "out.pth.tar"
    evaluate.main(["--run", str(trained), "--export", str(path)])
    assert capsys.readouterr().out == f"exported: {path}\n"
    assert not (trained / "record.json").exists()
    config = from_dict(Config, json.loads((trained / "config.json").read_text()))
    model = new_model(config, 3)
    facts = official.load(path, model)
    assert facts["epoch"] == 30 * 16 // 200
    assert facts["loss"] == read_metrics(trained)[-1]["loss"]
    found = checkpoint.load_latest(trained / "jepa")
    assert found is not None
    assert torch.equal(model.target_encoder.norm.bias, found.tensors["target_encoder/norm.bias"])
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(trained), "--export", str(tmp_path / "none" / "out.pth.tar")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --export: ")
    assert error.count("\n") == 1


def test_an_unfinished_run_is_named(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "jepa" / "step-000000030.safetensors").unlink()
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(folder)])
    assert end.value.code == 2
    assert "training has not ended" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main(["--run", str(folder), "--lr", "1"])
    assert "lr: fixed by the run" in capsys.readouterr().err


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes that a line divides, features [T, 4 layers, D]; only the last layer knows them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    centres = 3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    features = torch.randn(count, 4, 16, generator=generator)
    features[:, -1] += centres[labels]
    return features, labels


def test_probes_find_what_is_there():
    (x, labels), (test_x, test_labels) = clusters(4000, 1), clusters(500, 2)
    data = x, labels, test_x, test_labels
    found = linear_probe(*data, Recipe("sgd", 20, 256), 0)
    assert found["last"][0].mean() > 0.9
    assert found["last four"][0].mean() > 0.9
    assert nearest_neighbours(*data, torch.device("cpu")).mean() > 0.9
    assert low_shot(*data, 0).mean() > 0.7
    shallow = x[:, -3:], labels, test_x[:, -3:], test_labels
    assert set(linear_probe(*shallow, Recipe("sgd", 1, 256), 0)) == {"last", "last three", "best"}
    alone = linear_probe(x[:, -1:], labels, test_x[:, -1:], test_labels, Recipe("sgd", 20, 256), 0)
    np.testing.assert_array_equal(alone["best"][0], found["last"][0])
    noise = torch.randn(4500, 4, 16, generator=torch.Generator().manual_seed(3))
    found = linear_probe(noise[:4000], labels, noise[4000:], test_labels, Recipe("sgd", 5, 256), 0)
    assert found["best"][0].mean() < 0.4


def test_a_probe_on_some_rows_is_that_on_a_copy_of_them():
    """Features of ImageNet are too large to be copied; the whole and its last layer are views."""
    (features, labels), rows = clusters(300, 1), torch.arange(300)[torch.arange(300) % 3 > 0]
    for layers in (1, 4):
        x = label_probe.inputs(features, layers)
        assert x.untyped_storage().data_ptr() == features.untyped_storage().data_ptr()
        choice = label_probe.Choice(layers, True, 0.1, 0.0)
        recipe = Recipe("sgd", 2, 64)
        ours = label_probe.train_probe(x, labels, rows, choice, recipe, 0)
        copy = label_probe.train_probe(x[rows], labels[rows], torch.arange(len(rows)), choice, recipe, 0)
        for a, b in zip(ours.state_dict().values(), copy.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        theirs = label_probe.correct(copy, x[rows], labels[rows], torch.arange(len(rows)))
        np.testing.assert_array_equal(label_probe.correct(ours, x, labels, rows), theirs)


def test_low_shot_takes_one_in_a_hundred_of_each_class(monkeypatch):
    seen = []

    class Model:
        def __init__(self, **_):
            pass

        def fit(self, x, labels):
            seen.append(np.bincount(labels))

        def predict(self, x):
            return np.zeros(len(x), int)

    monkeypatch.setattr(label_probe, "LogisticRegression", Model)
    features, labels = clusters(4000, 1)
    labels[:5] = 4
    low_shot(features, labels, features, labels, 0)
    expected = [max(1, round(0.01 * int(count))) for count in torch.bincount(labels)]
    assert seen[0].tolist() == expected


def test_a_lars_step_has_the_size_of_the_weights():
    """Whatever the scale of the gradient; 1-D parameters take plain steps."""
    for scale in (1e-3, 1.0, 1e3):
        w, b = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(3))
        w.grad, b.grad = torch.full((3, 4), scale), torch.full((3,), 0.5)
        LARS([w, b], lr=0.1, weight_decay=0.0).step()
        torch.testing.assert_close(w.detach(), torch.full((3, 4), 1 - 0.1 * 0.001))
        torch.testing.assert_close(b.detach(), torch.full((3,), 0.95))

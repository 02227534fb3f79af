"""The files of an evaluated run, the three ways to read, and the published test on labelled videos."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from common import testing
from common.config import from_dict
from common.record import RECORD_KEYS
from vjepa import detection, evaluate, label_probe, physics, readout, rollout, scenes, train
from vjepa.ablations import TARGETS
from vjepa.build import new_model
from vjepa.config import Config
from vjepa.data import Arrays, Splits
from vjepa.digits import Digits
from vjepa.features import last_frame, pixel_features
from vjepa.readout import READOUTS, Recipe
from vjepa.statistics import Statistics
from vjepa.tests.calculation import CONFIG
from vjepa.tests.test_data import write
from vjepa.vit import POSITIONS


def check_record(folder, task):
    record = json.loads((folder / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["finished"] is True
    assert (record["paper"], record["task"], record["seed"]) == ("vjepa", task, 0)
    for part in (record, *record["controls"].values(), *record["measurements"].values()):
        assert len(part["values"]) == part["episodes"] >= 1
        assert part["value"] == pytest.approx(sum(part["values"]) / part["episodes"], abs=1e-6)
        assert isinstance(part["protocol"], str)
    return record


def check_film(path):
    film = cv2.VideoCapture(str(path))
    ok, frame = film.read()
    film.release()
    assert ok
    assert frame.std() > 5


def test_a_run_on_shapes_is_read_pictured_and_recorded(trained, start, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    output, errors = testing.finish(start("vjepa.evaluate", "--run", str(folder)))
    assert errors == ""
    record = check_record(folder, "shapes")
    assert (record["claim"], record["protocol"]) == ("velocity-r2", "shapes-mean-r2")
    assert record["budget"] == {"env_frames": 0, "updates": 30, "clips": 240}
    assert set(record["controls"]) == {"untrained encoder", "pixels", "last frame alone"}
    for what in ("velocity", "position"):
        for how in READOUTS:
            for who in ("", ", untrained encoder", ", pixels", ", last frame alone"):
                is_headline = (what, how, who) == ("velocity", "mean of tokens", "")
                assert (f"{what}, {how}{who}" in record["measurements"]) != is_headline
    assert set(record["curves"]) == {"loss", "loss beside a constant", "feature spread", "effective rank"}
    assert f"{record['value']:.1f}" in output
    for name in ("curves.png", "masks.png"):
        picture = cv2.imread(str(folder / name))
        assert picture is not None, name
        assert picture.std() > 5, name
    check_film(folder / "video.webm")


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 6, 7, 8, 11, 14, 32])
def test_the_score_of_physics_is_the_mean_of_its_blocks(steps, monkeypatch):
    """At every length of a window: score and blocks are of one context."""
    config = replace(CONFIG, task="physics", frames=2 * steps)
    count = len(physics.contexts((steps, 4, 4)))
    table = np.random.default_rng(0).normal(size=(len(scenes.BLOCKS), 40, 2, count, 3))
    monkeypatch.setattr(physics, "measure", lambda *words: {"V-JEPA": table})
    record = evaluate.physics_record(config, new_model(config, 3), torch.device("cpu"), has_controls=False)
    blocks = [record["measurements"][name]["value"] for name in scenes.BLOCKS]
    assert record["value"] == pytest.approx(sum(blocks) / len(blocks))
    assert record["policy"].startswith(f"mean surprise after {steps // 2 * 2} frames")


def test_a_run_on_scenes_is_surprised_and_filmed(tmp_path):
    folder = tmp_path / "run"
    words = ["--preset", "smoke", "--task", "physics", "--updates", "4", "--pairs", "2", "--workers", "0"]
    train.main([*words, "--run", str(folder)])
    evaluate.main(["--run", str(folder)])
    record = check_record(folder, "physics")
    assert record["claim"] == "physics-accuracy"
    assert set(record["controls"]) == {"untrained encoder", "copy of the last frame"}
    parts = record["measurements"]
    for who in ("", ", untrained encoder", ", copy of the last frame"):
        assert parts[f"best context of each block{who}"]["value"] >= parts[f"after 4 frames{who}"]["value"]
    assert record["value"] == parts["after 4 frames"]["value"]
    check_film(folder / "surprise.webm")


def test_the_weights_of_a_run_are_exported(trained, tmp_path, monkeypatch):
    path = tmp_path / "file.pth.tar"
    evaluate.main(["--run", str(trained), "--export", str(path)])
    config = from_dict(Config, json.loads((trained / "config.json").read_text()))
    model = new_model(config, 3, str(path))
    assert not torch.equal(model.encoder.norm.bias, model.target_encoder.norm.bias)


def test_claims_name_what_was_changed():
    for changes, word in (
        ({}, "velocity-r2"),
        ({"masking": "random-tube"}, "velocity-r2-random-tube"),
        ({"target": "pixels", "task": "physics"}, "physics-accuracy-pixels"),
        ({"updates": 0}, "velocity-r2-untrained"),
        ({"task": "videos", "probe_segments": 2}, "probe-accuracy-2x3"),
        ({"updates": 0, "task": "videos", "init_from": "x"}, "probe-accuracy-8x3-official"),
    ):
        assert evaluate.claim(Config(**{**vars(CONFIG), **changes})) == word


# --- reading ----------------------------------------------------------------------------------------------------------


def tokens_of(wanted, spread):
    """Tokens that hold numbers in one of their places, which is hidden if `spread`."""
    generator = torch.Generator().manual_seed(0)
    tokens = 0.1 * torch.randn(len(wanted), 6, 16, generator=generator)
    tokens[:, 2, : wanted.shape[1]] += wanted
    if spread:
        tokens[:, 4, : wanted.shape[1]] -= wanted
    return tokens


def test_numbers_that_cancel_in_the_mean_are_read_from_the_tokens():
    wanted = torch.randn(600, 2, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of(wanted, spread=True)
    recipe = Recipe(6, 32, 3e-3, 0.01, 1, 2)
    read = readout.read_all(tokens[:400], wanted[:400], tokens[400:], recipe, 0)
    found = {how: readout.fit(part, wanted[400:]).mean() for how, part in read.items()}
    assert found["mean of tokens"] < 20
    assert found["256 components of all tokens"] > 90
    assert set(found) == set(READOUTS)


def test_an_attentive_probe_learns_what_one_token_holds():
    wanted = torch.randn(600, 2, generator=torch.Generator().manual_seed(1))
    tokens = tokens_of(wanted, spread=False)
    tokens[:, 2, 8:] += 1  # what the query can find it by
    recipe = Recipe(20, 32, 3e-3, 0.01, 1, 2)
    read = readout.read_all(tokens[:400], wanted[:400], tokens[400:], recipe, 0)
    assert readout.fit(read["attentive probe"], wanted[400:]).mean() > 50


def test_the_fit_is_r2():
    true = torch.tensor([[0.0, 1], [2, 3], [4, 8]])
    assert readout.fit(true, true).tolist() == [100] * 3
    assert readout.fit(true.mean(0).expand(3, -1), true).mean() == pytest.approx(0)


def test_a_ridge_regression_survives_constant_features():
    x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 3
    assert readout.ridge(x, x[:, :1], x).isfinite().all()


def test_controls_see_what_they_should():
    encoder = new_model(CONFIG, 3).target_encoder
    clips = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    other = clips.clone()
    other[:, :, :-1] = 0
    with torch.no_grad():
        assert torch.equal(last_frame(encoder, clips), last_frame(encoder, other))
    pixels = pixel_features(encoder, clips)
    assert pixels.shape == (2, 32, 3 * 2 * 8 * 8 + 24)
    assert pixels.shape[2] % 4 == 0


# --- labelled videos --------------------------------------------------------------------------------------------------


def labelled(folder, count):
    """Videos that get brighter (0) or darker (1) and one that cannot be read."""
    for number in range(count):
        write(folder / ("up" if number % 2 else "down") / f"{number}.avi", 12 + number % 3)
    return folder


def test_labelled_videos_are_probed(tmp_path):
    videos = labelled(tmp_path / "videos", 8)
    words = ["--preset", "smoke", "--task", "videos", "--run", str(tmp_path / "run"), "--set"]
    words += [f"data={videos}", f"test_data={videos}", "frames=4", "frame_step=2", "updates=2", "probe_segments=2"]
    words += ["probe_views=2", "probe_epochs=1", "probe_batch_size=4", "workers=0"]
    train.main(words)
    evaluate.main(["--run", str(tmp_path / "run")])
    record = check_record(tmp_path / "run", "videos")
    assert (record["claim"], record["episodes"]) == ("probe-accuracy-2x2", 8)
    assert set(record["controls"]) == {"untrained encoder", "most frequent class"}
    assert record["policy"].endswith("2 clips x 2 views")


def test_videos_without_labels_train_and_say_what_a_test_needs(tmp_path, capsys):
    for number in range(8):
        write(tmp_path / "videos" / f"{number}.avi", 12)
    words = ["--preset", "smoke", "--task", "videos", "--run", str(tmp_path / "run"), "--set"]
    train.main([*words, f"data={tmp_path / 'videos'}", "frames=4", "frame_step=2", "updates=1", "workers=0"])
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "task videos needs test_data, with labels" in capsys.readouterr().err


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_probe_on_labels_has_the_form_of_its_generation(positions, depth):
    """The query first in V-JEPA, behind the other blocks in V-JEPA 2; where states are read the depth decides."""
    config = replace(CONFIG, positions=positions, probe_depth=depth, probe_epochs=1, probe_batch_size=2, workers=0)
    clips = Arrays(np.zeros((2, 4, 32, 32, 3), np.uint8), np.arange(2), 4)
    encoder, device = new_model(config, 3).target_encoder, torch.device("cpu")
    of_labels = label_probe.train_label_probe(encoder, clips, config, device, "encoder")
    assert of_labels.pooler.asks_first == (positions == "sincos")
    tokens, recipe = torch.zeros(2, 32, 64), Recipe(1, 2, 1e-3, 0.01, depth, 2)
    of_states = readout.train_probe(tokens, torch.zeros(2, 3), torch.nn.functional.mse_loss, 3, recipe, 0)
    assert of_states.pooler.asks_first == (depth == 1)


def test_tokens_of_several_clips_stand_one_after_the_other():
    encoder = new_model(CONFIG, 3).target_encoder
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 32, 32, 3), np.uint8)
    statistics = Statistics(np.zeros(3), np.ones(3))
    found = label_probe._tokens(encoder, clips, statistics, CONFIG, torch.device("cpu"))
    assert found.shape == (2, 3 * 32, 64)
    alone = label_probe._tokens(encoder, clips[1:, 2:], statistics, CONFIG, torch.device("cpu"))
    torch.testing.assert_close(found[1:, 64:], alone)


# --- digits to come ---------------------------------------------------------------------------------------------------


def test_average_precision_of_hand_made_scores():
    truth = np.array([True, False, True, False])
    assert detection.average_precision(np.array([4.0, 3, 2, 1]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert detection.average_precision(np.array([4.0, 1, 3, 2]), truth) == 1
    with pytest.raises(ValueError, match="no true place"):
        detection.average_precision(np.zeros(2), np.zeros(2, bool))


def test_cells_stand_where_tokens_stand():
    clips = Digits(64, 4, 3, 0, False)
    cells = detection.cells(clips, 2)
    assert cells.shape == (3, 2 * 64, 2)
    frame = np.flatnonzero(clips.maps[1, 3])
    assert cells[1, 64:, 1].nonzero()[:, 0].tolist() == frame.tolist()


@pytest.mark.parametrize("target", TARGETS)
def test_digits_are_expected_by_a_predictor_of_tokens_alone(target, monkeypatch):
    config = replace(CONFIG, task="digits", size=(64, 64), target=target, probe_epochs=1)
    train_clips, test_clips = (Digits(64, 4, 20, k, bool(k)) for k in range(2))
    monkeypatch.setattr(rollout, "EPOCHS", 1)
    splits = Splits(train_clips, train_clips, test_clips)
    found = evaluate.state_record(config, splits, new_model(config, 1), torch.device("cpu"), has_controls=False)
    assert "states copied" in found["measurements"]
    assert ("digits expected" in found["measurements"]) == (target == "ema")


def test_digits_to_come_are_expected_and_measured():
    config = replace(CONFIG, task="digits", size=(64, 64))
    train_clips, test_clips = (Digits(64, 4, 40, k, bool(k)) for k in range(2))
    models = {"V-JEPA": new_model(config, 1), "other": new_model(replace(config, seed=1), 1)}
    found = detection.measure(models, train_clips, test_clips, config, torch.device("cpu"))
    words = {"seen", "expected", "copied", "expected 2 frames ahead"}
    assert set(found) == {f"digits {word}{end}" for word in words for end in ("", ", other")}
    assert all(values.shape == (40,) and (values > 0).all() for values in found.values())
    assert not detection.fits((2, 4, 4))

"""Small real images are read in four ways, and what a run has learnt to predict is measured on the test images."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from ijepa import evaluate, known, readout, train
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.data import Arrays, Splits
from ijepa.features import pooled_and_tokens
from ijepa.jepa import select, targets
from ijepa.label_probe import Recipe
from ijepa.readout import LINEAR, NEIGHBOURS, READOUTS, principal_axes
from ijepa.supervised import supervised_encoder

CPU = torch.device("cpu")
CONFIG = Config(
    task="digits", size=(28, 28), patch=2, encoder="pico", predictor_width=24, predictor_depth=1, batch_size=8,
    micro_batch_size=8, images=100, workers=0, precision="float32", linear_optimizer="sgd", linear_epochs=20,
    linear_batch_size=64, centre_share=1.0,
)  # fmt: skip


def spots(count: int, seed: int) -> Arrays:
    """A bright spot on noise; the class is where it stands."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 60, (count, 28, 28), np.uint8), rng.integers(0, 3, count)
    for image, label in zip(images, labels, strict=True):
        image[10:14, 4 + 8 * label : 8 + 8 * label] = 255
    return Arrays(images, labels)


@pytest.mark.parametrize(("rows", "width"), [(40, 90), (200, 30)])
def test_principal_axes_are_those_of_the_singular_values(rows, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator) * torch.linspace(3, 0.1, width) + 5
    mean, axes = principal_axes(x, 8)
    torch.testing.assert_close(axes.T @ axes, torch.eye(8), atol=1e-4, rtol=0)
    exact = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:8]
    torch.testing.assert_close((axes @ axes.T), exact.T @ exact, atol=1e-3, rtol=0)
    torch.testing.assert_close(mean, x.mean(0))
    assert principal_axes(x, 1000)[1].shape == (width, min(rows - 1, width))


def test_what_an_average_drowns_is_read_from_the_tokens():
    """Where a spot stands is in single patches, and in no average over them."""

    def view(images):
        return images.mean((2, 3))[:, None], images.flatten(1)

    features = readout.features_of(view, Splits(spots(400, 0), spots(400, 0), spots(200, 1)), CONFIG, CPU, "")
    hits, words = readout.read_all(*features, Recipe("sgd", 20, 64), 0)
    assert set(hits) == set(READOUTS)
    assert {len(part) for part in hits.values()} == {200}
    for how in (LINEAR, NEIGHBOURS):
        assert hits[f"{how}, {readout.MEAN}"].mean() < 60
        assert hits[f"{how}, {readout.COMPONENT}"].mean() > 98
    assert "on the last layer" in words


def test_features_are_read_alike_whatever_their_size_and_mean():
    """An untrained encoder's differ little from image to image, and are no worse for it."""

    def view(images, scale):
        flat = 7 + scale * images.flatten(1)
        return flat[:, None], flat

    splits = Splits(spots(200, 0), spots(200, 0), spots(100, 1))
    for scale in (1e-3, 1e3):
        hits, _ = readout.read_all(
            *readout.features_of(partial(view, scale=scale), splits, CONFIG, CPU, ""), Recipe("sgd", 20, 64), 0
        )
        assert min(part.mean() for part in hits.values()) > 95


def test_the_saved_error_is_all_for_the_truth_and_nothing_for_a_constant(monkeypatch):
    model, images = new_model(CONFIG, 1).eval(), spots(100, 0)
    assert (readout.saved_error(model, images, CONFIG, CPU) < 0).all()  # the first weights predict nothing

    def truth(model, inputs, masks):
        return select(targets(model.target_encoder, inputs), masks)

    def constant(model, inputs, masks):
        tokens = targets(model.target_encoder, inputs)
        return select(tokens.mean(0).expand_as(tokens), masks)

    for predict, expected in ((truth, 100), (constant, 0)):
        monkeypatch.setattr(readout, "predict", predict)
        found = readout.saved_error(model, images, CONFIG, CPU)
        assert len(found) == 12  # batches of 8
        assert found.mean() == pytest.approx(expected, abs=5)


def test_the_target_is_renewed_by_what_its_momenta_leave():
    config = replace(CONFIG, momentum=0.99, momentum_end=1.0)
    assert readout.renewed_share(config, 0) == 0
    assert readout.renewed_share(config, 1) == pytest.approx(1)
    assert readout.renewed_share(config, 600) == pytest.approx(100 * (1 - np.exp(-3)), abs=0.2)


def test_the_supervised_encoder_learns_what_its_labels_say():
    images = spots(200, 0)
    config = replace(CONFIG, augment=False, batch_size=24, supervised_updates=40, patch=4)
    encoder = supervised_encoder(config, images, CPU)
    again = supervised_encoder(config, images, CPU)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))
    first = new_model(config, 1).encoder
    views = {name: partial(pooled_and_tokens, one) for name, one in (("first", first), ("supervised", encoder))}
    hits = {}
    for name, view in views.items():
        features = readout.features_of(view, Splits(images, images, spots(200, 1)), config, CPU, name)
        hits[name] = readout.read_all(*features, Recipe("sgd", 10, 64), 0)[0][readout.SCORE].mean()
    assert hits["supervised"] > max(90, hits["first"])


def test_an_untrained_run_on_digits_is_its_own_control(tmp_path, capsys):
    """In every way to read; and the record has all that the rows of the report compare."""
    words = ["updates=0", "images=100", "linear_epochs=1", "supervised_updates=1", "workers=0"]
    train.main(["--preset", "smoke", "--task", "digits", "--run", str(tmp_path / "run"), "--set", *words])
    evaluate.main(["--run", str(tmp_path / "run")])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["claim"], record["protocol"]) == ("probe-accuracy-untrained", "digits-linear")
    assert record["values"] == record["controls"][readout.UNTRAINED]["values"]
    controls = (readout.UNTRAINED, readout.PIXELS, readout.RANDOM, readout.SUPERVISED)
    assert tuple(record["controls"]) == controls
    measured = record["measurements"]
    for name in READOUTS[1:]:
        assert measured[name] == measured[f"{name}, {readout.UNTRAINED}"]
        assert measured[name]["protocol"] == ("digits-linear" if name.startswith(LINEAR) else "digits-neighbours")
    assert measured[known.KNOWN] == measured[f"{known.KNOWN}, {readout.UNTRAINED}"]
    assert measured[known.KNOWN]["protocol"] == known.PROTOCOL
    others = {
        known.KNOWN,
        f"{known.KNOWN}, {readout.UNTRAINED}",
        "error saved",
        "error saved, constant",
        "target renewed",
        "target renewed, asked for",
    }
    parts = {f"{name}{end}" for name in READOUTS[1:] for end in ("", *(f", {one}" for one in controls))}
    assert set(measured) == parts | others
    assert measured["target renewed"]["value"] == 0
    assert "I-JEPA" not in capsys.readouterr().err

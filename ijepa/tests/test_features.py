"""Features of a folder of images, by a run or by released weights, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.config import from_dict
from ijepa import features, official
from ijepa.build import load_model, new_model
from ijepa.config import Config
from ijepa.crops import centred, to_input
from ijepa.images import read_image
from ijepa.statistics import IMAGENET


@pytest.fixture
def folder(tmp_path):
    """Five images, in the folder and in one below it."""
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for k, place in enumerate(("b.png", "more/c.png", "a.png", "more/a.png", "c.png")):
        cv2.imwrite(str(tmp_path / "images" / place), rng.integers(0, 256, (50 + k, 70, 3), np.uint8))
    return tmp_path / "images"


def expected(model, config: Config, path: Path) -> list[torch.Tensor]:
    image = torch.from_numpy(centred(read_image(str(path)), config))[None]
    with torch.no_grad():
        return model.target_encoder.layers(to_input(image, IMAGENET[3], torch.device("cpu")), 4)


def test_features_of_a_folder_by_a_run(trained, folder, tmp_path, capsys):
    words = ["--run", str(trained), "--data", str(folder), "--workers", "0", "--npz", str(tmp_path / "out.npz")]
    features.main([*words, "--tokens"])
    assert "features of 5 images" in capsys.readouterr().out
    config = from_dict(Config, json.loads((trained / "config.json").read_text()))
    model, _ = load_model(trained, config, 3, torch.device("cpu"))
    with np.load(tmp_path / "out.npz") as found:
        assert found["paths"].tolist() == ["a.png", "b.png", "c.png", "more/a.png", "more/c.png"]
        assert (found["mean"].shape, found["tokens"].shape) == ((5, 4, 128), (5, 64, 128))
        for k, path in enumerate(found["paths"]):
            layers = expected(model, config, folder / path)
            np.testing.assert_allclose(found["tokens"][k], layers[-1][0], atol=1e-5)
            np.testing.assert_allclose(found["mean"][k], torch.stack(layers, 1)[0].mean(1), atol=1e-5)
    features.main(words)
    with np.load(tmp_path / "out.npz") as found:
        assert found.files == ["paths", "mean"]


def test_features_of_a_folder_by_released_weights(folder, tmp_path):
    settings = ["size=32,32", "patch=8", "encoder=nano", "predictor_width=8", "predictor_depth=1", "workers=0"]
    config = Config(size=(32, 32), patch=8, encoder="nano", predictor_width=8, predictor_depth=1)
    model = new_model(config, 3)
    with torch.no_grad():
        model.target_encoder.norm.bias.add_(1)
    official.export(tmp_path / "file.pth.tar", model, 300, 0.1)
    words = ["--preset", "paper", "--init-from", str(tmp_path / "file.pth.tar"), "--data", str(folder)]
    features.main([*words, "--npz", str(tmp_path / "out.npz"), "--set", *settings])
    with np.load(tmp_path / "out.npz") as found:
        layers = expected(model, config, folder / "b.png")
        np.testing.assert_allclose(found["mean"][1], torch.stack(layers, 1)[0].mean(1), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--data", "images"], "name a run, --run, or released weights, --init-from"),
        (["--run", "RUN"], "name a folder of images, --data"),
        (["--run", "RUN", "--data", "nowhere"], "data: no images in nowhere"),
        (["--run", "nowhere", "--data", "images"], "nowhere is no run folder"),
        (["--run", "RUN", "--data", "images", "--npz", "none/out.npz"], "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_named_in_one_line(words, complaint, trained, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(trained) if word == "RUN" else word for word in words]
    with pytest.raises(SystemExit) as end:
        features.main(["--npz", "out.npz", "--workers", "0", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()

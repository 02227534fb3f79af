"""What of the hidden follows from the context: all, where images are made so; nothing, where patches know no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ijepa import known
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.data import Arrays
from ijepa.vit import gather_tokens, patch_grid

CPU = torch.device("cpu")
CONFIG = Config(
    task="digits", size=(28, 28), patch=2, encoder="pico", predictor_width=24, predictor_depth=1, batch_size=8,
    micro_batch_size=8, workers=0, precision="float32", centre_share=1.0,
)  # fmt: skip
SIDE = CONFIG.size[0]


class Patches(nn.Module):
    """An encoder that says the pixels of each patch."""

    grid, size = patch_grid(SIDE, SIDE, CONFIG.patch), SimpleNamespace(width=CONFIG.patch**2)

    def forward(self, images, masks=None):
        tokens = torch.pixel_unshuffle(images, CONFIG.patch).flatten(2).transpose(1, 2)
        return tokens if masks is None else gather_tokens(tokens, masks)


def share(monkeypatch, images):
    monkeypatch.setattr(known, "targets", lambda encoder, inputs: encoder(inputs))
    model: Any = SimpleNamespace(encoder=Patches(), target_encoder=Patches())
    train, test = (Arrays(part, np.zeros(len(part), np.int64)) for part in (images[:300], images[300:]))
    return known.known_share(model, train, test, CONFIG, CPU, "")


def patterns(rng, count):
    """Images that are a sum of three patterns in strengths of their own: a part of one says all of it."""
    strengths, shapes = rng.uniform(0, 1, (count, 3)), rng.uniform(0, 80, (3, SIDE * SIDE))
    return (strengths @ shapes).round().astype(np.uint8).reshape(count, SIDE, SIDE)


def test_all_of_the_hidden_is_known_where_it_is_a_linear_function_of_the_context(monkeypatch):
    values = share(monkeypatch, patterns(np.random.default_rng(0), 400))
    assert values.shape == (100,)
    assert 99 < values.mean() <= 100


def test_nothing_is_known_of_noise(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (400, SIDE, SIDE), np.uint8)
    assert -3 < share(monkeypatch, images).mean() < 1


def test_what_is_the_same_in_all_images_does_not_count_as_known(monkeypatch):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 200, (SIDE, SIDE))
    images = (scene + rng.integers(0, 20, (400, SIDE, SIDE))).astype(np.uint8)
    assert -3 < share(monkeypatch, images).mean() < 1


def test_targets_that_are_constants_leave_nothing_to_know(monkeypatch):
    assert (share(monkeypatch, np.full((400, SIDE, SIDE), 7, np.uint8)) == 0).all()


def test_of_networks_it_is_measured_with_and_without_what_they_were_before(monkeypatch):
    """What stands in single patches is found by no first weights; one brightness of the whole image is."""
    rng = np.random.default_rng(0)
    levels = np.broadcast_to(rng.integers(0, 256, (250, 1, 1), np.uint8), (250, SIDE, SIDE))
    noise = rng.integers(0, 256, (250, SIDE, SIDE), np.uint8)
    model = new_model(CONFIG, 1).eval()
    means = {}
    for word, images in (("levels", levels), ("noise", noise)):
        train, test = (Arrays(part, np.zeros(len(part), np.int64)) for part in (images[:200], images[200:]))
        alone = known.measure(CONFIG, model, train, test, CPU, has_controls=False)
        assert set(alone) == {known.KNOWN}
        both = known.measure(CONFIG, model, train, test, CPU, has_controls=True)
        assert both[f"{known.KNOWN}, untrained encoder"]["values"] == both[known.KNOWN]["values"]
        assert both[known.KNOWN] == alone[known.KNOWN]
        means[word] = alone[known.KNOWN]["value"]
    assert means["levels"] > 80
    assert means["noise"] < 10

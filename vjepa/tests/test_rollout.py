"""Roll-outs of states: what a step is, what it learns, where digits are told to be, and the record of a run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vjepa import evaluate, rollout, train
from vjepa.build import new_model
from vjepa.config import Config
from vjepa.digits import MAP, Digits
from vjepa.rollout import Step, precision_ahead, roll_out, rollout_loss, states, train_step_network

CPU = torch.device("cpu")
CONFIG = Config(
    task="digits", frames=8, size=(32, 32), patch=4, encoder="pico", predictor_width=24, predictor_depth=1,
    predictor_heads=2, positions="rotary", augment=False, flip=False, workers=0, precision="float32",
)  # fmt: skip


def moving(count: int, steps: int, seed: int) -> torch.Tensor:
    """States [count, steps, N, 4] in which a spot goes one column a step, and comes in again at the other side."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(count, MAP, MAP, 4)
    places = torch.randint(MAP, (2, count), generator=generator)
    first[torch.arange(count), places[0], places[1]] = 1
    return torch.stack([first.roll(k, 2) for k in range(steps)], 1).flatten(2, 3)


def test_a_state_sees_its_own_frames_and_no_other():
    encoder = new_model(CONFIG, 1).target_encoder.eval()
    clips = torch.randn(3, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    found = states(encoder, clips).unflatten(1, (4, -1))
    assert found.shape == (3, 4, MAP * MAP, 64)
    torch.testing.assert_close(found.mean(-1), torch.zeros(3, 4, MAP * MAP), atol=1e-5, rtol=0)
    changed = clips.clone()
    changed[:, :, 4:6] += 1  # the frames of the third state
    others = states(encoder, changed).unflatten(1, (4, -1))
    same = [torch.equal(found[:, k], others[:, k]) for k in range(4)]
    assert same == [True, True, False, True]


def test_a_roll_out_is_the_step_again_and_again_and_a_new_step_leaves_all_as_it_is():
    true = moving(5, 4, 0)
    step = Step(4, torch.Generator().manual_seed(0))
    for k, part in enumerate(roll_out(step, true, 3), 1):
        assert torch.equal(part, true[:, : 4 - k])
    nn.init.normal_(step.layers[-1].get_parameter("weight"), std=0.1, generator=torch.Generator().manual_seed(1))
    told = roll_out(step, true, 3)
    torch.testing.assert_close(told[2][:, 0], step(step(step(true[:, 0]))))
    torch.testing.assert_close(told[1][:, 1], step(step(true[:, 1])))


def test_the_loss_is_nothing_for_the_true_step_and_looks_as_far_ahead_as_it_is_asked_to():
    def shift(state):
        return state.unflatten(1, (MAP, MAP)).roll(1, 2).flatten(1, 2)

    true = moving(6, 4, 0)
    assert rollout_loss(shift, true, 3) == 0
    broken = true.clone()
    broken[:, 3] += 1
    by_step = [float(rollout_loss(shift, broken, k)) for k in (1, 2, 3)]
    # One of three, one of two and one of one outcomes is wrong by 1.
    assert by_step == pytest.approx([1 / 3, (1 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2 + 1) / 3])


def test_a_gradient_goes_through_all_steps():
    true = moving(2, 4, 0).requires_grad_()
    step = Step(4, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(roll_out(step, true, 3)[-1].sum(), true)
    assert (gradient[:, 0] != 0).all()
    assert (gradient[:, 1:] == 0).all()


def test_a_step_is_learnt_and_finds_what_has_moved(monkeypatch):
    for name, value in {"EPOCHS": 30, "LR": 1e-2, "HIDDEN": 8, "BATCH": 16}.items():
        monkeypatch.setattr(rollout, name, value)
    true, asked = moving(64, 4, 0), moving(32, 4, 1)
    step = train_step_network(true, 3, 0, CPU, "")
    again = train_step_network(true, 3, 0, CPU, "")
    assert all(torch.equal(a, b) for a, b in zip(step.parameters(), again.parameters(), strict=True))
    head = nn.Linear(4, 1)
    nn.init.ones_(head.weight)
    places = asked[..., :1]
    told = precision_ahead(step, head, asked, places, CPU)
    copied = precision_ahead(None, head, asked, places, CPU)
    assert told.shape == copied.shape == (32, 3)
    # A spot that comes in again at the other side is more than convolutions see.
    assert told[:, 0].mean() > 80
    assert copied.max() < 60


def test_places_copied_are_right_for_what_stands_still():
    true = moving(8, 1, 0).expand(-1, 4, -1, -1)
    head = nn.Linear(4, 1)
    nn.init.ones_(head.weight)
    assert (precision_ahead(None, head, true, true[..., :1], CPU) == 100).all()


def test_what_is_measured_of_a_model_and_of_its_controls(monkeypatch):
    monkeypatch.setattr(rollout, "EPOCHS", 1)
    train_clips, test_clips = (Digits(32, 8, 40, k, bool(k)) for k in range(2))
    models = {"V-JEPA": new_model(CONFIG, 1), "other": new_model(replace(CONFIG, seed=1), 1)}
    found = rollout.measure(models, train_clips, test_clips, CONFIG, CPU)
    words = {name: f"states rolled out, learnt with {name}" for name in ("1 step", "4 steps")}
    ends = ("", ", lost on the way", *(f", {frames} frames ahead" for frames in (2, 4, 6)))
    ours = {f"{name}{end}" for name in (*words.values(), "states copied") for end in ends}
    assert set(found) == ours | {f"{words['4 steps']}{end}, other" for end in ends}
    for name in (*words.values(), "states copied"):
        ahead = [found[f"{name}, {frames} frames ahead"] for frames in (2, 4, 6)]
        np.testing.assert_allclose(found[name], np.mean(ahead, 0))
        np.testing.assert_allclose(found[f"{name}, lost on the way"], ahead[0] - ahead[-1])


def test_a_run_on_digits_has_its_roll_outs_in_the_record(tmp_path):
    run = ["--run", str(tmp_path / "run")]
    words = ["updates=2", "probe_epochs=1", "workers=0"]
    train.main(["--preset", "smoke", "--task", "digits", *run, "--set", *words])
    evaluate.main(run)
    measured = json.loads((tmp_path / "run" / "record.json").read_text())["measurements"]
    rolled = {name for name, part in measured.items() if part["protocol"] == "digits-rollout"}
    assert len(rolled) == 3 * 5 + 5
    assert {"states copied", "states rolled out, learnt with 4 steps, untrained encoder"} <= rolled

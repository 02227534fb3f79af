"""The recipe of Two Rooms: sizes, terms of the loss by hand, shared norm, input."""

from __future__ import annotations

import pytest
import torch

from vjepa.ac.recipe import RecipeModel, new_recipe, probe_loss, recipe_losses, to_input
from vjepa.ac.worlds.rooms import TWO_ROOMS_RANDOM


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_published_sizes():
    with torch.device("meta"):
        model = RecipeModel((2, 65, 65), (16, 32, 32), 512, 2)
    assert count(model.encoder) == 1_426_096
    assert count(model.gru, model.encoder.norm) == 793_600
    assert count(model.inverse) == 328_706


def test_pictures_of_the_world_have_unit_variance():
    """The constants of the published input are those of these pictures: wall, door, dot, border."""
    states, _, layouts = TWO_ROOMS_RANDOM.trajectories(300, 20, torch.Generator().manual_seed(0))
    x = to_input(TWO_ROOMS_RANDOM.render(states[:, 0], layouts))
    for channel in (0, 1):
        assert float(x[:, channel].mean()) == pytest.approx(0.0, abs=0.01)
        assert float(x[:, channel].std()) == pytest.approx(1.0, abs=0.01)


def test_each_picture_is_spread_by_itself():
    pictures = torch.zeros(2, 2, 4, 4, dtype=torch.uint8)
    pictures[0, 0, 1, 1], pictures[1, 0, 1, 1], pictures[:, 1, 0] = 255, 51, 255
    x = to_input(pictures)
    assert torch.allclose(x[0], x[1])
    assert float(x[0, 0, 1, 1]) == pytest.approx((1 - 0.0026) / 0.0369)


def test_the_terms_by_hand():
    model = new_recipe((2, 9, 9), (4,), 6, 2, 0)
    rng = torch.Generator().manual_seed(0)
    frames, actions = torch.randn(3, 4, 2, 9, 9, generator=rng), torch.randn(3, 4, 2, generator=rng)
    found = recipe_losses(model, frames, actions, 2)
    z = model.encoder(frames)
    h = z[:, 0]
    errors = []
    for k in range(2):
        h = model.encoder.norm(model.gru(actions[:, k], h))
        errors.append((h - z[:, k + 1]).square().mean())
    flat = z.flatten(0, 1)
    covariance = torch.cov(flat.T)
    spread = torch.relu(1 - (flat.var(0) + 1e-4).sqrt())
    off = covariance - torch.diag(covariance.diagonal())
    guessed = model.inverse(torch.cat([z[:, :-1], z[:, 1:]], -1))
    expected = {
        "prediction": torch.stack(errors).mean(),
        "variance": spread.mean(),
        "covariance": off.square().sum() / (6 * 5),
        "similarity": (z[:, 1:] - z[:, :-1]).square().mean(),
        "inverse_dynamics": (guessed - actions[:, :3]).square().mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_the_target_of_a_prediction_has_a_gradient_and_the_probe_gives_none():
    model = new_recipe((2, 9, 9), (4,), 6, 2, 0)
    frames = torch.randn(3, 4, 2, 9, 9).requires_grad_()
    recipe_losses(model, frames, torch.zeros(3, 4, 2), 1)["prediction"].backward()
    assert frames.grad is not None
    assert float(frames.grad[:, 1].abs().max()) > 0
    model.zero_grad(set_to_none=True)
    probe_loss(model, frames.detach(), torch.zeros(3, 4, 2)).backward()
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert taught == {"probe"}

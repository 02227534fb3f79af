"""Where gradients go, what moves the target, how training begins, and what the collapse watch sees."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch

from common import eager
from ijepa import collapse
from ijepa.ablations import TOKENS, pixel_tokens, step_towards
from ijepa.jepa import (
    Schedule,
    distance,
    new_jepa,
    new_optimizer,
    normalise,
    predict,
    select,
    targets,
    update_target,
)
from ijepa.masks import MaskConfig, sample_masks
from ijepa.predictor import Predictor
from ijepa.train import compile_blocks, micro_step, train_step
from ijepa.vit import Size, VisionTransformer

MASKS = MaskConfig(4, 6, 3, 1, (0.2, 0.3), (1.0, 1.0), (0.9, 1.0), 2, False)
SCHEDULE = Schedule(10, 2, 1.0, 1e-4, 1e-3, 1e-5, 0.04, 0.4, 0.9, 1.0)


def model(size=Size(16, 2, 2, 32), dtype=torch.float64):  # noqa: B008
    encoder = VisionTransformer(32, 48, 3, 8, size)
    predictor = Predictor(encoder.grid, size.width, 8, 2, 2)
    return new_jepa(encoder, predictor, torch.Generator().manual_seed(0)).to(dtype)


def batch(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 32, 48, generator=generator, dtype=torch.float64)
    return images, sample_masks(MASKS, count, 0, generator)


def test_gradients_reach_encoder_and_predictor_and_nothing_else():
    jepa, (images, masks) = model(), batch()
    distance(predict(jepa, images, masks), select(targets(jepa.target_encoder, images), masks)).backward()
    for part in (jepa.encoder, jepa.predictor):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    assert all(p.grad is None for p in jepa.target_encoder.parameters())


@pytest.mark.parametrize("target", ["online", "attached", "pixels"])
def test_only_the_attached_target_has_a_gradient(target):
    jepa, (images, _) = model(), batch()
    assert TOKENS[target](jepa, images).requires_grad == (target == "attached")


def test_an_ablation_differs_from_the_method_in_its_target_alone():
    """Before the first update the target encoder is the encoder."""
    jepa, (images, masks) = model(), batch()
    parts = images, masks.context, masks.target
    ours, online = micro_step(jepa, *parts), step_towards("online")(jepa, *parts)
    for a, b in zip(ours, online, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        jepa.target_encoder.norm.weight.mul_(torch.linspace(0.5, 2, 16))
    assert not torch.allclose(micro_step(jepa, *parts)[0], online[0])


def test_the_target_moves_by_its_momentum():
    jepa, (images, masks) = model(), batch()
    before = copy.deepcopy(jepa.target_encoder)
    train_step(jepa, new_optimizer(jepa), [(images, masks)], SCHEDULE, 0)
    for name, p in jepa.target_encoder.named_parameters():
        online = jepa.encoder.get_parameter(name)
        torch.testing.assert_close(p, 0.9 * before.get_parameter(name) + 0.1 * online)
        assert not p.requires_grad
    update_target(jepa.target_encoder, jepa.encoder, 0.0)
    for name, p in jepa.target_encoder.named_parameters():
        torch.testing.assert_close(p, jepa.encoder.get_parameter(name))


def test_micro_batches_are_averaged():
    """Two with masks of one length are the batch that they make up."""
    (images, masks), parts = batch(), []
    for rows in (slice(0, 2), slice(2, 4)):
        half = copy.copy(masks)
        object.__setattr__(half, "context", [mask[rows] for mask in masks.context])
        object.__setattr__(half, "target", [mask[rows] for mask in masks.target])
        parts.append((images[rows], half))
    whole, split = model(), model()
    one = train_step(whole, new_optimizer(whole), [(images, masks)], SCHEDULE, 0)
    two = train_step(split, new_optimizer(split), parts, SCHEDULE, 0)
    torch.testing.assert_close(one["loss"], two["loss"])
    for name, p in whole.named_parameters():
        if "qkv.bias" not in name:  # the gradient of the keys' bias is rounding noise, which Adam enlarges
            torch.testing.assert_close(p, split.get_parameter(name), msg=name)


def test_products_in_bfloat16_change_an_update_by_their_rounding_alone():
    (images, masks), found = batch(), {}
    for dtype in (torch.float32, torch.bfloat16):
        jepa = model(Size(64, 2, 2, 256), torch.float32)
        loss = train_step(jepa, new_optimizer(jepa), [(images.float(), masks)], SCHEDULE, 0, dtype=dtype)["loss"]
        assert all(p.dtype == torch.float32 for p in jepa.parameters())
        found[dtype] = loss, torch.cat([p.grad.flatten() for p in jepa.parameters() if p.grad is not None])
    (exact, gradient), (loss, rounded) = found.values()
    assert loss != exact
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert torch.cosine_similarity(gradient, rounded, dim=0) > 0.99


def test_training_begins_as_the_released_one():
    """Every layer has std 0.02, in the last block too: the official factory undoes the official rescaling by depth."""
    jepa = model(Size(64, 6, 2, 256))
    for block in (jepa.encoder.blocks[0], jepa.encoder.blocks[5]):
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
    assert jepa.encoder.patch_embed.proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert 0 < jepa.predictor.mask_token.std().item() < 0.04
    assert torch.equal(jepa.target_encoder.blocks[5].mlp.fc2.weight, jepa.encoder.blocks[5].mlp.fc2.weight)


def test_biases_and_norms_do_not_decay_and_the_mask_token_does():
    jepa = model()
    groups = new_optimizer(jepa).param_groups
    assert [group["decays"] for group in groups] == [True, True, False, False]
    decaying = {id(p) for group in groups[:2] for p in group["params"]}
    for name, p in (*jepa.encoder.named_parameters(), *jepa.predictor.named_parameters()):
        assert (id(p) in decaying) == (name == "mask_token" or (p.ndim > 1)), name
    assert sum(len(group["params"]) for group in groups) == len(
        [*jepa.encoder.parameters(), *jepa.predictor.parameters()]
    )


def test_schedules_reach_their_ends_unless_stretched():
    assert SCHEDULE.lr_at(9) == pytest.approx(1e-5)
    assert SCHEDULE.weight_decay_at(9) == pytest.approx(0.4)
    assert SCHEDULE.momentum_at(10) == pytest.approx(1.0)
    stretched = Schedule(10, 2, 1.25, 1e-4, 1e-3, 1e-5, 0.04, 0.4, 0.9, 1.0)
    assert stretched.lr_at(9) > 1e-5
    assert stretched.momentum_at(10) == pytest.approx(0.98)


def test_pixel_targets_are_normalised_patches():
    images, _ = batch()
    found = pixel_tokens(model(), images)
    assert found.shape == (4, 24, 192)
    patch = images[1, :, 8:16, 16:24].flatten()  # row 1, column 2
    torch.testing.assert_close(found[1, 8], normalise(patch))


def test_the_watch_tells_a_collapsed_encoder_from_a_healthy_one():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(64, 24, 16, generator=generator)
    same = torch.ones(64, 24, 16) * torch.randn(16, generator=generator)
    line = torch.randn(64, 1, 1, generator=generator) * torch.ones(64, 24, 16)
    loss = torch.tensor(0.1)
    places = [torch.arange(4).expand(64, -1), torch.arange(8, 12).expand(64, -1)]
    found = collapse.watch(healthy, places, loss)
    assert found["rank"] > 12
    assert 0.5 < found["std"] <= 1
    assert found["vs_constant"] < 1
    assert collapse.watch(line, places, loss)["rank"] == pytest.approx(1.0, abs=1e-3)
    collapsed = collapse.watch(same, places, torch.tensor(0.0))
    assert collapsed["std"] < 1e-3
    assert collapsed["rank"] == 0
    assert all(math.isfinite(value) for value in collapsed.values())


def test_a_constant_for_each_place_stands_at_one():
    """However different the places are: who knows only them has predicted nothing of an image."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 5, 16, generator=generator) + 9 * torch.randn(5, 16, generator=generator)
    masks = [torch.tensor([[0, 1]] * 8), torch.tensor([[3, 4]] * 8)]
    constant = tokens.mean(0).expand_as(tokens)
    wanted, known = (torch.cat([part[:, mask[0]] for mask in masks]) for part in (tokens, constant))
    assert collapse.watch(tokens, masks, distance(known, wanted))["vs_constant"] == pytest.approx(1.0)


def test_compiled_blocks_are_traced_whole_and_agree(monkeypatch):
    """Without a code generator: what counts is that no length of a mask breaks the graph, or makes one of its own.

    torch.compile gives up on a function after some forms; a second model, of another precision, counts anew.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    losses, before = [], {}
    with torch._dynamo.config.patch(recompile_limit=4):
        for is_rounded in (False, True):
            plain, compiled = model(dtype=torch.float32), model(dtype=torch.float32)
            compile_blocks(compiled)
            for count in (3, 4, 5):
                images, masks = batch(count, seed=count)
                with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
                    one, two = (
                        micro_step(m, images.float(), masks.context, masks.target)[0] for m in (plain, compiled)
                    )
                torch.testing.assert_close(two, one)
                losses.append(float(two.detach()))
                if count == 4:
                    before = dict(torch._dynamo.utils.counters["stats"])
            assert torch._dynamo.utils.counters["stats"] == before, "a new length made a new graph"
    assert len(set(losses)) > 3
    assert eager.marks() == ()

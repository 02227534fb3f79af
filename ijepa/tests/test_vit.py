"""Sizes, places and independence of encoder and predictor."""

from __future__ import annotations

import pytest
import torch

from ijepa.features import pooled_layers
from ijepa.jepa import new_jepa
from ijepa.predictor import Predictor
from ijepa.vit import SIZES, Size, VisionTransformer, position_table, resized_table

SMALL = Size(16, 2, 2, 32)
COUNTS = {  # patch, side, encoder, encoder with table, predictor depth, predictor, predictor with table
    ("tiny", 16, 224): (5_486_400, 5_524_032, 6, 10_795_968, 10_871_232),
    ("small", 16, 224): (21_589_632, 21_664_896, 6, 10_943_616, 11_018_880),
    ("base", 16, 224): (85_646_592, 85_797_120, 6, 11_238_912, 11_314_176),
    ("large", 16, 224): (303_098_880, 303_299_584, 12, 22_082_560, 22_157_824),
    ("huge", 14, 224): (630_434_560, 630_762_240, 12, 22_279_424, 22_377_728),
    ("huge", 16, 448): (630_664_960, 631_668_480, 12, 22_279_424, 22_580_480),
    ("giant", 16, 224): (1_011_092_608, 1_011_368_576, 16, 29_475_712, 29_550_976),
}


@pytest.mark.parametrize(("name", "patch", "side"), COUNTS)
def test_parameter_counts_are_those_of_the_official_modules(name, patch, side, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.empty(array.shape, device="meta"))
    with torch.device("meta"):
        encoder = VisionTransformer(side, side, 3, patch, SIZES[name])
        trainable, stored, depth, *of_predictor = COUNTS[name, patch, side]
        predictor = Predictor(encoder.grid, SIZES[name].width, 384, depth, SIZES[name].heads)
    for module, numbers in ((encoder, [trainable, stored]), (predictor, of_predictor)):
        counted = sum(p.numel() for p in module.parameters())
        assert [counted, counted + sum(b.numel() for b in module.buffers())] == numbers


def model(height=32, width=48, channels=3, patch=8):
    encoder = VisionTransformer(height, width, channels, patch, SMALL)
    predictor = Predictor(encoder.grid, 16, 8, 2, 2)
    return new_jepa(encoder, predictor, torch.Generator().manual_seed(0)).double()


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rectangular_images_have_their_own_grid():
    encoder = model().encoder
    assert encoder.grid == (4, 6)
    assert encoder(images(2, 3, 32, 48)).shape == (2, 24, 16)
    table = position_table(16, 4, 6).reshape(4, 6, 16)
    assert (table[0, :, :8] == table[3, :, :8]).all()  # the column, the same in each row
    assert (table[:, 0, 8:] == table[:, 5, 8:]).all()
    assert len({row.tobytes() for row in table.reshape(24, 16)}) == 24


def test_patches_are_numbered_row_by_row():
    encoder = model().encoder
    first = images(1, 3, 32, 48)
    second = first.clone()
    second[:, :, 8:16, 16:24] += 1  # row 1, column 2 of 6
    changed = (encoder.patch_embed(first) - encoder.patch_embed(second)).abs().sum(-1)[0].nonzero()
    assert changed.tolist() == [[8]]


@torch.no_grad()
def test_images_of_a_batch_are_independent():
    encoder, batch = model().encoder, images(3, 3, 32, 48)
    torch.testing.assert_close(encoder(batch)[1:2], encoder(batch[1:2]))


@torch.no_grad()
def test_context_tokens_see_each_other_only():
    encoder, batch = model().encoder, images(1, 3, 32, 48)
    mask = torch.tensor([[0, 7, 8]])
    other = batch.clone()
    other[:, :, :, 40:] = 0  # column 5, which the mask has not
    torch.testing.assert_close(encoder(batch, [mask]), encoder(other, [mask]), rtol=0, atol=0)
    assert not torch.allclose(encoder(batch), encoder(other))


@torch.no_grad()
def test_all_patches_as_mask_are_the_full_image():
    encoder, batch = model().encoder, images(2, 3, 32, 48)
    torch.testing.assert_close(encoder(batch, [torch.arange(24).expand(2, -1)]), encoder(batch))


def test_the_last_tokens_alone_are_those_of_all():
    block = model().encoder.blocks[0]
    x = images(3, 10, 16).requires_grad_()
    whole, part = block(x)[:, -4:], block.last(x, 4)
    torch.testing.assert_close(part, whole)
    for ours, theirs in zip(
        torch.autograd.grad(part.square().sum(), [x, *block.parameters()]),
        torch.autograd.grad(whole.square().sum(), [x, *block.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_layers_end_with_the_output():
    encoder, batch = model().encoder, images(2, 3, 32, 48)
    found = encoder.layers(batch, 2)
    assert len(found) == 2
    torch.testing.assert_close(found[-1], encoder(batch))


@torch.no_grad()
def test_target_blocks_do_not_see_each_other_and_the_context_order_does_not_matter():
    predictor = model().predictor
    context = images(2, 3, 16)
    kept, targets = (
        torch.tensor([[0, 1, 2], [3, 4, 5]]),
        [torch.tensor([[7, 8], [9, 10]]), torch.tensor([[11, 12]] * 2)],
    )
    both = predictor(context, [kept], targets)
    torch.testing.assert_close(both[:2], predictor(context, [kept], targets[:1]))
    torch.testing.assert_close(both[2:], predictor(context, [kept], targets[1:]))
    turned = predictor(context.flip(1), [kept.flip(1)], targets)
    torch.testing.assert_close(turned, both)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: model(height=36), "an image of 36 x 48 pixels is no whole number of patches of 8 x 8"),
        (lambda: position_table(18, 2, 2), "a width that 4 divides, not 18"),
        (lambda: VisionTransformer(32, 32, 3, 8, Size(16, 1, 3, 32)), "3 heads do not divide a width of 16"),
        (lambda: model().encoder(images(2, 3, 48, 32)), r"expected \[B, 3, 32, 48\], got \[2, 3, 48, 32\]"),
        (lambda: model().predictor(images(3, 3, 16), [torch.zeros(2, 3).long()], []), "3 rows, masks for 2"),
    ],
)
def test_what_does_not_fit_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_resized_position_table_keeps_the_places_of_its_own_grid():
    """Twice as many patches lie between the old ones: the table there is that of half places, but at the border."""
    table = torch.from_numpy(position_table(32, 12, 12)).float()[None]
    torch.testing.assert_close(resized_table(table, 12, 12), table)
    found = resized_table(table, 24, 24).unflatten(1, (24, 24))[0, 4:20, 4:20]
    w = 10000.0 ** (-torch.arange(8) / 8)
    place = (torch.arange(24)[4:20] + 0.5) / 2 - 0.5
    half = torch.cat([(place[:, None] * w).sin(), (place[:, None] * w).cos()], 1)
    torch.testing.assert_close(found[..., :16], half[None].expand(16, -1, -1), rtol=0, atol=0.04)
    torch.testing.assert_close(found[..., 16:], half[:, None].expand(-1, 16, -1), rtol=0, atol=0.04)
    with pytest.raises(ValueError, match="140 places is of no square grid"):
        resized_table(torch.zeros(1, 140, 32), 10, 10)


def test_more_blocks_than_there_are_cannot_be_asked_for():
    """The probes ask for four, or for all of an encoder that has fewer."""
    encoder, images = VisionTransformer(16, 16, 3, 8, Size(16, 3, 2, 32)), torch.rand(2, 3, 16, 16)
    assert len(encoder.layers(images, 3)) == 3
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"the last {count} blocks of an encoder of 3"):
            encoder.layers(images, count)
    assert pooled_layers(encoder, images).shape == (2, 3, 16)

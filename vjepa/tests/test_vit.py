"""Sizes, places and independence of encoder and predictor."""

from __future__ import annotations

import math

import pytest
import torch

from vjepa.predictor import Predictor, initialise_predictor
from vjepa.vit import (
    SIZES,
    Block,
    Size,
    VideoTransformer,
    axis_width,
    gather_tokens,
    initialise,
    places_of,
    position_table,
    rotate,
    rotation,
    tubelets,
    video_rotation,
    video_table,
)

SMALL = Size(24, 2, 2, 48)
CLIP = (4, 16, 24)
COUNTS = {  # positions, side, frames: encoder, encoder with table, predictor, predictor with table
    ("base", "sincos", 224): (86_236_416, 87_440_640, 21_886_080, 22_488_192),
    ("large", "sincos", 224): (303_885_312, 305_490_944, 22_082_944, 22_685_056),
    ("huge", "sincos", 224): (631_648_000, 633_655_040, 22_279_808, 22_881_920),
    ("huge", "sincos", 384): (631_648_000, 637_546_240, 22_279_808, 24_049_280),
    ("base", "rotary", 256): (86_236_416, 86_236_416, 21_889_152, 21_889_152),
    ("large", "rotary", 256): (303_885_312, 303_885_312, 22_086_016, 22_086_016),
    ("huge", "rotary", 256): (631_648_000, 631_648_000, 22_282_880, 22_282_880),
    ("giant", "rotary", 256): (1_012_173_952, 1_012_173_952, 22_381_312, 22_381_312),
    ("giant", "rotary", 384): (1_012_173_952, 1_012_173_952, 22_381_312, 22_381_312),
}


@pytest.mark.parametrize(("name", "positions", "side"), COUNTS)
def test_parameter_counts_are_those_of_the_official_modules(name, positions, side, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.empty(array.shape, device="meta"))
    size, heads, tokens = SIZES[name], SIZES[name].heads if positions == "sincos" else 12, 2
    with torch.device("meta"):
        encoder = VideoTransformer((16, side, side), 3, 2, 16, size, positions)
        tokens = 2 if positions == "sincos" else 10
        predictor = Predictor(encoder.grid, size.width, 384, 12, heads, tokens, positions)
    found = []
    for module in (encoder, predictor):
        counted = sum(p.numel() for p in module.parameters())
        found += [counted, counted + sum(b.numel() for b in module.buffers())]
    assert tuple(found) == COUNTS[name, positions, side]


def new_encoder(positions):
    encoder = VideoTransformer(CLIP, 3, 2, 8, SMALL, positions)
    initialise(encoder, torch.Generator().manual_seed(0))
    return encoder.double()


def new_predictor(positions):
    predictor = Predictor((2, 2, 3), 24, 24, 2, 2, 2, positions)
    initialise_predictor(predictor, torch.Generator().manual_seed(1))
    return predictor.double()


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tokens_are_numbered_by_time_then_row_then_column():
    first = clips(1, 3, *CLIP)
    second = first.clone()
    second[:, :, 2, 8:16, 16:24] += 1  # time 1 of 2, row 1 of 2, column 2 of 3
    changed = (tubelets(first, 2, 8) - tubelets(second, 2, 8)).abs().sum(-1)[0].nonzero()
    assert changed.tolist() == [[11]]
    assert places_of(torch.tensor(11), (2, 2, 3)).tolist() == [1, 1, 2]
    assert new_encoder("rotary").grid == (2, 2, 3)


def test_tubelets_are_what_the_convolution_sees():
    encoder, batch = new_encoder("rotary"), clips(2, 3, *CLIP)
    wanted = encoder.patch_embed.proj(batch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(batch), wanted)


def test_the_table_has_time_row_and_column_and_cuts_the_column():
    table = video_table(32, (2, 3, 4)).reshape(2, 3, 4, 32)  # 12, 12 and 8 channels
    assert (table[0, :, :, :12] == table[0, 0, 0, :12]).all()
    assert (table[:, 1, :, 12:24] == table[0, 1, 0, 12:24]).all()
    assert (table[:, :, 2, 24:] == table[0, 0, 2, 24:]).all()
    assert len({row.tobytes() for row in table.reshape(24, 32)}) == 24
    with pytest.raises(ValueError, match="even width for each axis, not 3"):
        position_table((4, 3), (2, 2))


def test_rotations_leave_what_has_no_axis_and_what_stands_at_the_origin():
    x = clips(2, 3, 5, 20)  # 6 channels for each axis, 2 left
    assert axis_width(20) == 6
    places = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [4, 5, 6]])
    turned = rotate(x, video_rotation(places, 20))
    same = (turned == x).all(1).all(0)
    assert same[0].all()
    for k in (1, 2, 3):  # the token with a position on axis k - 1 alone
        assert same[k].tolist() == [not 6 * (k - 1) <= channel < 6 * k for channel in range(20)]
    assert same[4].tolist() == [channel >= 18 for channel in range(20)]
    one = rotate(x[..., :6], rotation(places[:, 0], 6))
    torch.testing.assert_close(turned[..., :6], one)


def test_angles_are_as_precise_as_what_they_turn():
    wanted = [math.cos(50 * 10000 ** (-i / 3)) for i in (0, 1, 2, 0, 1, 2)]
    for dtype, kept, accuracy in (
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
    ):
        found = rotation(torch.tensor([50]), 6, dtype).cos
        assert found.dtype == kept
        torch.testing.assert_close(found[0].double(), torch.tensor(wanted, dtype=torch.float64), atol=accuracy, rtol=0)
    by = new_encoder("rotary").embed(clips(1, 3, *CLIP))[1]
    assert by is not None
    assert by.cos.dtype == torch.float64


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_clips_of_a_batch_are_independent(positions):
    encoder, batch = new_encoder(positions), clips(3, 3, *CLIP)
    torch.testing.assert_close(encoder(batch)[1:2], encoder(batch[1:2]))
    mask = torch.tensor([[0, 7, 8], [1, 2, 3], [9, 10, 11]])
    torch.testing.assert_close(encoder(batch, mask)[1:2], encoder(batch[1:2], mask[1:2]))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_context_tokens_see_each_other_only(positions):
    encoder, batch = new_encoder(positions), clips(1, 3, *CLIP)
    mask = torch.tensor([[0, 4, 7]])
    other = batch.clone()
    other[..., 16:] = 0  # column 2, which the mask has not
    torch.testing.assert_close(encoder(batch, mask), encoder(other, mask), rtol=0, atol=0)
    assert not torch.allclose(encoder(batch), encoder(other))
    all_tokens = torch.arange(12)[None]
    torch.testing.assert_close(encoder(batch, all_tokens), encoder(batch))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_order_of_context_tokens_has_no_effect(positions):
    """Hence V-JEPA 2's sorting may be left out."""
    predictor, context = new_predictor(positions), clips(2, 5, 24)
    context_mask, target_mask = torch.tensor([[0, 3, 4, 8, 11]] * 2), torch.tensor([[1, 2], [5, 10]])
    order = torch.tensor([3, 0, 4, 1, 2])
    found = predictor(context[:, order], context_mask[:, order], target_mask)
    torch.testing.assert_close(found, predictor(context, context_mask, target_mask))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_predictions_depend_on_the_place_asked_for(positions):
    predictor, context = new_predictor(positions), clips(1, 2, 24)
    found = predictor(context, torch.tensor([[0, 1]]), torch.tensor([list(range(12))]))
    assert len({row.numpy().tobytes() for row in found[0]}) == 12


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_mask_tokens_are_counted_round(positions):
    predictor, context = new_predictor(positions), clips(1, 2, 24)
    for number, token in enumerate(predictor.mask_tokens):
        token[..., number] = 1.0
    masks = torch.tensor([[0, 1]]), torch.tensor([[2, 3]])
    one, other, third = (predictor(context, *masks, number) for number in range(3))
    assert torch.equal(one, third)
    assert not torch.allclose(one, other)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_last_tokens_alone_are_those_of_all(positions):
    block, x = Block(24, 2, 48).double(), clips(2, 7, 24)
    by = video_rotation(places_of(torch.arange(7), (2, 2, 2)), 12) if positions == "rotary" else None
    torch.testing.assert_close(block(x, by, None, 3), block(x, by)[:, -3:])


@torch.no_grad()
def test_a_mask_hides_keys():
    block, x = Block(24, 2, 48).double(), clips(2, 4, 24)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(block(x, None, causal)[:, :2], block(x[:, :2], None, causal[:2, :2]))


@torch.no_grad()
def test_longer_clips_go_on_counting():
    """The first tokens of a longer clip have the places that they have in the shorter one."""
    encoder = new_encoder("rotary")
    batch = clips(1, 3, 8, 16, 24)
    first = torch.arange(12)[None]
    torch.testing.assert_close(encoder(batch, first), encoder(batch[:, :, :4]))
    assert new_encoder("sincos")(batch).shape == (1, 24, 24)


def test_layers_are_outputs_of_the_blocks_asked_for():
    encoder, batch = new_encoder("sincos"), clips(1, 3, *CLIP)
    last, first = encoder.layers(batch, (1, 0))
    torch.testing.assert_close(last, encoder(batch))
    assert not torch.allclose(last, first)
    with pytest.raises(ValueError, match="an encoder of 2 blocks has no block 2"):
        encoder.layers(batch, (2,))


def test_blocks_are_scaled_by_depth_in_the_second_generation_alone():
    for positions, share in (("sincos", 1.0), ("rotary", 2**-0.5)):
        predictor = Predictor((2, 2, 2), 24, 240, 2, 2, 2, positions)
        initialise_predictor(predictor, torch.Generator().manual_seed(0))
        first, second = (predictor.get_parameter(f"predictor_blocks.{k}.attn.proj.weight").std() for k in range(2))
        torch.testing.assert_close(second / first, torch.tensor(share), rtol=0.02, atol=0)
        assert all(not token.any() for token in predictor.mask_tokens)


@pytest.mark.parametrize(
    ("clip", "positions", "complaint"),
    [
        ((5, 16, 16), "sincos", "a clip of 5 frames is no whole number of tubelets of 2"),
        ((4, 16, 20), "rotary", "a frame of 16 x 20 pixels is no whole number of patches of 8 x 8"),
        ((0, 16, 16), "rotary", "a clip of 0 frames"),
        ((4, 16, 16), "learned", "positions are sincos or rotary"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(clip, positions, complaint):
    with pytest.raises(ValueError, match=complaint):
        VideoTransformer(clip, 3, 2, 8, SMALL, positions)


def test_narrow_heads_have_no_room_for_rotary_positions():
    with pytest.raises(ValueError, match="at least 12 channels, not 8"):
        VideoTransformer(CLIP, 3, 2, 8, Size(16, 1, 2, 32), "rotary")
    with pytest.raises(ValueError, match="clips: expected"):
        new_encoder("rotary")(clips(1, 1, *CLIP))


def test_gathering_keeps_the_order_of_the_mask():
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    for dtype in (torch.int64, torch.int32, torch.int16):
        mask = torch.tensor([[2, 0], [3, 3]], dtype=dtype)
        assert gather_tokens(tokens, mask)[:, :, 0].tolist() == [[6, 0], [9, 9]]

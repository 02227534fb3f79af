"""The action-conditioned predictor: what sees what, rollouts with a memory, its size, and the official file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vjepa.ac import official
from vjepa.ac.imagination import encode_pictures, in_colour
from vjepa.ac.losses import ac_losses, roll_out
from vjepa.ac.predictor import ACPredictor, Memory, attend, block_causal_mask, new_ac_predictor
from vjepa.jepa import normalise
from vjepa.vit import Block, Size, VideoTransformer, initialise, rotate, video_rotation


def small(generator: torch.Generator | None = None) -> ACPredictor:
    return new_ac_predictor((2, 3), 20, 32, 2, 2, 4, 3, generator or torch.Generator().manual_seed(0))


def inputs(frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, frames * 6, 20, generator=rng),
        torch.randn(2, frames, 4, generator=rng),
        torch.randn(2, frames, 3, generator=rng),
    )


def test_blocks_of_a_frame_equal_the_full_mask():
    model = small()
    block = model.predictor_blocks[0]
    assert isinstance(block, Block)
    x, by = torch.randn(2, 4 * 8, 32), model._rotation(0, 4, torch.device("cpu"))
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    mask = block_causal_mask(4, 8)
    full = F.scaled_dot_product_attention(rotate(q, by), rotate(k, by), v, attn_mask=mask)
    expected = block.attn.proj(full.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attend(block, x, by, 8, 0, None), expected, atol=1e-6, rtol=1e-5)


def test_columns_are_as_far_apart_as_in_a_square_frame():
    """2 x 3 patches: column 2 stands at 2 * 2/3, from the rule of the reference code."""
    by = small()._rotation(1, 1, torch.device("cpu"), torch.float64)
    patches = [[1, row, column * 2 / 3] for row in range(2) for column in range(3)]
    wanted = video_rotation(torch.tensor([[1, 0, 0], [1, 0, 0], *patches], dtype=torch.float64), 16, torch.float64)
    torch.testing.assert_close(by.cos[0], wanted.cos, atol=1e-14, rtol=0)
    torch.testing.assert_close(by.sin[0], wanted.sin, atol=1e-14, rtol=0)


def test_the_future_is_not_seen():
    model = small()
    z, actions, states = inputs(4)
    before = model(z, actions, states)
    actions[:, 2] += 1
    after = model(z, actions, states)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:18], after[:, 12:18])
    assert not torch.allclose(before[:, 18:], after[:, 18:]), "a later frame sees it"


def test_a_memory_gives_what_all_frames_give():
    model = small()
    z, actions, states = inputs(5)
    whole = model(z, actions, states)
    memory, parts = Memory(), []
    for first, last in ((0, 2), (2, 3), (3, 5)):
        part = model.extend(z[:, first * 6 : last * 6], actions[:, first:last], states[:, first:last], memory)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_a_rollout_feeds_its_own_predictions():
    model = small()
    z, actions, states = inputs(3)
    z = normalise(z[:, :6])
    found = list(roll_out(model, z, actions, states.unbind(1)))
    fed = z
    for step in range(3):
        out = normalise(model(fed, actions[:, : step + 1], states[:, : step + 1]))[:, -6:]
        torch.testing.assert_close(found[step], out, atol=1e-5, rtol=1e-4)
        fed = torch.cat([fed, out], 1)


def test_gradients_reach_what_they_should():
    model = small()
    z, actions, states = inputs(4)
    losses = ac_losses(model, normalise(z), actions[:, :3], states, 2)
    torch.stack(list(losses.values())).sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == {"extrinsics_encoder.weight", "extrinsics_encoder.bias"}


def test_wrong_shapes_are_named():
    z, actions, states = inputs(3)
    with pytest.raises(ValueError, match="3 actions, 2 states and 18 patches"):
        small()(z, actions, states[:, :2])
    with pytest.raises(ValueError, match="cameras"):
        small()(z, actions, states, torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match="at least 12"):
        ACPredictor((2, 2), 20, 16, 1, 2, 7, 7)


def test_the_published_size():
    with torch.device("meta"):
        model = ACPredictor((16, 16), 1408, 1024, 24, 16, 7, 7)
    assert sum(p.numel() for p in model.parameters()) == 305_220_992


def test_an_encoder_sees_each_picture_alone():
    encoder = VideoTransformer((2, 16, 16), 3, 2, 8, Size(32, 2, 2, 64), "rotary")
    initialise(encoder, torch.Generator().manual_seed(0))
    pictures = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    z = encode_pictures(encoder, pictures, 16)
    assert z.shape == (2, 3, 4, 32)
    torch.testing.assert_close(encode_pictures(encoder, pictures[1, 2], 16), z[1, 2], atol=1e-5, rtol=1e-4)
    assert float(z.mean(-1).abs().max()) < 1e-5
    assert encode_pictures(encoder, pictures[..., :15, :15], 16).shape == z.shape
    assert encode_pictures(encoder, pictures[..., :2, :, :], 16).shape == z.shape


def test_dot_and_walls_become_a_colour_picture():
    pictures = torch.tensor([[[0, 200, 255]], [[0, 0, 255]]], dtype=torch.uint8)
    assert in_colour(pictures)[:, 0].T.tolist() == [[255, 255, 255], [255, 55, 55], [0, 0, 0]]


# --- the official file ------------------------------------------------------------------------------------------------


def official_file(path: Path, encoder: VideoTransformer, predictor: ACPredictor) -> Path:
    """A file with the official names, prefixes and left-over tables."""
    first = {f"module.backbone.{k}": v for k, v in encoder.state_dict().items()}
    first["module.backbone.pos_embed"] = torch.zeros(1, 4, 32)
    second = {f"module.{k}": v for k, v in predictor.state_dict().items()}
    torch.save({"encoder": first, "predictor": second, "epoch": 315}, path)
    return path


@pytest.fixture
def pair() -> tuple[VideoTransformer, ACPredictor]:
    encoder = VideoTransformer((2, 16, 16), 3, 2, 8, Size(32, 2, 2, 64), "rotary")
    initialise(encoder, torch.Generator().manual_seed(5))
    return encoder, new_ac_predictor((2, 2), 32, 32, 2, 2, 7, 7, torch.Generator().manual_seed(5))


def test_an_official_file_is_loaded(pair, tmp_path):
    path = official_file(tmp_path / "vjepa2-ac.pt", *pair)
    encoder = VideoTransformer((2, 16, 16), 3, 2, 8, Size(32, 2, 2, 64), "rotary")
    predictor = ACPredictor((2, 2), 32, 32, 2, 2, 7, 7)
    official.load_encoder(path, encoder)
    official.load_predictor(path, predictor)
    for ours, theirs in zip((encoder, predictor), pair, strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)


def test_the_names_are_those_of_the_published_predictor():
    with torch.device("meta"):
        model = ACPredictor((16, 16), 1408, 1024, 24, 16, 7, 7)
    assert set(official.predictor_keys(24)) == set(model.state_dict())
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["predictor_embed.weight"] == (1024, 1408)
    assert shapes["action_encoder.weight"] == shapes["state_encoder.weight"] == (1024, 7)
    assert shapes["extrinsics_encoder.weight"] == (1024, 6)
    assert shapes["predictor_blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["predictor_blocks.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["predictor_proj.weight"] == (1408, 1024)


def test_another_depth_a_missing_part_and_no_checkpoint_are_one_line(pair, tmp_path):
    path = official_file(tmp_path / "vjepa2-ac.pt", *pair)
    with pytest.raises(ValueError, match="of another model or size: predictor_blocks.1"):
        official.load_predictor(path, ACPredictor((2, 2), 32, 32, 1, 2, 7, 7))
    with pytest.raises(ValueError, match=r"action_encoder.weight is \[32, 7\], ours \[32, 2\]"):
        official.load_predictor(path, ACPredictor((2, 2), 32, 32, 2, 2, 2, 7))
    torch.save({"encoder": 3}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="has no predictor"):
        official.load_predictor(tmp_path / "odd.pt", pair[1])
    (tmp_path / "text.pt").write_text("nothing")
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("text.pt", "absent.pt", "folder.pt", "pipe.pt"):
        with pytest.raises(ValueError, match="init_from"):
            official.load_encoder(tmp_path / name, pair[0])


def test_a_weight_with_a_flipped_bit_is_seen(pair, tmp_path):
    path = official_file(tmp_path / "vjepa2-ac.pt", *pair)
    content, weight = path.read_bytes(), pair[1].predictor_embed.weight.detach().numpy().tobytes()
    place = content.index(weight) + 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"vjepa2-ac\.pt is damaged"):
        official.load_predictor(path, pair[1])

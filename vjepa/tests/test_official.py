"""Files with the official names and sizes: read strictly, written back, and refused in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vjepa import official
from vjepa.build import new_model
from vjepa.predictor import Predictor
from vjepa.tests.calculation import CONFIG
from vjepa.vit import SIZES, VideoTransformer, resized_table, video_table

Shapes = dict[str, tuple[int, ...]]
BLOCK = {
    "norm1.weight": ("d",), "norm1.bias": ("d",), "attn.qkv.weight": ("3d", "d"), "attn.qkv.bias": ("3d",),
    "attn.proj.weight": ("d", "d"), "attn.proj.bias": ("d",), "norm2.weight": ("d",), "norm2.bias": ("d",),
    "mlp.fc1.weight": ("h", "d"), "mlp.fc1.bias": ("h",), "mlp.fc2.weight": ("d", "h"), "mlp.fc2.bias": ("d",),
}  # fmt: skip
SECOND = replace(CONFIG, positions="rotary", mask_tokens=10, clip=None)


def block(prefix, width, hidden):
    sizes = {"d": width, "3d": 3 * width, "h": hidden}
    return {f"{prefix}.{name}": tuple(sizes[k] for k in shape) for name, shape in BLOCK.items()}


def encoder_shapes(d, depth, hidden, tokens):
    """Names and sizes as listed in the sheet of the released files; tokens: of the table, if there is one."""
    shapes: Shapes = {"patch_embed.proj.weight": (d, 3, 2, 16, 16), "patch_embed.proj.bias": (d,)}
    for k in range(depth):
        shapes |= block(f"blocks.{k}", d, hidden)
    shapes |= {"norm.weight": (d,), "norm.bias": (d,)}
    return shapes | ({"pos_embed": (1, tokens, d)} if tokens else {})


def predictor_shapes(d, mask_tokens, tokens, q=384):
    shapes: Shapes = {f"mask_tokens.{k}": (1, 1, q) for k in range(mask_tokens)}
    shapes |= {"predictor_embed.weight": (q, d), "predictor_embed.bias": (q,)}
    for k in range(12):
        shapes |= block(f"predictor_blocks.{k}", q, 4 * q)
    shapes |= {"predictor_norm.weight": (q,), "predictor_norm.bias": (q,)}
    shapes |= {"predictor_proj.weight": (d, q), "predictor_proj.bias": (d,)}
    return shapes | ({"predictor_pos_embed": (1, tokens, q)} if tokens else {})


@pytest.mark.parametrize(
    ("name", "positions", "side"), [("large", "sincos", 224), ("huge", "sincos", 384), ("giant", "rotary", 256)]
)
def test_our_names_and_sizes_are_those_of_the_published_files(name, positions, side, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.empty(array.shape, device="meta"))
    size, is_first = SIZES[name], positions == "sincos"
    mask_tokens, heads = (2, size.heads) if is_first else (10, 12)
    with torch.device("meta"):
        encoder = VideoTransformer((16, side, side), 3, 2, 16, size, positions)
        predictor = Predictor(encoder.grid, size.width, 384, 12, heads, mask_tokens, positions)
    tokens = 8 * (side // 16) ** 2 if is_first else 0
    ours = [{k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (encoder, predictor)]
    assert ours[0] == encoder_shapes(size.width, size.depth, size.hidden, tokens)
    assert ours[1] == predictor_shapes(size.width, mask_tokens, tokens)
    assert set(official.encoder_keys(size.depth)) == set(ours[0]) - {"pos_embed"}
    assert set(official.predictor_keys(12, mask_tokens)) == set(ours[1]) - {"predictor_pos_embed"}


def written(path, config, change=None) -> dict[str, Any]:
    """A synthetic official file of a model with weights of another seed; `change` edits its content."""
    model = new_model(replace(config, seed=5), 3)
    official.export(path, model, 90, 0.5)
    content = torch.load(path, weights_only=True)
    if change is not None:
        change(content)
        torch.save(content, path)
    return content


@pytest.mark.parametrize("config", [CONFIG, SECOND])
def test_a_file_is_read_into_all_three_parts_and_written_back(config, tmp_path):
    content = written(tmp_path / "file.pth.tar", config)
    model = new_model(config, 3, str(tmp_path / "file.pth.tar"))
    for part in official.PARTS:
        for key, value in getattr(model, part).state_dict().items():
            assert torch.equal(value, content[part][official.PREFIX + key]), key
    assert official.load(tmp_path / "file.pth.tar", model) == {"epoch": 90, "loss": 0.5}


def test_tables_of_the_second_generation_are_left_out(tmp_path):
    def with_tables(content):
        for part, name in official.TABLES.items():
            content[part][official.PREFIX + name] = torch.zeros(1, 32, 64)

    written(tmp_path / "vitl.pt", SECOND, with_tables)
    new_model(SECOND, 3, str(tmp_path / "vitl.pt"))


def test_tables_of_another_resolution_are_resized(tmp_path):
    written(tmp_path / "file.pth.tar", CONFIG)
    model = new_model(replace(CONFIG, size=(48, 48)), 3, str(tmp_path / "file.pth.tar"))
    assert model.encoder.pos_embed.shape == (1, 2 * 6 * 6, 64)
    own = new_model(CONFIG, 3).encoder.pos_embed
    assert torch.equal(model.encoder.pos_embed, resized_table(own, (2, 4, 4), (2, 6, 6)))


def test_the_grid_of_a_table_can_be_told():
    for grid in ((8, 14, 14), (2, 4, 4), (1, 3, 5), (3, 1, 2)):
        table = torch.from_numpy(video_table(24, grid)).float()[None]
        assert official.grid_of(table) == grid


def rename(content, old, new):
    content["encoder"][official.PREFIX + new] = content["encoder"].pop(official.PREFIX + old)


@pytest.mark.parametrize(
    ("config", "change", "complaint"),
    [
        (CONFIG, lambda c: c.pop("predictor"), "has no predictor"),
        (CONFIG, lambda c: c["encoder"].pop(official.PREFIX + "norm.bias"), "encoder lacks norm.bias"),
        (CONFIG, lambda c: rename(c, "norm.bias", "blocks.7.norm1.bias"), "encoder lacks norm.bias"),
        (CONFIG, lambda c: rename(c, "norm.bias", "norms_block.0.bias"), "V-JEPA 2.1 is not supported"),
        (CONFIG, lambda c: rename(c, "norm.bias", "blocks.0.gate.weight"), "V-JEPA 2.1 is not supported"),
    ],
)
def test_other_files_are_refused_in_one_line(config, change, complaint, tmp_path):
    written(tmp_path / "file.pth.tar", config, change)
    with pytest.raises(ValueError, match=complaint) as error:
        new_model(config, 3, str(tmp_path / "file.pth.tar"))
    assert "\n" not in str(error.value)


def test_the_other_generation_and_other_sizes_are_refused(tmp_path):
    written(tmp_path / "second.pt", SECOND)
    with pytest.raises(ValueError, match=r"has 10 mask tokens, as V-JEPA 2 \(positions=rotary"):
        new_model(CONFIG, 3, str(tmp_path / "second.pt"))
    written(tmp_path / "first.pth.tar", CONFIG)
    with pytest.raises(ValueError, match=r"has 2 mask tokens, as V-JEPA \(positions=sincos\)"):
        new_model(SECOND, 3, str(tmp_path / "first.pth.tar"))
    with pytest.raises(ValueError, match="encoder of another size"):
        new_model(replace(CONFIG, patch=16), 3, str(tmp_path / "first.pth.tar"))
    with pytest.raises(ValueError, match="encoder lacks blocks.3.norm1.weight"):
        new_model(replace(CONFIG, encoder="nano"), 3, str(tmp_path / "first.pth.tar"))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "file.pth.tar"
    written(path, CONFIG)
    whole = path.read_bytes()
    for content, complaint in (
        (b"hello", "is no checkpoint"),
        (whole[: len(whole) // 2], "is no checkpoint"),
        (whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :], "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=complaint):
            new_model(CONFIG, 3, str(path))
    with pytest.raises(ValueError, match="there is no file"):
        new_model(CONFIG, 3, str(tmp_path / "nowhere"))

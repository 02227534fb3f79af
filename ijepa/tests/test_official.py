"""Files with the official names and sizes: read strictly, written back, and refused in one line."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ijepa import official
from ijepa.build import new_model
from ijepa.config import Config
from ijepa.jepa import JEPA, new_jepa
from ijepa.predictor import Predictor
from ijepa.vit import SIZES, Size, VisionTransformer, resized_table

Shapes = dict[str, tuple[int, ...]]
BLOCK = {
    "norm1.weight": ("d",), "norm1.bias": ("d",), "attn.qkv.weight": ("3d", "d"), "attn.qkv.bias": ("3d",),
    "attn.proj.weight": ("d", "d"), "attn.proj.bias": ("d",), "norm2.weight": ("d",), "norm2.bias": ("d",),
    "mlp.fc1.weight": ("h", "d"), "mlp.fc1.bias": ("h",), "mlp.fc2.weight": ("d", "h"), "mlp.fc2.bias": ("d",),
}  # fmt: skip


def block(prefix, width, hidden):
    sizes = {"d": width, "3d": 3 * width, "h": hidden}
    return {f"{prefix}.{name}": tuple(sizes[k] for k in shape) for name, shape in BLOCK.items()}


def encoder_shapes(d, depth, p, n, hidden):
    """Names and sizes as listed by the authors' modules."""
    shapes: Shapes = {"pos_embed": (1, n, d), "patch_embed.proj.weight": (d, 3, p, p), "patch_embed.proj.bias": (d,)}
    for k in range(depth):
        shapes |= block(f"blocks.{k}", d, hidden)
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def predictor_shapes(d, depth, n, q=384):
    shapes: Shapes = {"mask_token": (1, 1, q), "predictor_pos_embed": (1, n, q)}
    shapes |= {"predictor_embed.weight": (q, d), "predictor_embed.bias": (q,)}
    for k in range(depth):
        shapes |= block(f"predictor_blocks.{k}", q, 4 * q)
    shapes |= {"predictor_norm.weight": (q,), "predictor_norm.bias": (q,)}
    return shapes | {"predictor_proj.weight": (d, q), "predictor_proj.bias": (d,)}


@pytest.mark.parametrize(
    ("name", "patch", "side", "depth"), [("huge", 14, 224, 12), ("huge", 16, 448, 12), ("giant", 16, 224, 16)]
)
def test_our_names_and_sizes_are_those_of_the_published_files(name, patch, side, depth, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.empty(array.shape, device="meta"))
    size = SIZES[name]
    with torch.device("meta"):
        encoder = VisionTransformer(side, side, 3, patch, size)
        predictor = Predictor(encoder.grid, size.width, 384, depth, size.heads)
    tokens = (side // patch) ** 2
    ours = [{k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (encoder, predictor)]
    assert ours[0] == encoder_shapes(size.width, size.depth, patch, tokens, size.hidden)
    assert ours[1] == predictor_shapes(size.width, depth, tokens)
    assert sorted(official.encoder_keys(size.depth)) == sorted(ours[0])
    assert sorted(official.predictor_keys(depth)) == sorted(ours[1])


def tiny(seed=0, width=16) -> JEPA:
    encoder = VisionTransformer(32, 32, 3, 8, Size(width, 2, 2, 4 * width))
    return new_jepa(encoder, Predictor((4, 4), width, 8, 2, 2), generator(seed))


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def content():
    """A synthetic official file of the tiny model: random weights, with what else the authors store."""
    generator = torch.Generator().manual_seed(1)
    encoder, predictor = encoder_shapes(16, 2, 8, 16, 64), predictor_shapes(16, 2, 16, q=8)
    parts = {"encoder": encoder, "predictor": predictor, "target_encoder": encoder}
    weights = {
        part: {f"module.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for part, shapes in parts.items()
    }
    rest: dict[str, Any] = {"opt": {"state": {}, "param_groups": []}, "scaler": None, "epoch": 300, "loss": 0.1}
    return weights | rest | {"batch_size": 128, "world_size": 16, "lr": 1e-6}


def test_a_file_is_read_whole(content, tmp_path):
    torch.save(content, tmp_path / "official.pth.tar")
    model = tiny()
    assert official.load(tmp_path / "official.pth.tar", model) == {"epoch": 300, "loss": 0.1}
    for part in official.PARTS:
        state = getattr(model, part).state_dict()
        assert len(state) == len(content[part])
        for name, tensor in state.items():
            assert torch.equal(tensor, content[part][f"module.{name}"]), name
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_what_is_exported_is_read_again(tmp_path):
    first, second = tiny(0), tiny(1)
    official.export(tmp_path / "out.pth.tar", first, epoch=3, loss=0.5)
    assert official.load(tmp_path / "out.pth.tar", second) == {"epoch": 3, "loss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth.tar"]
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def without(content, part, name):
    return content | {part: {key: value for key, value in content[part].items() if key != name}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: without(c, "encoder", "module.norm.bias"), r"encoder lacks norm.bias \(1 in all\)"),
        (
            lambda c: c | {"predictor": c["predictor"] | {"module.x": torch.ones(1)}},
            r"predictor has the unknown module.x \(1 in all\)",
        ),
        (lambda c: {k: v for k, v in c.items() if k != "target_encoder"}, "has no target_encoder"),
        (lambda c: [1, 2], "has no encoder, predictor, target_encoder"),
        (lambda c: c | {"predictor": None}, "has no predictor"),
        (lambda c: c | {"encoder": c["encoder"] | {3: torch.ones(1)}}, r"encoder has the unknown 3 \(1 in all\)"),
        (lambda c: c | {"encoder": c["encoder"] | {"module.norm.bias": None}}, r"encoder lacks norm.bias \(1 in all\)"),
    ],
)
def test_a_file_of_other_names_is_refused_and_changes_nothing(change, words, content, tmp_path):
    torch.save(change(content), tmp_path / "file.pth.tar")
    model, before = tiny(), tiny().state_dict()
    with pytest.raises(ValueError, match=words) as error:
        official.load(tmp_path / "file.pth.tar", model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_of_another_size_is_named(content, tmp_path):
    torch.save(content, tmp_path / "file.pth.tar")
    with pytest.raises(ValueError, match=r"encoder of another size: pos_embed is \[1, 16, 16\], ours \[1, 16, 32\]"):
        official.load(tmp_path / "file.pth.tar", tiny(width=32))


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "file.pth.tar").write_bytes(b"no checkpoint")
    for name, words in (("file.pth.tar", "is no checkpoint"), ("none.pth.tar", "there is no file")):
        with pytest.raises(ValueError, match=words):
            official.load(tmp_path / name, tiny())


def test_the_weights_are_drawn_from_the_seed():
    config = Config(size=(32, 32), patch=8, encoder="nano", predictor_width=8, predictor_depth=1)
    first, again, other = (new_model(c, 3) for c in (config, config, Config(**{**vars(config), "seed": 1})))
    weights = [model.encoder.patch_embed.proj.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_flipped_bit_of_a_weight_is_found_before_it_is_read(content, tmp_path):
    """torch reads it as it is: the training would end in NaN, or only in worse numbers."""
    path = tmp_path / "file.pth.tar"
    torch.save(content, path)
    damaged = bytearray(path.read_bytes())
    weight = content["target_encoder"]["module.blocks.1.mlp.fc1.weight"].numpy().tobytes()
    damaged[damaged.index(weight) + 7] ^= 64
    path.write_bytes(damaged)
    model, before = tiny(), tiny().state_dict()
    with pytest.raises(ValueError, match=r"file\.pth\.tar is damaged: the checksum of .* differs") as error:
        official.load(path, model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_folder_or_a_cut_file_is_no_checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "file.pth.tar")
    (tmp_path / "file.pth.tar").write_bytes((tmp_path / "file.pth.tar").read_bytes()[:-100])
    for path in (tmp_path, tmp_path / "file.pth.tar"):
        with pytest.raises(ValueError, match="init_from: ") as error:
            official.load(path, tiny())
        assert "\n" not in str(error.value)


def test_position_tables_of_another_resolution_are_resized(content, tmp_path):
    """A file of 4 x 4 patches in a model of 4 x 6: each part's table, bicubic; the other weights as they are."""
    torch.save(content, tmp_path / "file.pth.tar")
    encoder = VisionTransformer(32, 48, 3, 8, Size(16, 2, 2, 64))
    model = new_jepa(encoder, Predictor((4, 6), 16, 8, 2, 2), torch.Generator().manual_seed(0))
    official.load(tmp_path / "file.pth.tar", model)
    for part, key in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed"), ("target_encoder", "pos_embed")):
        table = getattr(model, part).state_dict()[key]
        assert torch.equal(table, resized_table(content[part][f"module.{key}"], 4, 6))
        assert table.shape[1] == 24
    assert torch.equal(model.encoder.norm.bias, content["encoder"]["module.norm.bias"])
    assert torch.isfinite(model.encoder(torch.rand(2, 3, 32, 48))).all()


# --- copies by Hugging Face -------------------------------------------------------------------------------------------

THEIRS = {
    "norm1": "layernorm_before", "attn.proj": "attention.output.dense", "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip


@pytest.fixture
def copied(content):
    """The encoder of the synthetic file under the names of an IJepaModel."""
    given = {name.removeprefix("module."): value for name, value in content["encoder"].items()}
    found = {"embeddings.position_embeddings": given["pos_embed"]}
    for end in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{end}"] = given[f"patch_embed.proj.{end}"]
        found[f"layernorm.{end}"] = given[f"norm.{end}"]
        for k in range(2):
            for ours, theirs in THEIRS.items():
                found[f"encoder.layer.{k}.{theirs}.{end}"] = given[f"blocks.{k}.{ours}.{end}"]
            for part, name in enumerate(("query", "key", "value")):
                rows = given[f"blocks.{k}.attn.qkv.{end}"][16 * part : 16 * (part + 1)].clone()
                found[f"encoder.layer.{k}.attention.attention.{name}.{end}"] = rows
    return found


def test_a_copy_by_hugging_face_is_the_encoder_and_the_target_encoder(copied, content, tmp_path):
    save_file(copied, tmp_path / "model.safetensors")
    model, before = tiny(), tiny().predictor.state_dict()
    assert official.load(tmp_path / "model.safetensors", model) == {}
    for part in (model.encoder, model.target_encoder):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, content["encoder"][f"module.{name}"]), name
    assert all(torch.equal(value, before[name]) for name, value in model.predictor.state_dict().items())
    wide = new_jepa(VisionTransformer(32, 48, 3, 8, Size(16, 2, 2, 64)), Predictor((4, 6), 16, 8, 2, 2), generator())
    official.load(tmp_path / "model.safetensors", wide)
    table = resized_table(copied["embeddings.position_embeddings"], 4, 6)
    assert torch.equal(wide.encoder.pos_embed, table)
    assert torch.equal(wide.target_encoder.pos_embed, table)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {k: v for k, v in c.items() if k != "layernorm.bias"}, r"lacks layernorm.bias \(1 in all\)"),
        (lambda c: c | {"classifier.bias": torch.ones(1)}, r"has the unknown classifier.bias \(1 in all\)"),
        (lambda c: c | {"layernorm.bias": torch.ones(3)}, r"encoder of another size: norm.bias is \[3\], ours \[16\]"),
        (
            lambda c: c | {"encoder.layer.0.attention.attention.key.weight": torch.ones(16, 3)},
            "has tensors that do not fit",
        ),
        (None, "is no .safetensors file"),
        ("pipe", "a pipe or a device, no file"),
    ],
)
def test_another_copy_is_refused_and_changes_nothing(change, words, copied, tmp_path):
    path = tmp_path / "model.safetensors"
    if change is None:
        path.write_bytes(b"something else")
    elif change == "pipe":
        os.mkfifo(path)
    else:
        save_file(change(copied), path)
    model, before = tiny(), tiny().state_dict()
    with pytest.raises(ValueError, match=words) as error:
        official.load(path, model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

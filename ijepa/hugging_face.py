"""Hugging Face's copies of the released encoders: `model.safetensors` of an IJepaModel, every key listed by name.

A copy holds the encoder that was trained, not its moving average, which the paper tests; and no predictor.
Source: huggingface/transformers: src/transformers/models/ijepa/convert_ijepa_to_hf.py (names, and which part it is of).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.files import check_is_file

SUFFIX = ".safetensors"
# Our name and theirs; of a block, behind `blocks.K.` and `encoder.layer.K.`.
OUTER = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))


def encoder_state(path: Path, depth: int) -> dict[str, Tensor]:
    """The tensors of a copy of so many blocks under our names, float32.

    Raises ValueError in one line for a file that is none, or lacks a name, or has an unknown one.
    """
    try:
        check_is_file(path)
        given = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"init_from: there is no file {path}") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"init_from: {path} is no {SUFFIX} file ({' '.join(str(error).split())[:120]})") from None
    names = source_names(depth)
    known = [name for theirs in names.values() for name in theirs]
    missing, unknown = [name for name in known if name not in given], sorted(set(given) - set(known))
    for word, found in (("lacks", missing), ("has the unknown", unknown)):
        if found:
            raise ValueError(f"init_from: {path} {word} {found[0]} ({len(found)} in all); is it another model size?")
    try:
        return {ours: torch.cat([given[name].float() for name in theirs]) for ours, theirs in names.items()}
    except RuntimeError as error:
        raise ValueError(f"init_from: {path} has tensors that do not fit ({' '.join(str(error).split())})") from None


def source_names(depth: int) -> dict[str, tuple[str, ...]]:
    """For each of our names, theirs: three for the projection that we calculate as one, in its order."""
    names: dict[str, tuple[str, ...]] = {"pos_embed": ("embeddings.position_embeddings",)}
    for end in ("weight", "bias"):
        names |= {f"{ours}.{end}": (f"{theirs}.{end}",) for ours, theirs in OUTER.items()}
        for k in range(depth):
            names |= {f"blocks.{k}.{ours}.{end}": (f"encoder.layer.{k}.{name}.{end}",) for ours, name in LAYERS.items()}
            names[f"blocks.{k}.attn.qkv.{end}"] = tuple(f"encoder.layer.{k}.{part}.{end}" for part in QKV)
    return names

"""Official checkpoints: reading the published .pth.tar files into our networks, and writing theirs from ours.

Copies of them by Hugging Face are read too. Every key is listed by name, nothing is guessed and nothing is left over.
Source: sheet of the released files; reference code: src/train.py, where the keys carry the prefix of
DistributedDataParallel.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import check_is_file
from ijepa import hugging_face
from ijepa.jepa import JEPA
from ijepa.vit import resized_table

PREFIX = "module."
LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
PARTS = ("encoder", "predictor", "target_encoder")


def encoder_keys(depth: int) -> Iterator[str]:
    """Names of an official encoder, which are ours too, without the prefix."""
    yield "pos_embed"
    yield from _pair("patch_embed.proj")
    for block in range(depth):
        for layer in LAYERS:
            yield from _pair(f"blocks.{block}.{layer}")
    yield from _pair("norm")


def predictor_keys(depth: int) -> Iterator[str]:
    """Names of an official predictor, which are ours too, without the prefix."""
    yield "mask_token"
    yield from _pair("predictor_embed")
    yield "predictor_pos_embed"
    for block in range(depth):
        for layer in LAYERS:
            yield from _pair(f"predictor_blocks.{block}.{layer}")
    yield from _pair("predictor_norm")
    yield from _pair("predictor_proj")


def _pair(layer: str) -> Iterator[str]:
    yield f"{layer}.weight"
    yield f"{layer}.bias"


def load(path: Path, model: JEPA) -> dict[str, Any]:
    """Copies an official file into the model, after checking every name and size. Returns its epoch and loss.

    Position tables of another resolution are resized to the model's grid. A copy by Hugging Face, a .safetensors file,
    becomes both the encoder and the target encoder; the predictor keeps the weights it has.
    Raises ValueError in one line for a file that is none, or is one of another size.
    """
    content: Mapping[str, Any] = {}
    if path.suffix == hugging_face.SUFFIX:
        state = hugging_face.encoder_state(path, len(model.encoder.blocks))
        states = {"encoder": state, "target_encoder": dict(state)}
    else:
        content = _content(path)
        states = {part: _state(path, part, content[part], keys) for part, keys in _keys(model).items()}
    _resize_tables(states, model)
    for part, state in states.items():
        faults = [
            f"{key} is {list(state[key].shape)}, ours {list(tensor.shape)}"
            for key, tensor in getattr(model, part).state_dict().items()
            if state[key].shape != tensor.shape
        ]
        if faults:
            raise ValueError(f"init_from: {path}: {part} of another size: {faults[0]} ({len(faults)} of {len(state)})")
    for part, state in states.items():
        getattr(model, part).load_state_dict(state, strict=True)
    return {name: content[name] for name in ("epoch", "loss") if name in content}


def _content(path: Path) -> Mapping[str, Any]:
    """What an official file holds. Raises ValueError in one line for a file that is none, or lacks a part."""
    try:
        check_is_file(path)
        # torch reads a weight with a flipped bit as it is; the archive around it has checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"init_from: {path} is damaged: the checksum of {damaged} differs")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        reason = "there is no file" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        raise ValueError(f"init_from: {reason} {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"init_from: {path} is no checkpoint ({' '.join(str(error).split())[:120]})") from None
    parts = content if isinstance(content, dict) else {}
    missing = [part for part in PARTS if not isinstance(parts.get(part), Mapping)]
    if missing:
        raise ValueError(f"init_from: {path} has no {', '.join(missing)}")
    return parts


def export(path: Path, model: JEPA, epoch: int, loss: float) -> None:
    """Writes the weights in the official format, without optimiser; `load` reads it, and so do the authors' modules.

    Raises OSError if the file cannot be written; none is left half-made.
    """
    content: dict[str, Any] = {
        part: {PREFIX + key: getattr(model, part).state_dict()[key].cpu() for key in keys}
        for part, keys in _keys(model).items()
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content | {"epoch": epoch, "loss": loss}, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keys(model: JEPA) -> dict[str, list[str]]:
    encoder = list(encoder_keys(len(model.encoder.blocks)))
    return {
        "encoder": encoder,
        "predictor": list(predictor_keys(len(model.predictor.predictor_blocks))),
        "target_encoder": encoder,
    }


def _resize_tables(states: dict[str, dict[str, Tensor]], model: JEPA) -> None:
    """Position tables of square grids, for the grid of the model; others are left for the comparison of sizes."""
    for part, state in states.items():
        key = "predictor_pos_embed" if part == "predictor" else "pos_embed"
        table, (rows, columns) = state[key], model.encoder.grid
        is_square = table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]
        if is_square and table.shape[1] != rows * columns:
            state[key] = resized_table(table.float(), rows, columns)


def _state(path: Path, part: str, given: Mapping[str, Tensor], keys: list[str]) -> dict[str, Tensor]:
    """The tensors of a part under our names."""
    missing = [key for key in keys if not isinstance(given.get(PREFIX + key), Tensor)]
    unknown = sorted(map(str, set(given) - {PREFIX + key for key in keys}))
    for word, names in (("lacks", missing), ("has the unknown", unknown)):
        if names:
            raise ValueError(
                f"init_from: {path}: {part} {word} {names[0]} ({len(names)} in all); is it another model size?"
            )
    return {key: given[PREFIX + key] for key in keys}

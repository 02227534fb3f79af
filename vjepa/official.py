"""Official checkpoints: reading the published files into our networks, and writing theirs from ours.

Every key is listed by name, nothing is guessed and nothing is left over. Source: sheet of the released files;
reference code: app/vjepa/train.py, where the keys carry the prefixes of DistributedDataParallel and a wrapper.
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
from vjepa.jepa import JEPA
from vjepa.vit import Grid, resized_table

PREFIX = "module.backbone."
LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
PARTS = ("encoder", "predictor", "target_encoder")
TABLES = {"encoder": "pos_embed", "predictor": "predictor_pos_embed", "target_encoder": "pos_embed"}


def encoder_keys(depth: int) -> Iterator[str]:
    """Names of an official encoder, which are ours too, without the prefix and the position table."""
    yield from _pair("patch_embed.proj")
    for block in range(depth):
        for layer in LAYERS:
            yield from _pair(f"blocks.{block}.{layer}")
    yield from _pair("norm")


def predictor_keys(depth: int, mask_tokens: int) -> Iterator[str]:
    """Names of an official predictor, which are ours too, without the prefix and the position table."""
    yield from _pair("predictor_embed")
    for token in range(mask_tokens):
        yield f"mask_tokens.{token}"
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

    Position tables of another resolution or length are resized to the model's grid. The tables that V-JEPA 2's files
    have beside their rotary positions are left out. Raises ValueError in one line for a file that is none, is of the
    other generation or of another size.
    """
    content = content_of(path)
    missing = [part for part in PARTS if not isinstance(content.get(part), Mapping)]
    if missing:
        raise ValueError(f"init_from: {path} has no {', '.join(missing)}")
    _check_generation(path, content, model)
    states = {part: _state(path, part, content[part], keys, model) for part, keys in _keys(model).items()}
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


def export(path: Path, model: JEPA, epoch: int, loss: float) -> None:
    """Writes the weights in the official format, without optimiser; `load` reads it, and so do the authors' modules.

    Raises OSError if the file cannot be written; none is left half-made.
    """
    parts: dict[str, Any] = {}
    for part, keys in _keys(model).items():
        state = getattr(model, part).state_dict()
        parts[part] = {PREFIX + key: state[key].cpu() for key in keys}
        if TABLES[part] in state:
            parts[part][PREFIX + TABLES[part]] = state[TABLES[part]].cpu()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(parts | {"epoch": epoch, "loss": loss}, file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def content_of(path: Path) -> dict[str, Any]:
    """The parts of an official file. Raises ValueError in one line for a file that is none, or is damaged."""
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
    return content if isinstance(content, dict) else {}


def _check_generation(path: Path, content: Mapping[str, Any], model: JEPA) -> None:
    """Raises ValueError if the file is of another generation than the model.

    The released files of V-JEPA 2 have position tables too: only the mask tokens, two or ten, tell the first two apart.
    V-JEPA 2.1 has further layers.
    """
    names = [str(name).removeprefix(PREFIX) for part in PARTS for name in content[part]]
    known = ("pos_embed", "predictor_pos_embed", "patch_embed.proj.", "blocks.", "norm.", "predictor_", "mask_tokens.")
    newer = [name for name in names if not name.startswith(known) or _is_newer(name)]
    if newer:
        raise ValueError(f"init_from: {path} is no V-JEPA or V-JEPA 2 ({newer[0]}); V-JEPA 2.1 is not supported")
    tokens = len({name for name in names if name.startswith("mask_tokens.")})
    ours = len(model.predictor.mask_tokens)
    if tokens != ours:
        theirs = {2: "V-JEPA (positions=sincos)", 10: "V-JEPA 2 (positions=rotary, predictor_heads=12)"}
        word = theirs.get(tokens, "another model")
        raise ValueError(f"init_from: {path} has {tokens} mask tokens, as {word}; ours {ours}, see mask_tokens")


def _is_newer(name: str) -> bool:
    """Whether a block, or the predictor, has a layer that the first two generations have not."""
    parts = name.split(".")
    if parts[0] in ("blocks", "predictor_blocks"):
        return ".".join(parts[2:-1]) not in LAYERS
    return parts[0].startswith("predictor_") and parts[0] not in (
        "predictor_embed", "predictor_pos_embed", "predictor_norm", "predictor_proj",
    )  # fmt: skip


def _keys(model: JEPA) -> dict[str, list[str]]:
    encoder = list(encoder_keys(len(model.encoder.blocks)))
    predictor = model.predictor
    return {
        "encoder": encoder,
        "predictor": list(predictor_keys(len(predictor.predictor_blocks), len(predictor.mask_tokens))),
        "target_encoder": encoder,
    }


def _state(path: Path, part: str, given: Mapping[str, Tensor], keys: list[str], model: JEPA) -> dict[str, Tensor]:
    """The tensors of a part under our names, its table resized."""
    table = TABLES[part]
    wanted = [table, *keys] if model.encoder.positions == "sincos" else keys
    missing = [key for key in wanted if not isinstance(given.get(PREFIX + key), Tensor)]
    unknown = sorted(map(str, set(given) - {PREFIX + key for key in [table, *keys]}))
    for word, names in (("lacks", missing), ("has the unknown", unknown)):
        if names:
            raise ValueError(
                f"init_from: {path}: {part} {word} {names[0]} ({len(names)} in all); is it another model size?"
            )
    state = {key: given[PREFIX + key] for key in wanted}
    if table in state and state[table].shape != getattr(model, part).state_dict()[table].shape:
        grid = grid_of(state[table].float())
        if grid is not None:
            state[table] = resized_table(state[table].float(), grid, model.encoder.grid)
    return state


def grid_of(table: Tensor) -> Grid | None:
    """The grid of a table [1, N, D], which the files do not say, or none if it is no table of a grid.

    The channels of the time stay the same for a whole time step, those of the row for a whole row.
    """
    if table.ndim != 3:
        return None
    _, tokens, width = table.shape
    group = 2 * math.ceil(width / 6)
    runs = []
    for first in (0, group):
        is_same = (table[0, :, first : first + group] - table[0, 0, first : first + group]).abs().amax(1) < 1e-5
        runs.append(int(is_same.int().cumprod(0).sum()))
    per_step, columns = runs[0], min(runs)  # a frame of one row goes on with the next time step
    if not columns or per_step % columns or tokens % per_step:
        return None
    return tokens // per_step, per_step // columns, columns

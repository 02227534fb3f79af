"""The official checkpoint of V-JEPA 2-AC: its encoder, and its predictor, by an explicit list of names.

Deviation D3: the encoder in the file is used, as it is the one that the predictor was trained on; it differs slightly
from that of the separate release of ViT-g.
Source: facebookresearch/vjepa2: src/hub/backbones.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from vjepa.ac.predictor import ACPredictor
from vjepa.official import LAYERS, content_of, encoder_keys
from vjepa.vit import VideoTransformer

TABLES = frozenset({"pos_embed", "predictor_pos_embed"})  # in the files beside rotary positions, and not used


def predictor_keys(depth: int) -> list[str]:
    """Names of the official predictor, which are ours too."""
    layers = ["predictor_embed", "action_encoder", "state_encoder", "extrinsics_encoder"]
    layers += [f"predictor_blocks.{block}.{layer}" for block in range(depth) for layer in LAYERS]
    layers += ["predictor_norm", "predictor_proj"]
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def load_encoder(path: Path, encoder: VideoTransformer) -> None:
    """Copies the encoder of an official file. Raises ValueError in one line if names or sizes differ."""
    _copy(path, "encoder", encoder, encoder_keys(len(encoder.blocks)))


def load_predictor(path: Path, predictor: ACPredictor) -> None:
    """Copies the predictor of an official file. Raises ValueError in one line if names or sizes differ."""
    _copy(path, "predictor", predictor, predictor_keys(len(predictor.predictor_blocks)))


def _copy(path: Path, part: str, module: nn.Module, keys: Iterable[str]) -> None:
    content = content_of(path).get(part)
    if not isinstance(content, Mapping):
        raise ValueError(f"init_from: {path} has no {part}")
    given = {_bare(name): tensor for name, tensor in content.items() if _bare(name) not in TABLES}
    wanted, names = module.state_dict(), set(keys)
    faults = [f"{name} is missing" for name in sorted(names - given.keys())]
    faults += [f"{name} is not part of it" for name in sorted(given.keys() - names)]
    faults += [
        f"{name} is {list(given[name].shape)}, ours {list(wanted[name].shape)}"
        for name in sorted(names & given.keys())
        if not isinstance(given[name], Tensor) or given[name].shape != wanted[name].shape
    ]
    if faults:
        raise ValueError(f"init_from: {path}: {part} of another model or size: {faults[0]} ({len(faults)} faults)")
    module.load_state_dict(given, strict=True)


def _bare(name: str) -> str:
    """Without the prefixes of DistributedDataParallel and of a wrapper."""
    return str(name).removeprefix("module.").removeprefix("backbone.")

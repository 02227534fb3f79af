"""Exact resume: one checked safetensors file per checkpoint, the last two kept, nothing ever unpickled."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from common.config import user_error
from common.files import atomic_write, check_is_file, disk_is_full

PATTERN = "step-*.safetensors"
_MARK = b'"checksum":"'
_BLANK = b"0" * 64


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, and the file it came from."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    identity: str = "",
) -> bool:
    """Writes step-<step>.safetensors atomically and removes all but the last `keep`; one series per folder.

    `state` must be JSON-able; `identity` names the run that the file belongs to. A full disk leaves the earlier files
    alone, prints one line and returns False.
    """
    folder = Path(folder)
    # A copy of each: safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"step": step, "state": state, "identity": identity})
    data = bytearray(safetensors.torch.save(copies, {"state": text, "checksum": _BLANK.decode()}))
    _exchange_checksum(data, _checksum(data))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Left behind by a kill during an earlier save.
        for leftover in folder.glob(f".{PATTERN}.tmp"):
            leftover.unlink()
        path = folder / f"step-{step:09d}.safetensors"
        atomic_write(path, bytes(data))
    except OSError as error:
        if not disk_is_full(error):
            raise
        print(f"warning: {folder}: disk full, checkpoint of step {step} not written", file=sys.stderr)
        return False
    files = sorted(folder.glob(PATTERN))
    # A later step than the one just written was refused at load: the run has gone back behind it.
    here = files.index(path)
    for old in [*files[: max(0, here + 1 - keep)], *files[here + 1 :]]:
        old.unlink()
    return True


def load_latest(folder: Path, device: str | torch.device = "cpu", identity: str = "") -> Checkpoint | None:
    """The newest intact checkpoint of this run, None if there is no file; each damaged one is named on stderr.

    A file that was written under another `identity` is none of ours; one of an earlier version has none and is taken.
    One line and exit code 2 if there are files and none is good.
    """
    files = sorted(Path(folder).glob(PATTERN), reverse=True)
    for path in files:
        try:
            return _read(path, device, identity)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            print(f"warning: checkpoint {path} is damaged ({reason}); trying the one before", file=sys.stderr)
    if files:
        user_error(f"every checkpoint in {folder} is damaged; remove {Path(folder).parent} to start again")
    return None


def load_final(folder: Path, step: int, device: str | torch.device = "cpu", identity: str = "") -> Checkpoint:
    """The checkpoint of `step`, the last of its stage: a test must not be of an earlier one.

    One line and exit code 2 if there is none, or if it is damaged.
    """
    found = load_latest(folder, device, identity)
    if found is None or found.step < step:
        stands = "nothing" if found is None else f"step {found.step}"
        user_error(
            f"{folder}: {stands} of {step} steps stands there unharmed; the same train command goes on from there"
        )
    return found


def copy(source: Path, target: Path, identity: str) -> None:
    """The newest checkpoint of `source`, an intact one, as the first of `target` under the identity of its new run."""
    found = load_latest(source)
    if found is None:
        user_error(f"{source} has no checkpoint")
    save(target, found.step, found.tensors, found.state, identity=identity)


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as "<prefix>/<name>"."""
    return {f"{prefix}/{name}": tensor for name, tensor in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies "<prefix>/<name>" into the module. Raises ValueError in one line if names or sizes differ."""
    given = _below(prefix, tensors)
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is not part of the module" for name in given if name not in wanted]
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            faults.append(f"{name} is {list(given[name].shape)}, the module has {list(wanted[name].shape)}")
    if faults:
        raise ValueError(f"{prefix}: {'; '.join(sorted(faults))}")
    module.load_state_dict(given, strict=True)


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors named "<prefix>/<parameter or group>/<key>" and the JSON-able rest."""
    full = optimizer.state_dict()
    parts = {str(index): values for index, values in full["state"].items()}
    parts |= {f"group{index}": values for index, values in enumerate(full["param_groups"])}
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for part, values in parts.items():
        tensors |= {f"{prefix}/{part}/{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        rest[part] = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    return tensors, rest


def unpack_optimizer(
    prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """The inverse of `pack_optimizer`. Raises ValueError if the parameter groups do not fit."""
    parts = {part: {k: _as_tuple(k, v) for k, v in values.items()} for part, values in state.items()}
    for name, tensor in _below(prefix, tensors).items():
        part, key = name.split("/")
        # A copy: the optimizer updates its state in place and would change the checkpoint.
        parts[part][key] = tensor.clone()
    groups = [parts.pop(f"group{index}") for index in range(len(parts)) if f"group{index}" in parts]
    optimizer.load_state_dict({"state": {int(p): v for p, v in parts.items()}, "param_groups": groups})
    # A fused step walks parameter and state by address, so both must have one memory layout (channels-last weights).
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _as_tuple(key: str, value: Any) -> Any:
    """JSON turns tuples (betas) into lists; "params" alone is a list in torch too."""
    return tuple(value) if isinstance(value, list) and key != "params" else value


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "/"
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def _checksum(data: bytes | bytearray) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _exchange_checksum(data: bytearray, new: bytes) -> bytes:
    """Puts `new` in the place of the checksum, returns what stood there. ValueError if there is none."""
    at = data.index(_MARK, 0, 8 + int.from_bytes(data[:8], "little")) + len(_MARK)
    old = bytes(data[at : at + len(new)])
    data[at : at + len(new)] = new
    return old


def _read(path: Path, device: str | torch.device, identity: str) -> Checkpoint:
    """The checksum covers every byte of the file, names, shapes and state included."""
    check_is_file(path)
    data = bytearray(path.read_bytes())
    found = _exchange_checksum(data, _BLANK)
    if found != _checksum(data):
        raise ValueError("checksum differs")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["state"])
    if identity and content.get("identity", "") not in ("", identity):
        raise ValueError("it belongs to another run")
    tensors = safetensors.torch.load(bytes(data))
    moved = {name: tensor.to(device) for name, tensor in tensors.items()}
    return Checkpoint(content["step"], moved, content["state"], path)

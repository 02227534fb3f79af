"""Starting, killing and comparing runs: for the tests of every paper, `make smoke` and `make harden`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import checkpoint

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02


class ProgramError(AssertionError):
    """A program of a test failed, ended too early, or left another result than it should."""


def start(*words: str, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m <words>` on one thread, its streams pipes, its workers in a process group of its own."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=cwd, env=variables, stdout=pipe, stderr=pipe, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What a program wrote to stdout and stderr until its end. Raises ProgramError if its exit code is another."""
    out, errors = process.communicate()
    if process.returncode != code:
        raise ProgramError(f"{_name(process)}: exit code {process.returncode}, expected {code}\n{errors[-2000:]}")
    return out, errors


def run(*words: str, cwd: Path = ROOT, code: int = 0) -> tuple[str, str]:
    """`start` and `finish`."""
    return finish(start(*words, cwd=cwd), code)


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool], *, group: bool = True) -> None:
    """SIGKILL to a program, and to its workers unless `group` is False, as soon as `is_time`.

    Raises ProgramError if it ends before.
    """
    while not is_time():
        if process.poll() is not None:
            errors = process.communicate()[1]
            raise ProgramError(f"{_name(process)}: ended before it was to be killed\n{errors[-2000:]}")
        time.sleep(POLL_SECONDS)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()


def has_lines(folder: Path, count: int) -> bool:
    """Whether metrics.jsonl of a run folder has so many lines."""
    path = folder / "metrics.jsonl"
    return path.is_file() and path.read_bytes().count(b"\n") >= count


def has_step(folder: Path, stage: str, step: int) -> bool:
    """Whether a stage of a run has written a checkpoint of this step or a later one."""
    return any(int(path.stem.split("-")[1]) >= step for path in (folder / stage).glob(checkpoint.PATTERN))


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl without their wall time, which no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "wall"} for line in lines]


def same_log(ours: Path, theirs: Path) -> None:
    """Raises ProgramError if the logs of two run folders differ in more than wall time."""
    for mine, other in zip_longest(log_lines(ours), log_lines(theirs)):
        if mine != other:
            raise ProgramError(f"metrics.jsonl differs: {mine or 'no line'} and {other or 'no line'}")


def same_checkpoints(ours: Path, theirs: Path) -> None:
    """Raises ProgramError if the newest checkpoints of two stage folders differ in one bit of a tensor."""
    mine, other = checkpoint.load_latest(ours), checkpoint.load_latest(theirs)
    if mine is None or other is None or mine.step != other.step or mine.tensors.keys() != other.tensors.keys():
        raise ProgramError(f"{ours} and {theirs} stand at different steps or hold different tensors")
    for name, tensor in mine.tensors.items():
        other_tensor = other.tensors[name]
        if tensor.dtype != other_tensor.dtype or not torch.equal(_bits(tensor), _bits(other_tensor)):
            raise ProgramError(f"{name} differs between {ours} and {theirs}")


def _bits(tensor: Tensor) -> Tensor:
    """Every byte, so that NaN equals itself and 0.0 is not -0.0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _name(process: subprocess.Popen[str]) -> str:
    words: Sequence[str] = process.args if isinstance(process.args, list) else [str(process.args)]
    return " ".join(["python", *words[1:]])

"""A tour of a package: train, SIGKILL midway, the same again, evaluate; equal to a run left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import records

POLL_SECONDS = 0.02
# Sampled values decide these, so a resumed run must repeat them exactly.
COMPARED = ("value", "values", "episodes", "controls", "measurements", "curves", "budget")


class SmokeError(RuntimeError):
    """A program of the tour failed, or the resumed run differs from the run left alone."""


def tour(paper: str, task: str, root: Path) -> float:
    """Seconds that the tour of one task took. Raises SmokeError with what went wrong."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"smoke-{paper}-") as scratch:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        _finish(_train(paper, task, alone), root)
        lines = len(_metrics(alone))
        _kill_after(_train(paper, task, killed), root, killed / "metrics.jsonl", max(1, lines // 2))
        _finish(_train(paper, task, killed), root)
        found = []
        for folder in (alone, killed):
            _finish([sys.executable, "-m", f"{paper}.evaluate", "--run", str(folder)], root)
            found.append(_record(folder))
        if _metrics(alone) != _metrics(killed):
            raise SmokeError("metrics.jsonl of the resumed run differs from that of the run left alone")
        for key in COMPARED:
            if found[0][key] != found[1][key]:
                raise SmokeError(f"{key} in the record of the resumed run differs from the run left alone")
    return time.monotonic() - started


def _train(paper: str, task: str, folder: Path) -> list[str]:
    settings = ["--task", task, "--preset", "smoke", "--seed", "0", "--run", str(folder)]
    return [sys.executable, "-m", f"{paper}.train", *settings]


def _finish(command: Sequence[str], root: Path) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SmokeError(f"{' '.join(command[1:])}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def _kill_after(command: Sequence[str], root: Path, metrics: Path, lines: int) -> None:
    """SIGKILL to the program and its workers once `metrics` has `lines` lines."""
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < lines:
        if process.poll() is not None:
            raise SmokeError(f"{' '.join(command[1:])}: ended before line {lines} of metrics.jsonl was seen")
        time.sleep(POLL_SECONDS)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "wall"} for line in lines]


def _record(folder: Path) -> dict[str, Any]:
    try:
        return dict(records.read(folder / "record.json", records.check_record))
    except (OSError, ValueError) as error:
        raise SmokeError(str(error)) from error

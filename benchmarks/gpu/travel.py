"""What of a run travels: its data, the parts that others take from it, as far as it has come, or its record alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from benchmarks.gpu import parcel
from benchmarks.runner import ROOT, Job
from benchmarks.steps import Step
from common import checkpoint
from common.program import RunError


def world(source: Path, step: Step) -> dict[str, bytes]:
    """The finished stages of a run without its data, and without the moments of optimisers, which no step needs."""
    if not all(any((source / stage).glob(checkpoint.PATTERN)) for stage in step.shares):
        raise RunError(f"{source} has no finished {' and '.join(step.shares)}")
    found = {path.name: path.read_bytes() for path in sorted(source.iterdir()) if path.is_file() and _is_kept(path)}
    with tempfile.TemporaryDirectory() as scratch:
        for stage in step.shares:
            last = checkpoint.load_latest(source / stage)
            assert last is not None
            moments = {name for name in last.tensors if re.match(r"optimizer/\d", name)}  # not a group's learning rate
            tensors = {name: tensor for name, tensor in last.tensors.items() if name not in moments}
            kept = {k: v for k, v in last.state["optimizer"].items() if k.startswith("group")}
            identity = json.loads(found["meta.json"]).get("identity", "")
            checkpoint.save(
                Path(scratch, stage), last.step, tensors, last.state | {"optimizer": kept}, identity=identity
            )
        return found | {name: path.read_bytes() for name, path in parcel.files_below(Path(scratch)).items()}


def progress(folder: Path, shares: Sequence[str] = ()) -> dict[str, bytes]:
    """What a run needs to go on: of each series of checkpoints the last, and no stage that it shares with another."""
    files = {name: path for name, path in parcel.files_below(folder).items() if _is_kept(path)}
    files = {name: path for name, path in files.items() if name.split("/")[0] not in shares}
    series = [path for path in files.values() if path.match(checkpoint.PATTERN)]
    last = {path.parent: path for path in sorted(series)}
    return {name: path.read_bytes() for name, path in files.items() if path not in series or path == last[path.parent]}


def tested(folder: Path) -> dict[str, bytes]:
    """The record of a run and what it tells of itself; nothing of one that has no record."""
    if not (folder / "record.json").is_file():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and _is_kept(path)}


def recorded(step: Step, job: Job, runs: Path) -> dict[str, bytes]:
    """The recorded play that a run reads, by names below `runs`; it is recorded now if it is not there yet.

    Raises RunError if it cannot be recorded here.
    """
    assert step.recorded_by is not None
    data = PurePosixPath(next(word for word in job.overrides if word.startswith("data=")).removeprefix("data="))
    folder = runs.resolve().joinpath(*data.parts[1:])
    if not folder.is_dir():
        print(f"{step.label}: recording {folder}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", *step.recorded_by(job), "--data", str(folder)], cwd=ROOT, check=False
        )
        if done.returncode:
            raise RunError(f"{folder} could not be recorded")
    return {(data / name).as_posix(): path.read_bytes() for name, path in parcel.files_below(folder).items()}


def _is_kept(path: Path) -> bool:
    return path.name != ".lock" and path.suffix not in (".tmp", ".webm", ".png")


def fill_shared(step: Step, job: Job, runs: Path) -> None:
    """Give a run that came without them the stages that it shares with the run that it takes."""
    folder = runs / job.paper / job.name
    if job.takes is None or not (folder / "meta.json").is_file():
        return
    identity = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["identity"]
    for stage in step.shares:
        source = runs / job.paper / job.takes[1] / stage
        if not any((folder / stage).glob(checkpoint.PATTERN)) and source.is_dir():
            checkpoint.copy(source, folder / stage, identity)

"""Unpack what came of a stretch: figures and records into the results, runs to where they go on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import records, runner, suites, throughput
from benchmarks.gpu import manifest, parcel
from benchmarks.gpu.manifest import CACHE, RESULTS, Places, jobs_of
from benchmarks.gpu.parcel import ParcelError
from benchmarks.gpu.stretch import journal_of
from benchmarks.gpu.travel import fill_shared
from benchmarks.runner import Job
from common import checkpoint
from common.config import user_error
from common.files import atomic_write
from common.record import as_text


def unpack(places: Places, results: Path, runs: Path, is_dry: bool) -> None:
    """All parcels of a stretch: each is checked before the first of them is used.

    Nothing that is finished gives way to something that is not, and no run to an earlier state of itself.
    """
    paths = sorted(places.out.glob("*.zip"))
    if not (places.out / RESULTS).is_file():
        user_error(f"{places.out} has no {RESULTS}; python -m benchmarks.gpu run leaves it there")
    contents = {path.name: parcel.read(path, ("journal.json", "speed", "runs", "cache")) for path in paths}
    found, kernels = contents.pop(RESULTS), contents.pop(CACHE, {})
    journal = journal_of(found, places.out / RESULTS)
    if journal["is_dry"] != is_dry:
        user_error(f"{places.out} is of a {'dry ' if journal['is_dry'] else ''}stretch; unpack it as that")
    for label, step in journal["steps"].items():
        print(f"{label:<40} {step['outcome']} ({step['seconds']:.0f} s) {step.get('left_behind', '')}".rstrip())
    steps = {step.label: step for step in manifest.plan(suites.load(), is_dry)}
    for suite in suites.load():
        for part in suite.speed:
            if (name := f"speed/{suite.paper}/{part}.json") in found:
                _keep_figures(Path(name), json.loads(found[name]), journal, results)
    for parts in contents.values():
        for place, inside in _runs_in(parts).items():
            _keep_run(inside, runs / place)
    if kernels:
        shutil.rmtree(places.cache, ignore_errors=True)
        parcel.place(kernels, places.folder)
    for label in journal["steps"]:
        step = steps.get(label)
        if step is not None and step.kind == "training":
            for job in jobs_of(step, is_dry):
                fill_shared(step, job, runs)
                _keep_record(job, runs, results)


def _keep_figures(name: Path, figures: list[dict[str, Any]], journal: Mapping[str, Any], results: Path) -> None:
    """The figures of one part into the speed record of the device, in the place of earlier ones of the same names."""
    paper = name.parts[1]
    record = throughput.new_record(paper, torch.device("cpu"))
    record |= {key: journal[key] for key in ("device", "revision", "command")} | {
        "packages": journal["packages"][paper]
    }
    path = results / throughput.place_of(record)
    if path.is_file():
        record["measurements"] = records.read(path, records.check_speed)["measurements"]
    new = {figure["name"]: figure for figure in figures}
    merged = [new.pop(figure["name"], figure) for figure in record["measurements"]]
    record["measurements"] = [*merged, *new.values()]
    records.check_speed(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, as_text(record).encode())
    print(f"recorded: {path}, {name.stem}")


def _runs_in(parts: Mapping[str, bytes]) -> dict[Path, dict[str, bytes]]:
    """What a parcel holds of each run, by paper and name of its folder."""
    found: dict[Path, dict[str, bytes]] = {}
    for name, data in parts.items():
        _, *place, rest = name.split("/", 3)
        if len(place) != 2:
            raise ParcelError(f"{name} is part of no run")
        found.setdefault(Path(*place), {})[rest] = data
    return found


def _keep_run(inside: Mapping[str, bytes], folder: Path) -> None:
    """One run folder in the place of what is there of it, unless that is finished or has come further."""
    ours, theirs = _steps_done(parcel.files_below(folder) if folder.is_dir() else ()), _steps_done(inside)
    if (folder / "record.json").is_file():
        print(f"kept as it is: {folder}, which has a record")
        return
    if ours > theirs:
        print(f"kept as it is: {folder}, which has come further")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        if folder.is_dir():
            shutil.copytree(folder, new, symlinks=True)
            for path in [path for path in new.rglob(checkpoint.PATTERN) if _series(path.relative_to(new), inside)]:
                path.unlink()
        parcel.place(inside, new)
        if folder.is_dir():
            os.rename(folder, old)
        os.rename(new, folder)
    print(f"brought back: {folder}")


def _series(path: Path, inside: Mapping[str, bytes]) -> bool:
    """Whether a parcel has checkpoints of the same stage as this file."""
    return any(Path(name).parent == path.parent and Path(name).match(checkpoint.PATTERN) for name in inside)


def _steps_done(names: Iterable[str]) -> int:
    """How far a run has come: the last step of every series of checkpoints, summed."""
    last: dict[Path, int] = {}
    for path in map(Path, names):
        if path.match(checkpoint.PATTERN):
            last[path.parent] = max(last.get(path.parent, 0), int(path.stem.split("-")[1]))
    return sum(last.values())


def _keep_record(job: Job, runs: Path, results: Path) -> None:
    """The record of a finished run into the results, unless a finished one is there."""
    path = runs / job.paper / job.name / "record.json"
    if not path.is_file():
        return
    data = records.read(path, records.check_record)
    target = results / runner.place_of(job, data)
    if target.is_file() and (records.read(target, records.check_record)["finished"] or not data["finished"]):
        print(f"kept as it is: {target}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, path.read_bytes())
    print(f"recorded: {target}")

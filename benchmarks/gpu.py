"""A GPU for minutes: pack here what a stretch there needs, run it, unpack here what came of it.

    python -m benchmarks.gpu pack                        gpu/in/pack.zip, beside the checkout all that has to travel
    python -m benchmarks.gpu run --minutes 8             on the machine with the GPU: gpu/out/*.zip
    python -m benchmarks.gpu unpack                      records into benchmarks/results, runs into runs/

The steps stand in the suite files (`steps.py` says what a step is). Each is a process group with a deadline; what it
leaves is in a parcel as soon as it ends, so that a stretch that is cut off leaves what was finished. The same command
goes on with the steps that are not done. With --dry all three work on a CPU at smoke size and touch neither results nor
runs.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import parcel, records, runner, suites, throughput
from benchmarks.parcel import MEBI, ParcelError
from benchmarks.rows import Experiment, Suite
from benchmarks.runner import Job
from benchmarks.steps import Step, in_order
from common import checkpoint, eager
from common.config import Parser, user_error
from common.files import atomic_write
from common.program import RunError, program
from common.provenance import command_line, describe_device, git_revision, package_versions

ROOT = suites.ROOT
MOST_IN, MOST_OUT = 60 * MEBI, 60 * MEBI  # the checkout counts among what goes in
MOST_FILES, MOST_FILE = 8, 16 * MEBI
PACK, RESULTS = "pack.zip", "results.zip"
PACKING = 30.0  # seconds kept for it
LEAST = 5.0  # seconds that a step is worth starting for
TAIL = 4000  # characters kept of what a step printed
# What every part of the suite imports; a machine without one of them can do nothing.
EVERYWHERE = ("numpy", "torch", "safetensors", "cv2", "matplotlib", "tqdm")
DONE, FAILED, STOPPED, LEFT_OUT = "done", "failed", "stopped at its deadline", "left out"


@dataclass(frozen=True)
class Places:
    """Where a stretch lies: the parcel that goes in, the folder that steps work in, and the parcels that come out."""

    folder: Path
    out: Path

    @property
    def pack(self) -> Path:
        return self.folder / "in" / PACK

    @property
    def work(self) -> Path:
        return self.folder / "work"


# --- steps ------------------------------------------------------------------------------------------------------------


def plan(papers: Iterable[Suite], is_dry: bool) -> list[Step]:
    """All steps in order. Dry, for the sake of time, one process tests all, one measures all, and one of each paper
    trains."""
    steps = in_order(step for suite in papers for step in suite.steps)
    if not is_dry:
        return steps
    merged: dict[tuple[str, str], Step] = {}
    for step in steps:
        key = step.kind, step.paper if step.kind == "training" else ""
        first = merged.setdefault(key, replace(step, words=()))
        words = first.words or step.words if step.kind == "training" else (*first.words, *step.words)
        seconds = first.seconds + step.seconds * (first.words != ())
        merged[key] = replace(first, words=words, seconds=seconds, needs=(*first.needs, *step.needs))
    return list(merged.values())


def job_of(step: Step, is_dry: bool) -> Job:
    """The run of a training step; dry, of preset smoke with the step's words as settings."""
    suite = next(suite for suite in suites.load() if suite.paper == step.paper)
    assert step.experiment is not None
    chosen = _small(step.experiment, step.words) if is_dry else step.experiment
    return runner.job_of(suite, chosen, step.seed)


def _small(one: Experiment, settings: tuple[str, ...]) -> Experiment:
    takes = None if one.takes is None else (one.takes[0], _small(one.takes[1], ()))
    return replace(one, suite="smoke", settings=settings, takes=takes)


def command(step: Step, places: Places, is_dry: bool) -> list[str]:
    """The program of a step."""
    python = [sys.executable, "-m"]
    if step.kind == "tests":
        return [*python, "pytest", "-q", "-p", "no:cacheprovider", *step.words]
    if step.kind == "speed":
        device = ["--device", "cpu", "--smoke"] if is_dry else ["--device", "cuda"]
        return [*python, "benchmarks.throughput", *device, "--part", *step.words, "--out", str(places.work / "speed")]
    return job_of(step, is_dry).commands()[0]


def missing(step: Step) -> list[str]:
    """The packages that a step needs and that cannot be imported here."""
    names = (*EVERYWHERE, *(("pytest",) if step.kind == "tests" else ()), *step.needs)
    return [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]


# --- pack -------------------------------------------------------------------------------------------------------------


def pack(places: Places, runs: Path, is_dry: bool) -> None:
    """One parcel: unfinished runs, the finished ones that steps take from, small packages, the revision.

    Raises ParcelError if it and the checkout are too large together.
    """
    contents: dict[str, bytes] = {}
    labels, needs = [], dict[str, None]()
    for step in plan(suites.load(), is_dry):
        if step.kind == "training":
            job = job_of(step, is_dry)
            try:
                contents |= _carried(step, job, runs)
            except RunError as error:
                print(f"{step.label}: {LEFT_OUT}: {error}")
                continue
        labels.append(step.label)
        needs |= dict.fromkeys(step.needs)
    for name in needs:
        contents |= _package(name)
    _check_packages({name: data for name, data in contents.items() if name.startswith("site/")})
    facts = {"revision": git_revision(), "steps": labels, "is_dry": is_dry}
    contents["facts.json"] = json.dumps(facts).encode()
    tree = _checkout()
    taken = parcel.write(places.pack, contents, MOST_IN - tree)
    words = f"{parcel.size(taken)} of {parcel.size(MOST_IN)}, the checkout has {parcel.size(tree)}"
    print(f"packed: {places.pack}, {len(labels)} steps, {words}")


def _carried(step: Step, job: Job, runs: Path) -> dict[str, bytes]:
    """The run of a training step as far as it has come, and what it takes from another.

    Raises RunError if there is nothing to do or nothing to take.
    """
    own = runs / job.paper / job.name
    if (own / "record.json").is_file():
        raise RunError("its run has a record")
    contents: dict[str, bytes] = {}
    if job.takes is not None:
        source = runs / job.paper / job.takes[1]
        contents |= {f"runs/{job.paper}/{source.name}/{name}": data for name, data in _world(source, step).items()}
    if own.is_dir():
        contents |= {f"runs/{job.paper}/{job.name}/{name}": data for name, data in _progress(own, step.shares).items()}
    return contents


def _world(source: Path, step: Step) -> dict[str, bytes]:
    """The finished stages of a run without its data, and without the moments of optimisers, which no step needs."""
    if not all(any((source / stage).glob(checkpoint.PATTERN)) for stage in step.shares):
        raise RunError(f"{source} has no finished {' and '.join(step.shares)}")
    found = {path.name: path.read_bytes() for path in sorted(source.iterdir()) if path.is_file() and _is_kept(path)}
    with tempfile.TemporaryDirectory() as scratch:
        for stage in step.shares:
            last = checkpoint.load_latest(source / stage)
            assert last is not None
            moments = {name for name in last.tensors if name.startswith("optimizer/")}
            tensors = {name: tensor for name, tensor in last.tensors.items() if name not in moments}
            kept = {k: v for k, v in last.state["optimizer"].items() if k.startswith("group")}
            identity = json.loads(found["meta.json"]).get("identity", "")
            checkpoint.save(
                Path(scratch, stage), last.step, tensors, last.state | {"optimizer": kept}, identity=identity
            )
        return found | {name: path.read_bytes() for name, path in parcel.files_below(Path(scratch)).items()}


def _progress(folder: Path, shares: Sequence[str] = ()) -> dict[str, bytes]:
    """What a run needs to go on: of each series of checkpoints the last, and no stage that it shares with another."""
    files = {name: path for name, path in parcel.files_below(folder).items() if _is_kept(path)}
    files = {name: path for name, path in files.items() if name.split("/")[0] not in shares}
    series = [path for path in files.values() if path.match(checkpoint.PATTERN)]
    last = {path.parent: path for path in sorted(series)}
    return {name: path.read_bytes() for name, path in files.items() if path not in series or path == last[path.parent]}


def _is_kept(path: Path) -> bool:
    return path.name != ".lock" and path.suffix not in (".tmp", ".webm", ".png")


def _package(name: str) -> dict[str, bytes]:
    """The installed files of a package in plain Python; one that is compiled must be there already, so it is named."""
    for distribution in sorted(set(metadata.packages_distributions().get(name, ()))):
        files = [file for file in metadata.files(distribution) or () if ".." not in file.parts]
        files = [file for file in files if file.suffix != ".pyc" and file.name not in ("direct_url.json", "RECORD")]
        if any(file.suffix in (".so", ".pyd", ".dylib") for file in files):
            print(f"{name}: compiled, so it must be there already")
            return {}
        return {f"site/{file.as_posix()}": Path(str(file.locate())).read_bytes() for file in files}
    print(f"{name}: not installed here, so it must be there already")
    return {}


# Imports what was packed where there is nothing but the standard library and EVERYWHERE.
BARE = """
import importlib, sys
site, modules, there = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in there and top not in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Bare())
sys.path.insert(0, site)
for module in modules:
    found = importlib.import_module(module).__file__
    if not found.startswith(site):
        raise ImportError(f"{module} came from {found}")
"""


def _check_packages(contents: Mapping[str, bytes]) -> None:
    """Raise ParcelError if a package that was packed cannot be imported in a bare environment."""
    modules = sorted({name.split("/")[1] for name in contents if name.count("/") > 1 and ".dist-info/" not in name})
    if not modules:
        return
    with tempfile.TemporaryDirectory() as scratch:
        parcel.place(contents, Path(scratch))
        words = [f"{scratch}/site", ",".join(modules), ",".join(EVERYWHERE)]
        done = subprocess.run([sys.executable, "-I", "-c", BARE, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ParcelError(f"{', '.join(modules)}: not importable as packed: {done.stderr.splitlines()[-1]}")


def _checkout() -> int:
    """Bytes of the files that git tracks, 0 outside a checkout: there it has travelled already."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    return sum(path.stat().st_size for path in paths if path.is_file())


# --- run --------------------------------------------------------------------------------------------------------------


class Stretch:
    """The steps of one parcel under one clock."""

    def __init__(self, places: Places, minutes: float, is_dry: bool) -> None:
        started, seconds = time.monotonic(), 60 * minutes
        self.places, self.is_dry = places, is_dry
        self.end = started + seconds - min(PACKING, seconds / 8)
        contents = parcel.read(places.pack, ("facts.json", "runs", "site"))
        self.facts = json.loads(contents.pop("facts.json"))
        if self.facts["is_dry"] != is_dry:
            user_error(f"{places.pack} was packed {'with' if self.facts['is_dry'] else 'without'} --dry")
        self.device = torch.device("cpu" if is_dry else "cuda")
        if not is_dry and not torch.cuda.is_available():
            user_error("this machine has no GPU; --dry runs every step on a CPU at smoke size")
        # A run that has gone on here since it was packed stays.
        there = {path.parent.name for path in (places.work / "runs").glob("*/*/meta.json")}
        parcel.place({name: data for name, data in contents.items() if not _is_of(name, there)}, places.work)
        sys.path.insert(0, str(places.work / "site"))
        self.journal = self._journal()
        self.parcels: dict[str, int] = {}

    def _journal(self) -> dict[str, Any]:
        """That of the same stretch, if it was cut off."""
        path = self.places.out / RESULTS
        if path.is_file():
            found = journal_of(parcel.read(path, ("journal.json", "speed")), path)
            if found["revision"] != self.facts["revision"] or found["is_dry"] != self.is_dry:
                user_error(f"{path} is of another stretch; unpack and remove it first")
            return found
        return {
            "revision": self.facts["revision"],
            "is_dry": self.is_dry,
            "device": describe_device(str(self.device)),
            "command": command_line(),
            "packages": {suite.paper: package_versions(suite.paper) for suite in suites.load()},
            "steps": {},
        }

    def run(self, only: Sequence[str]) -> bool:
        """All steps that are not done. False if one of them failed."""
        steps = [step for step in plan(suites.load(), self.is_dry) if step.label in self.facts["steps"]]
        steps = [step for step in steps if not only or step.kind in only or step.label in only]
        lacking = {step.label: missing(step) for step in steps}
        for name in dict.fromkeys(name for names in lacking.values() for name in names):
            print(f"missing: {name}, needed by {', '.join(label for label in lacking if name in lacking[label])}")
        ready = [step for step in steps if not lacking[step.label]]
        if not ready:
            user_error("no step can run here")
        for step in steps:
            if self.journal["steps"].get(step.label, {}).get("outcome") == DONE:
                continue
            if step in ready:
                self._step(step)
            else:
                self._note(step, LEFT_OUT, 0.0, f"missing: {', '.join(lacking[step.label])}")
            self.bring(steps)
        return all(found["outcome"] != FAILED for found in self.journal["steps"].values())

    def _step(self, step: Step) -> None:
        """One step in the time that is left; what fails is tried once more without graphs."""
        left = min(step.seconds, self.end - time.monotonic())
        if left < min(LEAST, step.seconds):
            self._note(step, LEFT_OUT, 0.0, "no time was left")
            return
        started = time.monotonic()
        reasons = self._eager(step)
        code, text = self._process(step, left, reasons)
        if code not in (0, None) and step.kind != "tests" and not reasons and not self.is_dry:
            left -= time.monotonic() - started
            if left >= LEAST:
                again, more = self._process(step, left, f"{step.name} failed with exit code {code}")
                code, text = again, f"{text}\n--- again, without graphs\n{more}"
        outcome = STOPPED if code is None else DONE if code == 0 else FAILED
        self._note(step, outcome, time.monotonic() - started, text)

    def _eager(self, step: Step) -> str:
        """Why graphs are not to be trusted: the tests of this paper failed on this device."""
        tests = [found for found in self.journal["steps"].values() if found["paper"] == step.paper]
        has_failed = any(found["kind"] == "tests" and found["outcome"] == FAILED for found in tests)
        return "the tests of this device failed" if has_failed and step.kind != "tests" else ""

    def _process(self, step: Step, seconds: float, reason: str) -> tuple[int | None, str]:
        """Exit code, None if it was killed at its deadline, and the end of what it printed."""
        work = self.places.work
        if step.kind == "training":
            fill_shared(step, job_of(step, self.is_dry), work / "runs")
        paths = [str(ROOT), str(work / "site"), os.environ.get("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "REVISION": self.facts["revision"]}
        if reason:
            variables[eager.VARIABLE] = reason
        log = work / "logs" / f"{step.label.replace(' ', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        where = work if step.kind == "training" else ROOT
        with open(log, "wb") as file:
            code = run_group(command(step, self.places, self.is_dry), seconds, where, variables, file.fileno())
        return code, log.read_text(encoding="utf-8", errors="replace")[-TAIL:]

    def _note(self, step: Step, outcome: str, seconds: float, text: str) -> None:
        found = {"paper": step.paper, "kind": step.kind, "outcome": outcome, "seconds": round(seconds, 1), "text": text}
        self.journal["steps"][step.label] = found
        print(f"{step.label:<40} {outcome} ({seconds:.0f} s)", flush=True)
        if outcome == FAILED:
            print("\n".join(f"    {line}" for line in text.splitlines()[-8:]), flush=True)

    def bring(self, steps: Sequence[Step]) -> None:
        """Write the parcels of what has changed: the runs first, since the journal tells of them."""
        noted = self.journal["steps"]
        touched = [step for step in steps if step.kind == "training" and step.label in noted]
        for step in touched:
            job, name = job_of(step, self.is_dry), f"run-{step.label.replace(' ', '-')}.zip"
            folder = self.places.work / job.folder
            if name in self.parcels or not folder.is_dir() or noted[step.label]["outcome"] == LEFT_OUT:
                continue
            inside = {f"{job.folder.as_posix()}/{key}": data for key, data in _progress(folder, step.shares).items()}
            self._parcel(name, inside, step.label)
        speed = parcel.files_below(self.places.work / "speed")
        inside = {f"speed/{key}": path.read_bytes() for key, path in speed.items()}
        self._parcel(RESULTS, {"journal.json": json.dumps(self.journal, indent=1).encode(), **inside}, "")

    def _parcel(self, name: str, contents: Mapping[str, bytes], label: str) -> None:
        """One of the parcels; one that does not fit is named, with its largest parts, and left out."""
        others = {key: taken for key, taken in self.parcels.items() if key != name}
        is_full = len(others) >= MOST_FILES - (name != RESULTS)
        try:
            if is_full:
                raise ParcelError(f"{name} would be more than {MOST_FILES} parcels; {parcel.largest(contents)}")
            self.parcels[name] = parcel.write(
                self.places.out / name, contents, min(MOST_FILE, MOST_OUT - sum(others.values()))
            )
        except ParcelError as error:
            print(f"left behind: {error}", file=sys.stderr, flush=True)
            if label:
                self.journal["steps"][label]["left_behind"] = str(error)


def run_group(words: Sequence[str], seconds: float, where: Path, variables: Mapping[str, str], out: int) -> int | None:
    """The exit code of a program in a process group of its own, None if it was killed after so many seconds.

    Whatever it has started ends with it, and it ends with us.
    """
    process = subprocess.Popen(
        words, cwd=where, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        start_new_session=True, preexec_fn=_end_with_parent,
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_parent() -> None:
    """Linux kills this process when the one that started it is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def journal_of(contents: Mapping[str, bytes], path: Path) -> dict[str, Any]:
    """What was done, as it stands in a parcel. Raises ParcelError if it is not what `Stretch` writes."""
    try:
        journal: dict[str, Any] = json.loads(contents["journal.json"])
        texts = [journal["revision"], journal["device"], journal["command"]]
        texts += [found[key] for found in journal["steps"].values() for key in ("paper", "kind", "outcome", "text")]
        is_whole = all(isinstance(text, str) for text in texts) and isinstance(journal["is_dry"], bool)
        is_whole &= all(isinstance(found["seconds"], int | float) for found in journal["steps"].values())
        is_whole &= all(isinstance(versions, dict) for versions in journal["packages"].values())
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ParcelError(f"{path}: its journal is not what a stretch writes")
    return journal


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


def _is_of(name: str, folders: Iterable[str]) -> bool:
    parts = name.split("/")
    return parts[0] == "runs" and parts[2] in folders


# --- unpack -----------------------------------------------------------------------------------------------------------


def unpack(places: Places, results: Path, runs: Path, is_dry: bool) -> None:
    """All parcels of a stretch: each is checked before the first of them is used.

    Nothing that is finished gives way to something that is not, and no run to an earlier state of itself.
    """
    paths = sorted(places.out.glob("*.zip"))
    if not (places.out / RESULTS).is_file():
        user_error(f"{places.out} has no {RESULTS}; python -m benchmarks.gpu run leaves it there")
    contents = {path.name: parcel.read(path, ("journal.json", "speed", "runs")) for path in paths}
    found = contents.pop(RESULTS)
    journal = journal_of(found, places.out / RESULTS)
    if journal["is_dry"] != is_dry:
        user_error(f"{places.out} is of a {'dry ' if journal['is_dry'] else ''}stretch; unpack it as that")
    for label, step in journal["steps"].items():
        print(f"{label:<40} {step['outcome']} ({step['seconds']:.0f} s) {step.get('left_behind', '')}".rstrip())
    steps = {step.label: step for step in plan(suites.load(), is_dry)}
    for suite in suites.load():
        for part in suite.speed:
            if (name := f"speed/{suite.paper}/{part}.json") in found:
                _keep_figures(Path(name), json.loads(found[name]), journal, results)
    for parts in contents.values():
        _keep_run(parts, runs)
    for label in journal["steps"]:
        step = steps.get(label)
        if step is not None and step.kind == "training":
            job = job_of(step, is_dry)
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
    atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
    print(f"recorded: {path}, {name.stem}")


def _keep_run(parts: Mapping[str, bytes], runs: Path) -> None:
    """One run folder in the place of what is there of it, unless that is finished or has come further."""
    names = {tuple(name.split("/")[:3]) for name in parts}
    if len(names) != 1 or len(next(iter(names))) != 3:
        raise ParcelError("a parcel of a run holds more than one run folder")
    _, paper, name = names.pop()
    folder = runs / paper / name
    inside = {"/".join(key.split("/")[3:]): data for key, data in parts.items()}
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


# --- the program ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("pack", "run", "unpack"))
    parser.add_argument("--minutes", type=float, default=8.0, help="run: all of it, packing included (default 8)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help='run: kinds ("speed") or steps by name')
    parser.add_argument("--folder", type=Path, help="default gpu, dry gpu/dry")
    parser.add_argument("--out", type=Path, help="where the parcels come out (default: out in the folder)")
    parser.add_argument("--runs", type=Path, default=ROOT / runner.RUNS, help="pack: the runs to go on with")
    parser.add_argument("--dry", action="store_true", help="on a CPU at smoke size; results and runs are not touched")
    options = parser.parse_args(argv)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes {options.minutes:g}: a time between 0 and a day")
    folder = (options.folder or ROOT / ("gpu/dry" if options.dry else "gpu")).resolve()
    places = Places(folder, (options.out or folder / "out").resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the step under way is ended, its parcel is not lost
    try:
        if options.what == "pack":
            pack(places, options.runs, options.dry)
        elif options.what == "run":
            return 0 if Stretch(places, options.minutes, options.dry).run(options.only) else 1
        elif options.dry:
            unpack(places, folder / "results", folder / "runs", True)
        else:
            unpack(places, records.FOLDER, ROOT / runner.RUNS, False)
    except ValueError as error:
        user_error(str(error))
    return 0


if __name__ == "__main__":
    program(main)

"""Run the steps of one parcel under one clock; what each of them leaves is packed as soon as it ends."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import suites
from benchmarks.gpu import manifest, parcel
from benchmarks.gpu.manifest import CACHE, DONE, FAILED, LEFT_OUT, RESULTS, ROOT, STOPPED, Places, jobs_of, missing
from benchmarks.gpu.parcel import MEBI, ParcelError
from benchmarks.gpu.travel import fill_shared, progress, tested
from benchmarks.steps import Step
from common import eager
from common.config import user_error
from common.provenance import command_line, describe_device, package_versions

MOST_OUT = 60 * MEBI
MOST_FILES, MOST_FILE = 8, 16 * MEBI
FACTS = frozenset({"revision", "steps", "is_dry", "python"})  # that a pack says of itself
PACKING = 30.0  # seconds kept for it
LEAST = 5.0  # seconds that a step is worth starting for
TAIL = 4000  # characters kept of what a step printed


class Stretch:
    """The steps of one parcel under one clock."""

    def __init__(self, places: Places, minutes: float, is_dry: bool) -> None:
        started, seconds = time.monotonic(), 60 * minutes
        self.places, self.is_dry = places, is_dry
        self.end = started + seconds - min(PACKING, seconds / 8)
        contents = parcel.read(places.pack, ("facts.json", "runs", "site", "cache"))
        self.facts = json.loads(contents.pop("facts.json"))
        if not set(self.facts) >= FACTS:
            user_error(f"{places.pack} was packed by an earlier version: pack again")
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
        steps = [step for step in manifest.plan(suites.load(), self.is_dry) if step.label in self.facts["steps"]]
        steps = manifest.chosen(steps, only)
        lacking = {step.label: missing(step, self.facts["python"]) for step in steps}
        for name in dict.fromkeys(name for names in lacking.values() for name in names):
            print(f"missing: {name}, needed by {', '.join(label for label in lacking if name in lacking[label])}")
        ready = [step for step in steps if not lacking[step.label]]
        if not ready:
            user_error("no step can run here")
        (self.places.out / CACHE).unlink(missing_ok=True)  # room for what steps leave
        for step in steps:
            if self.journal["steps"].get(step.label, {}).get("outcome") == DONE:
                continue
            if step in ready:
                self._step(step)
            else:
                self._note(step, LEFT_OUT, 0.0, f"missing: {', '.join(lacking[step.label])}")
            self.bring(steps)
        self._bring_cache()
        return all(found["outcome"] != FAILED for found in self.journal["steps"].values())

    def _step(self, step: Step) -> None:
        """One step in the time that is left; what fails is tried once more without graphs."""
        left = min(step.seconds, self.end - time.monotonic())
        if left < min(LEAST + step.test_seconds, step.seconds):
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
            for job in jobs_of(step, self.is_dry):
                fill_shared(step, job, work / "runs")
        paths = [str(ROOT), str(work / "site"), os.environ.get("PYTHONPATH", "")]
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "REVISION": self.facts["revision"]}
        variables |= {"TRITON_CACHE_DIR": str(work / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}
        if self.is_dry:
            variables["OMP_NUM_THREADS"] = "1"  # at this size threads wait for each other more than they work
        if reason:
            variables[eager.VARIABLE] = reason
        log = work / "logs" / f"{step.label.replace(' ', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        where = work if step.kind == "training" else ROOT
        end = time.monotonic() + seconds
        with open(log, "wb") as file:
            first, *test = manifest.commands(step, self.places, self.is_dry)
            left = end - step.test_seconds - time.monotonic()
            code = run_group(first, max(0.0, left), where, variables, file.fileno())
            if test and (code == 0 or (code is None and step.test_seconds)):
                words = [*test[0], *(() if code == 0 else ("--unfinished",))]
                code = run_group(words, max(0.0, end - time.monotonic()), where, variables, file.fileno())
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
            name = f"run-{step.label.replace(' ', '-')}.zip"
            if name in self.parcels or noted[step.label]["outcome"] == LEFT_OUT:
                continue
            inside: dict[str, bytes] = {}
            for folder in (job.folder for job in jobs_of(step, self.is_dry)):
                run = self.places.work / folder
                files = tested(run) if step.is_tested else progress(run, step.shares)
                inside |= {f"{folder.as_posix()}/{key}": data for key, data in files.items()}
            if inside:
                self._parcel(name, inside, step.label)
        speed = parcel.files_below(self.places.work / "speed")
        figures = {f"speed/{key}": path.read_bytes() for key, path in speed.items()}
        self._parcel(RESULTS, {"journal.json": json.dumps(self.journal, indent=1).encode(), **figures}, "")

    def _bring_cache(self) -> None:
        """The kernels that were compiled, where there is room behind all else; nothing depends on them.

        What torch itself keeps of a compilation stays on this machine: it is pickled.
        """
        kernels = {f"cache/{name}": path.read_bytes() for name, path in _kernels(self.places.work / "cache").items()}
        if kernels:
            self._parcel(CACHE, kernels, "")

    def _parcel(self, name: str, contents: Mapping[str, bytes], label: str) -> None:
        """One of the parcels; one that does not fit is named, with its largest parts, and left out."""
        others = {key: taken for key, taken in self.parcels.items() if key != name}
        is_full = len({*others, RESULTS} - {name}) >= MOST_FILES
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


def _kernels(folder: Path) -> dict[str, Path]:
    """The files of Triton's cache, without those that a process that was killed had begun."""
    return {name: path for name, path in parcel.files_below(folder).items() if "/tmp." not in name}


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


def _is_of(name: str, folders: Iterable[str]) -> bool:
    parts = name.split("/")
    return parts[0] == "runs" and parts[2] in folders

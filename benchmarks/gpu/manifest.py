"""What a stretch does and where it lies: the steps of all suites in order, and the program of each."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import runner, suites
from benchmarks.rows import Experiment, Suite
from benchmarks.runner import Job
from benchmarks.steps import KINDS, Step, in_order

ROOT = suites.ROOT
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PACK, RESULTS, CACHE = "pack.zip", "results.zip", "cache.zip"
DRY_SECONDS = 600.0
# What every part of the suite imports; a machine without one of them can do nothing.
EVERYWHERE = ("numpy", "torch", "typing_extensions", "safetensors", "cv2", "matplotlib", "tqdm")  # the third by torch
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
    def cache(self) -> Path:
        """What the last stretch has compiled, to be packed for the next."""
        return self.folder / "cache"

    @property
    def work(self) -> Path:
        return self.folder / "work"


def plan(papers: Iterable[Suite], is_dry: bool) -> list[Step]:
    """All steps in order. Dry, for the sake of time, one process tests all, one measures all, and of each paper one run
    is trained and one is trained and tested; each has as long as a busy machine may need."""
    steps = in_order(step for suite in papers for step in suite.steps)
    if not is_dry:
        return steps
    merged: dict[tuple[str, str, bool], Step] = {}
    for step in steps:
        key = step.kind, step.paper if step.kind == "training" else "", step.is_tested
        first = merged.setdefault(key, replace(step, words=()))
        words = first.words or step.words if step.kind == "training" else (*first.words, *step.words)
        needs = (*first.needs, *step.needs)
        merged[key] = replace(first, words=words, seconds=DRY_SECONDS, needs=needs, test_seconds=0.0)
    return list(merged.values())


def chosen(steps: Iterable[Step], only: Sequence[str]) -> list[Step]:
    """Those of the kinds and labels in `only`, all if it is empty. Raises ValueError for a word that names none."""
    steps = list(steps)
    unknown = [word for word in only if not any(word in (step.kind, step.label) for step in steps)]
    if unknown:
        raise ValueError(f"no step {unknown[0]!r}; there are {', '.join((*KINDS, *(step.label for step in steps)))}")
    return [step for step in steps if not only or step.kind in only or step.label in only]


def jobs_of(step: Step, is_dry: bool) -> list[Job]:
    """The runs of a training step; dry, of preset smoke with the step's words as settings."""
    suite = next(suite for suite in suites.load() if suite.paper == step.paper)
    assert step.experiment is not None
    chosen = [step.experiment, *step.also]
    if is_dry:
        settings = [(word,) for word in step.words] if step.also else [step.words]
        chosen = [_small(*parts) for parts in zip(chosen, settings, strict=True)]
    return [runner.job_of(suite, one, step.seed) for one in chosen]


def _small(one: Experiment, settings: tuple[str, ...]) -> Experiment:
    takes = None if one.takes is None else (one.takes[0], _small(one.takes[1], ()))
    return replace(one, suite="smoke", settings=settings, takes=takes)


def commands(step: Step, places: Places, is_dry: bool) -> list[list[str]]:
    """The programs of a step, one after the other."""
    python = [sys.executable, "-m"]
    if step.kind == "tests":
        return [[*python, "pytest", "-q", "-p", "no:cacheprovider", *step.words]]
    if step.kind == "speed":
        device = ["--device", "cpu", "--smoke"] if is_dry else ["--device", "cuda"]
        return [[*python, "benchmarks.throughput", *device, "--part", *step.words, "--out", str(places.work / "speed")]]
    jobs = jobs_of(step, is_dry)
    if step.together is not None:
        return [[*python, *step.together(jobs)]]
    training, testing = jobs[0].commands()
    return [training, testing] if step.is_tested else [training]


def missing(step: Step, packed_for: str) -> list[str]:
    """The packages that a step needs and that cannot be imported here. packed_for: the Python of compiled ones."""
    names = (*EVERYWHERE, *(("pytest",) if step.kind == "tests" else ()), *step.needs, *(p.name for p in step.brings))
    found = [name for name in dict.fromkeys(names) if importlib.util.find_spec(name) is None]
    if packed_for != PYTHON:
        found += [f"{p.name} for Python {PYTHON} (packed for {packed_for})" for p in step.brings if p.is_compiled]
    return found

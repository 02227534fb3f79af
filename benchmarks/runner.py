"""Starts `python -m <paper>.train` and `.evaluate` for the rows of the report and collects what they leave.

reproduce: this machine's numbers beside the reported ones; nothing tracked is written. bench: the records
that back the report, collected under benchmarks/results. smoke: train, kill, resume, evaluate.
Started again, each goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks import content, records, report
from benchmarks.rows import PAPERS, Row, Suite
from benchmarks.smoke import SmokeError, tour
from benchmarks.suites import SUITES
from common.config import Parser

ROOT = report.ROOT
RUNS = Path("runs")
PRESETS = ("smoke", "cpu", "night", "gpu", "paper")
CALIBRATION = "calibration"


@dataclass(frozen=True)
class Job:
    """One run folder: what to train, if anything, and how to evaluate it. `name` is that of the folder.

    `world` is the name of the run folder that V and M are taken from; `part` tells apart the records of one preset.
    """

    paper: str
    task: str
    preset: str
    seed: int
    name: str
    evaluate: tuple[str, ...]
    is_trained: bool
    overrides: tuple[str, ...] = ()
    world: str = ""
    part: str = ""

    @property
    def folder(self) -> Path:
        """The run folder, relative to the checkout, so that no record names a folder of this machine."""
        return RUNS / self.paper / self.name

    def commands(self) -> list[list[str]]:
        """The programs to run, in order."""
        python, place = [sys.executable, "-m"], ["--run", self.folder.as_posix()]
        chosen = ["--task", self.task, "--seed", str(self.seed)]
        if not self.is_trained:
            return [[*python, f"{self.paper}.evaluate", *chosen, *self.evaluate, *place]]
        changed = ["--set", *self.overrides] if self.overrides else []
        if self.world:
            changed += ["--world-from", (RUNS / self.paper / self.world).as_posix()]
        return [
            [*python, f"{self.paper}.train", *chosen, "--preset", self.preset, *changed, *place],
            [*python, f"{self.paper}.evaluate", *self.evaluate, *place],
        ]

    def is_done(self) -> bool:
        """Whether the folder holds a finished record of this very job."""
        path = ROOT / self.folder / "record.json"
        if not path.is_file():
            return False
        data = records.read(path, records.check_record)
        config = path.with_name("config.json")
        is_same = (data["task"], data["seed"]) == (self.task, self.seed) and self._has(data["config"])
        if self.is_trained:
            is_same &= (
                data["preset"] == self.preset and json.loads(config.read_text(encoding="utf-8")) == data["config"]
            )
        return bool(data["finished"]) and is_same

    def _has(self, config: dict[str, Any]) -> bool:
        pairs = [word.split("=", 1) for word in self.overrides if "=" in word]
        return len(pairs) == len(self.overrides) and all(str(config.get(name)) == value for name, value in pairs)


def jobs(suite: Suite, rows: Sequence[Row], seeds: Sequence[int] | None, overrides: Sequence[str] = ()) -> list[Job]:
    """The runs that some rows need, rivals too, each once. `seeds` replaces the seeds of the rows that are trained."""
    found = []
    for row in rows:
        chosen = row.seeds if seeds is None or not row.is_trained else seeds
        pair = [(row.claim, row.settings), *([(row.rival, row.rival_settings)] if row.rival else [])]
        for seed, (claim, settings) in product(chosen, pair):
            part = claim if settings else ""
            label = "-".join(word for word in (row.suite, part) if word) if row.is_trained else claim
            common = tuple(overrides) if row.is_trained else ()
            base, name = ("-".join((f"{row.task}-{word}-seed{seed}", *sorted(common))) for word in (row.suite, label))
            changed, world = common + settings, base if row.shares_world and settings else ""
            job = Job(suite.paper, row.task, row.suite, seed, name, row.evaluate, row.is_trained, changed, world, part)
            found.append(job)
    return list(dict.fromkeys(found))


def run(job: Job) -> bool:
    """Run a job to its end, or find it done. False if a program failed; its own message stands on stderr."""
    label = f"{job.paper} {job.name}"
    if job.is_done():
        print(f"{label}: done before", flush=True)
        return True
    for command in job.commands():
        print(f"{label}: python {' '.join(command[1:])}", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            print(f"{label}: failed with exit code {code}", file=sys.stderr)
            return False
    return True


def collect(job: Job) -> Path:
    """Copy the record of a job and its media to benchmarks/results. Returns the place of the record."""
    source = ROOT / job.folder
    data = records.read(source / "record.json", records.check_record)
    middle = "" if job.is_trained and not job.part else f"-{data['claim']}"
    stem = f"{data['task']}{middle}-seed{data['seed']}"
    target: Path = records.FOLDER / data["paper"] / data["suite"]
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "record.json", target / f"{stem}.json")
    for file in sorted(source.iterdir()):
        if file.suffix in (".webm", ".png"):
            name = f"{stem}.webm" if file.name == "video.webm" else f"{stem}-{file.name}"
            shutil.copyfile(file, target / name)
    return target / f"{stem}.json"


def reproduce(suites: Sequence[Suite], options: argparse.Namespace) -> int:
    """Run every suite at one preset, print the table and write the local page."""
    failed, found = 0, []
    seeds = options.seeds or [0]
    preset = options.preset or "cpu"
    if options.task is not None:
        suites = [suite for suite in suites if options.task in all_tasks(suite)]
        if not suites:
            raise ValueError(f"unknown task {options.task!r}; train --help of each paper lists its own")
    for suite in suites:
        rows = [row for row in suite.rows if row.suite in (preset, CALIBRATION) and not row.only_bench]
        rows = [row for row in rows if options.task in (None, row.task)]
        if not any(row.suite == preset for row in rows):
            # A preset or task without rows of its own makes no claim; its numbers are shown all the same.
            tasks = suite.tasks if options.task is None else (options.task,)
            rows = [Row(task, "", "number", preset, task, (0,), "", "", 0) for task in tasks]
        todo = jobs(suite, rows, seeds, options.set)
        failed += sum(not run(job) for job in todo)
        found += [job for job in todo if job.is_done()]
    local = records.load_runs(ROOT / RUNS)
    _print_table(suites, preset, options.task, local, found)
    page = ROOT / RUNS / "report.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(report.build_local(records.load(), local, page.parent), encoding="utf-8")
    print(f"\nreport page: {RUNS / page.name}")
    return 1 if failed else 0


def all_tasks(suite: Suite) -> Collection[str]:
    """The tasks that the commands of a paper take, with rows or without."""
    tasks: Collection[str] = importlib.import_module(f"{suite.paper}.config").TASKS
    return tasks


def bench(suites: Sequence[Suite], options: argparse.Namespace) -> int:
    """Run the rows that this machine can run and collect their records; name the rest and why."""
    has_gpu, failed = torch.cuda.is_available(), 0
    for suite in suites:
        rows = [row for row in suite.rows if options.preset in (None, row.suite) and options.task in (None, row.task)]
        for row in rows:
            if row.needs_gpu and not has_gpu:
                reason = f"preset {row.suite} needs a GPU, and this machine has none"
                print(f"left out: {suite.paper} {row.id} ({reason})")
        for job in jobs(suite, [row for row in rows if has_gpu or not row.needs_gpu], options.seeds, options.set):
            if run(job):
                print(f"recorded: {collect(job).relative_to(ROOT)}", flush=True)
            else:
                failed += 1
        if options.preset is None:
            failed += sum(subprocess.run(command, cwd=ROOT, check=False).returncode != 0 for command in proofs(suite))
    print("now: python -m benchmarks.report")
    return 1 if failed else 0


def proofs(suite: Suite) -> list[list[str]]:
    """The programs that write the parity table and the speed record of a paper."""
    tests, table = f"{suite.paper}/tests/test_golden.py", records.FOLDER / suite.paper / "parity.json"
    return [
        [sys.executable, "-m", "pytest", tests, "--parity-record", str(table)],
        [sys.executable, "-m", "benchmarks.throughput", suite.paper],
    ]


def smoke(suites: Sequence[Suite], options: argparse.Namespace) -> int:
    """The kill-and-resume tour of every task, as many side by side as there are cores."""
    chosen = [(suite.paper, task) for suite in suites for task in suite.tasks if options.task in (None, task)]
    failed, cores = 0, os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, len(chosen)))))
    with ThreadPoolExecutor(cores) as pool:
        tours = [pool.submit(tour, paper, task, ROOT) for paper, task in chosen]
        try:
            for (paper, task), running in zip(chosen, tours, strict=True):
                try:
                    print(f"{paper} {task}: ok ({running.result():.0f} s)", flush=True)
                except SmokeError as error:
                    failed += 1
                    print(f"{paper} {task}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return 1 if failed else 0


def present(names: Sequence[str]) -> list[Suite]:
    """The suites of the named papers, all for none; a line for each that this checkout does not hold yet."""
    suites = {suite.paper: suite for suite in SUITES}
    found = []
    for name in names or PAPERS:
        if name in suites and (ROOT / name / "train.py").is_file():
            found.append(suites[name])
        else:
            print(f"{name}: not part of this checkout yet")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.runner", description=(__doc__ or "").strip())
    parser.add_argument("what", choices=("reproduce", "smoke", "bench"))
    parser.add_argument("paper", nargs="*", help=f"one or more of {', '.join(PAPERS)}; default: all")
    parser.add_argument(
        "--preset", choices=(*PRESETS, CALIBRATION), help="reproduce: default cpu; bench: only this suite"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="reproduce: default 0; bench: default those of the rows")
    parser.add_argument("--task", help="only this task")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="passed on to train"
    )
    options = parser.parse_args(argv)
    unknown = [name for name in options.paper if name not in PAPERS]
    if unknown:
        print(f"runner: error: unknown paper {', '.join(unknown)}; known: {', '.join(PAPERS)}", file=sys.stderr)
        return 2
    try:
        return {"reproduce": reproduce, "smoke": smoke, "bench": bench}[options.what](present(options.paper), options)
    except ValueError as error:
        print(f"runner: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _print_table(
    suites: Sequence[Suite], preset: str, task: str | None, local: Sequence[records.Record], done: Sequence[Job]
) -> None:
    papers = {suite.paper for suite in suites}
    rows = [
        r
        for r in report.results(local)
        if r.paper in papers and r.row.suite in (preset, CALIBRATION) and not r.row.only_bench
        if task in (None, r.row.task)
    ]
    has_rows = {result.paper for result in rows if result.row.suite == preset}
    print(f"\n{'paper':<10} {'reproduced':>18} {'reported':>18}  verdict")
    for result in (result for result in rows if result.paper in has_rows):
        numbers = f"{content.measured(result):>18} {content.reported(result):>18}"
        print(f"{result.paper:<10} {numbers}  {result.verdict.text}")
        print(f"{'':<10} {result.row.title}" + "".join(f"\n{'':<12} {note}" for note in result.notes))
    for job in done:
        if job.paper not in has_rows:
            data = records.read(ROOT / job.folder / "record.json", records.check_record)
            print(
                f"{job.paper:<10} {data['value']:>18.1f} {'':>18}  {job.name}: no row has this task at preset {preset}"
            )


if __name__ == "__main__":
    sys.exit(main())

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
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import published, records, report, suites, words
from benchmarks.compare import Result
from benchmarks.rows import CALIBRATION, PAPERS, Experiment, Row, Suite, experiments, first
from benchmarks.smoke import tour
from common.config import Parser
from common.files import atomic_write
from common.program import program
from common.run import folder_name
from common.testing import ProgramError

ROOT = report.ROOT
RUNS = Path("runs")
MOST_BYTES, MOST_PICTURES = 600_000, 4  # of the media that are committed
# Where things lie and what calculates: with any other field a run would be none of the row that its record is kept for.
FIELDS_OF_BENCH = ("data", "test_data", "init_from", "device", "workers")
PRESETS = ("smoke", "cpu", "night", "gpu", "paper")


@dataclass(frozen=True)
class Job:
    """One run folder: what to train, if anything, and how to evaluate it. `name` is that of the folder.

    takes: an option of the train command and the name of the run folder that it is given. part: what tells apart the
    records of one preset and task.
    """

    paper: str
    task: str
    preset: str
    seed: int
    name: str
    evaluate: tuple[str, ...]
    is_trained: bool
    overrides: tuple[str, ...] = ()
    takes: tuple[str, str] | None = None
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
        if self.takes is not None:
            option, name = self.takes
            changed += [option, (RUNS / self.paper / name).as_posix()]
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
            try:
                trained = json.loads(config.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{config} is damaged or missing ({error}); remove {self.folder}") from error
            is_same &= data["preset"] == self.preset and trained == data["config"]
        return bool(data["finished"]) and is_same

    def _has(self, config: dict[str, Any]) -> bool:
        # The last word of a field counts, as on a command line.
        given = {field_of(word): word.partition("=")[2] for word in self.overrides}
        return all(name in config and reads_as(text, config[name]) for name, text in given.items())


def field_of(word: str) -> str:
    """The field that a word field=value sets; a hyphen is as good as an underscore."""
    return word.partition("=")[0].replace("-", "_")


def reads_as(text: str, value: Any) -> bool:
    """Whether `text` on a command line is `value` of a config file: 1e-3 is 0.001, true is True, 1,2 is [1, 2]."""
    match value:
        case None | bool():
            return text.lower() == str(value).lower()
        case int() | float():
            try:
                return float(text) == value
            except ValueError:
                return False
        case list():
            parts = [part for part in text.split(",") if part.strip()]
            return len(parts) == len(value) and all(map(reads_as, parts, value))
    return text == str(value)


def asked_for(rows: Sequence[Row], overrides: Sequence[str]) -> list[Row]:
    """The rows whose runs the user's settings make: all that they need is set, and no others of the task need more."""
    found = [row for row in rows if not missing(row, overrides)]
    most: dict[tuple[str, str], int] = {}
    for one in map(first, found):
        most[one.suite, one.task] = max(len(one.needs), most.get((one.suite, one.task), 0))
    return [row for row in found if len(first(row).needs) == most[first(row).suite, first(row).task]]


def missing(row: Row, overrides: Sequence[str]) -> list[str]:
    """What the runs of a row need that the user has not set."""
    given = {*overrides, *(name for name, _, value in (word.partition("=") for word in overrides) if value)}
    return [need for one in experiments(row) for need in one.needs if need not in given]


def jobs(suite: Suite, rows: Sequence[Row], seeds: Sequence[int] | None, overrides: Sequence[str] = ()) -> list[Job]:
    """The runs that some rows need, controls too, each once. `seeds` replaces the seeds of what is trained."""
    found = []
    for experiment in dict.fromkeys(one for row in rows for one in experiments(row)):
        for seed in experiment.seeds if seeds is None or not experiment.is_trained else seeds:
            if experiment.takes is not None:
                found.append(job_of(suite, experiment.takes[1], seed, overrides))
            found.append(job_of(suite, experiment, seed, overrides))
    return list(dict.fromkeys(found))


def job_of(suite: Suite, one: Experiment, seed: int, overrides: Sequence[str] = ()) -> Job:
    """The run of an experiment on one seed."""
    changed = tuple(overrides) if one.is_trained else ()
    base = None if one.takes is None else (one.takes[0], _name(one.takes[1], seed, changed))
    settings = (*changed, *one.settings)
    part = one.claim if one.settings or one.needs else ""
    return Job(
        suite.paper, one.task, one.suite, seed, _name(one, seed, changed), one.evaluate, one.is_trained, settings, base,
        part,
    )  # fmt: skip


def _name(one: Experiment, seed: int, changed: Sequence[str]) -> str:
    """The run folder of an experiment; with settings, needs or without a run of its own, its claim word is in it."""
    parts = [
        one.task,
        *([one.suite] if one.is_trained else []),
        *([one.claim] if one.settings or one.needs or not one.is_trained else []),
    ]
    return folder_name("-".join((*parts, f"seed{seed}", *sorted(changed))))


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


def collect(job: Job, film: tuple[str, str, str]) -> Path:
    """Copy the record of a job to benchmarks/results, with its media if it is seed 0 of the one that `film` names.

    Returns the place of the record.
    """
    source = ROOT / job.folder
    data = records.read(source / "record.json", records.check_record)
    target: Path = records.FOLDER / place_of(job, data)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "record.json", target)
    if film == (data["suite"], data["task"], data["claim"]) and data["seed"] == 0:
        _collect_media(source, target.parent, target.stem)
    return target


def place_of(job: Job, data: Mapping[str, Any]) -> Path:
    """Where the record of a job lies below the results."""
    middle = "" if job.is_trained and not job.part else f"-{data['claim']}"
    return Path(data["paper"], data["suite"], f"{data['task']}{middle}-seed{data['seed']}.json")


def _collect_media(source: Path, target: Path, stem: str) -> None:
    """One film and at most four pictures stay in the repository; a film that is too large is named and left out."""
    pictures = [file for file in sorted(source.iterdir()) if file.suffix == ".png"][:MOST_PICTURES]
    for file in [*pictures, *sorted(source.glob("video.webm"))]:
        if file.stat().st_size > MOST_BYTES:
            print(f"{file}: {file.stat().st_size:,} bytes are more than the {MOST_BYTES:,} of a committed medium")
            continue
        name = f"{stem}.webm" if file.name == "video.webm" else f"{stem}-{file.name}"
        shutil.copyfile(file, target / name)


def reproduce(papers: Sequence[Suite], options: argparse.Namespace) -> int:
    """Run every suite at one preset, print the table and write the local page."""
    failed, found = 0, []
    preset = options.preset or "cpu"
    if options.task is not None:
        known = {suite.paper: all_tasks(suite) for suite in papers}
        papers = [suite for suite in papers if options.task in known[suite.paper]]
        if not papers:
            listed = "; ".join(f"{paper}: {', '.join(tasks)}" for paper, tasks in known.items())
            raise ValueError(f"unknown task {options.task!r}; there are {listed}")
    for suite in papers:
        rows = [row for row in suite.rows if first(row).suite in (preset, CALIBRATION)]
        rows = [row for row in rows if options.task in (None, first(row).task)]
        rows = asked_for([row for row in rows if not any(one.only_bench for one in experiments(row))], options.set)
        todo = jobs(suite, rows, options.seeds or [0], options.set)
        if not any(first(row).suite == preset for row in rows):
            # A preset or task without rows of its own makes no claim; its numbers are shown all the same.
            tasks = suite.tasks if options.task is None else (options.task,)
            seeds = tuple(options.seeds or [0])
            todo += [
                job_of(suite, Experiment(preset, task, "", seeds, 0), seed, options.set)
                for task in tasks
                for seed in seeds
            ]
        failed += sum(not run(job) for job in todo)
        found += [job for job in todo if job.is_done()]
    local = records.load_runs(ROOT / RUNS)
    _print_table(papers, preset, options.task, local, found, bool(options.set))
    page = ROOT / RUNS / "report.html"
    page.parent.mkdir(exist_ok=True)
    atomic_write(page, report.build_local(records.load(), local, page.parent).encode())
    print(f"\nreport page: {RUNS / page.name}")
    return 1 if failed else 0


def all_tasks(suite: Suite) -> Collection[str]:
    """The tasks that the commands of a paper take, with rows or without."""
    tasks: Collection[str] = importlib.import_module(f"{suite.paper}.config").TASKS
    return tasks


def bench(papers: Sequence[Suite], options: argparse.Namespace) -> int:
    """Run the rows that this machine can run and collect their records; name the rest and why.

    Raises ValueError for settings that would make runs of no row.
    """
    needed = {need for suite in papers for row in suite.rows for one in experiments(row) for need in one.needs}
    other = [word for word in options.set if field_of(word) not in FIELDS_OF_BENCH and word not in needed]
    if other:
        allowed = ", ".join(FIELDS_OF_BENCH)
        raise ValueError(f"bench records the rows as they are: it sets {allowed}, not {other[0]}; reproduce sets all")
    has_gpu, failed = torch.cuda.is_available(), 0
    for suite in papers:
        rows = [row for row in suite.rows if options.preset in (None, first(row).suite)]
        rows = [row for row in rows if options.task in (None, first(row).task)]
        if not rows and options.task is not None:
            listed = ", ".join(dict.fromkeys(first(row).task for row in suite.rows))
            raise ValueError(f"{suite.paper} has no row of task {options.task!r}; there are {listed}")
        for row in rows:
            if first(row).needs_gpu and not has_gpu:
                print(f"left out: {suite.paper} {row.id} (it needs a GPU, and this machine has none)")
            elif missing(row, options.set):
                print(f"left out: {suite.paper} {row.id} (it needs --set {' '.join(missing(row, options.set))})")
        runnable = [row for row in rows if has_gpu or not first(row).needs_gpu]
        for job in jobs(suite, asked_for(runnable, options.set), options.seeds, options.set):
            if run(job):
                print(f"recorded: {collect(job, suite.film).relative_to(ROOT)}", flush=True)
            else:
                failed += 1
        if options.preset is None:
            failed += sum(subprocess.run(command, cwd=ROOT, check=False).returncode != 0 for command in proofs(suite))
    print("now: python -m benchmarks.report")
    return 1 if failed else 0


def proofs(suite: Suite) -> list[list[str]]:
    """The programs that write the parity table and the speed record of a paper."""
    found, table = sorted((ROOT / suite.paper).rglob("test_golden.py")), records.FOLDER / suite.paper / "parity.json"
    tests = [path.relative_to(ROOT).as_posix() for path in found]
    return [
        [sys.executable, "-m", "pytest", *tests, "--parity-record", str(table)],
        [sys.executable, "-m", "benchmarks.throughput", suite.paper],
    ]


def smoke(papers: Sequence[Suite], options: argparse.Namespace) -> int:
    """The kill-and-resume tour of every task, as many side by side as there are cores."""
    chosen = [(suite.paper, task) for suite in papers for task in suite.tasks if options.task in (None, task)]
    failed, cores = 0, os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, len(chosen)))))
    with ThreadPoolExecutor(cores) as pool:
        tours = [pool.submit(tour, paper, task, ROOT) for paper, task in chosen]
        try:
            for (paper, task), running in zip(chosen, tours, strict=True):
                try:
                    print(f"{paper} {task}: ok ({running.result():.0f} s)", flush=True)
                except ProgramError as error:
                    failed += 1
                    print(f"{paper} {task}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return 1 if failed else 0


def present(names: Sequence[str]) -> list[Suite]:
    """The suites of the named papers, all for none; a line for each that this checkout does not hold yet."""
    there = {suite.paper: suite for suite in suites.load() if (ROOT / suite.paper / "train.py").is_file()}
    for name in names or PAPERS:
        if name not in there:
            print(f"{name}: not part of this checkout yet")
    return [suite for name, suite in there.items() if name in (names or there)]


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
    papers: Sequence[Suite],
    preset: str,
    task: str | None,
    local: Sequence[records.Record],
    done: Sequence[Job],
    is_changed: bool,
) -> None:
    """is_changed: the jobs have settings of the user's own, so that they are runs of no row."""
    print(f"\n{'paper':<10} {'ours':>16} {'control':>10} {'published':>16}  verdict")
    shown: set[str] = set()  # papers with a row of this preset; calibrations are of none
    for paper, rows in report.results(local, papers, published.load()).items():
        for result in rows.values():
            if _is_shown(result, preset, task):
                shown |= {paper} if first(result.row).suite == preset else set()
                numbers = f"{words.ours(result):>16} {words.control(result):>10} {words.reported(result):>16}"
                print(f"{paper:<10} {numbers}  {result.verdict.text}")
                notes = "".join(f"\n{'':<12} {note}" for note in result.notes)
                print(f"{'':<10} {result.row.title}{notes}")
    for job in done:
        if (is_changed and job.is_trained) or job.paper not in shown:
            data = records.read(ROOT / job.folder / "record.json", records.check_record)
            why = "settings of your own" if is_changed else f"no row has this task at preset {preset}"
            print(f"{job.paper:<10} {data['value']:>16.1f} {'':>27}  {job.name}: {why}")


def _is_shown(result: Result, preset: str, task: str | None) -> bool:
    needed = experiments(result.row)
    is_of_preset = needed[0].suite in (preset, CALIBRATION) and not any(one.only_bench for one in needed)
    return is_of_preset and result.is_run and task in (None, needed[0].task)


if __name__ == "__main__":
    program(main)

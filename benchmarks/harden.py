"""Attacks on every paper's smoke run: `python -m benchmarks.harden [paper …] [--share 0.1] [--seed 0]`.

Kills, damage to any file of a run, hostile options, files, records and tables, a full disk at every write, dead
workers, double starts, orphans. What may come of an attack: `equal` (the same result as without it; an option is a
setting like any other), `refused` (one line and exit code 1 or 2). What may not: `traceback`, `silent` (another result
without a word), `hang`, `orphan`, `executed` (code from a file has run). Seeded; what was done is kept in runs/harden
and not done again. Writes benchmarks/results/harden.json, which the report shows. A new paper is attacked by adding
nothing.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks import published, records, suites
from benchmarks.rows import Suite
from common.config import Parser
from common.files import atomic_write
from common.program import program
from common.provenance import describe_device, git_revision
from common.record import as_text
from common.testing import ProgramError, log_lines, same_checkpoints

OUTCOMES = ("equal", "refused", "traceback", "silent", "hang", "orphan", "executed")
SECONDS = 120.0  # until an attack counts as hanging
KINDS = {
    "kills": 50,
    "damage": 200,
    "options": 1000,
    "inputs": 120,
    "full disk": 60,
    "dead workers": 6,
    "double starts": 6,
    "tables": 200,
}
COMPARED = ("value", "values", "episodes", "controls", "measurements", "curves", "budget")
HOSTILE = (
    "", " ", "-1", "0", "1e999", "nan", "inf", "-inf", "true", "None", "[]", "{}", "1" * 400, "9" * 30, "1.5", "-0",
    "../../escaped", "/", "/dev/null", "\n", "é" * 50, "\ud800", "a=b", "--help", "=", "%s%n", "$(id)", "`id`", "'",
    "__import__('os').system('id')", "cuda:99", "meta", "mps", "1_000", "١", "1,2,3", ",", "(1,)", "cpu,cpu", "*", "~",
    "\\", "0x10", '"',
)  # fmt: skip


@dataclass
class Attacker:
    """A loaded paper that runs one program after another in children of its own."""

    paper: str
    scratch: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.attack", self.paper]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(suites.ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=suites.ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self._answer()

    def start(self, program: str, words: Sequence[str], place: Path, fault: int = 0) -> int:
        """The process of a program that has just begun, its streams in files of `place`."""
        place.mkdir(parents=True, exist_ok=True)
        (place / "code").unlink(missing_ok=True)
        order = {"program": program, "words": list(words), "folder": str(place), "fault": fault}
        assert self.process.stdin is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self._answer()["pid"])

    def finish(self, pid: int, place: Path, seconds: float = SECONDS) -> int | None:
        """The exit code of a program, None if it does not end in time (it is killed) or was killed by a signal."""
        end = time.monotonic() + seconds
        while is_alive(pid):
            if time.monotonic() > end:
                kill_session(pid)
                return None
            time.sleep(0.01)
        code = place / "code"
        return int(code.read_text()) if code.is_file() else None

    def run(self, program: str, words: Sequence[str], place: Path, fault: int = 0) -> int | None:
        """`start` and `finish`."""
        return self.finish(self.start(program, words, place, fault), place)

    def close(self) -> None:
        """End the loaded process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ProgramError(f"{self.paper}: the process that attacks has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def is_alive(pid: int) -> bool:
    """Whether a process runs, one that has ended and waits for its parent aside."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            parts = path.read_text().rsplit(")", 1)[1].split()
            if int(parts[3]) == session and parts[0] != "Z":
                found.append(int(path.parent.name))
    return found


def kill_session(session: int) -> None:
    """SIGKILL to all of a session."""
    for pid in members(session):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def left_over(session: int, seconds: float = 5.0) -> bool:
    """Whether a session still has processes after so many seconds; they are killed."""
    end = time.monotonic() + seconds
    while members(session):
        if time.monotonic() > end:
            kill_session(session)
            return True
        time.sleep(0.05)
    return False


class Target:
    """One task of a paper: a finished run to compare with, and the attacks on it."""

    def __init__(self, suite: Suite, task: str, scratch: Path) -> None:
        self.task, self.scratch = task, scratch
        self.attacker = Attacker(suite.paper, scratch)
        self.good = scratch / "good" / "run"
        started = time.monotonic()
        for name, words in (("train", self.train(self.good)), ("evaluate", [f"--run={self.good}"])):
            if self.attacker.run(name, words, scratch / "good") != 0:
                raise ProgramError(f"{suite.paper} {task}: {(scratch / 'good' / 'err').read_text()[-500:]}")
            if name == "train":
                self.seconds = time.monotonic() - started
        self.record = json.loads((self.good / "record.json").read_text())

    def train(self, folder: Path) -> list[str]:
        """The words of the train command."""
        return ["--task", self.task, "--preset", "smoke", "--seed", "0", f"--run={folder}"]

    def judge(self, code: int | None, place: Path) -> str:
        """`equal` stands for exit code 0 here; the caller compares."""
        text = (place / "err").read_text(errors="replace") if (place / "err").is_file() else ""
        if "Traceback" in text:
            return "traceback"
        if code is None:
            return "hang"
        last = [line for line in text.splitlines() if line.strip() and not line.startswith("warning:")]
        return "equal" if code == 0 else "refused" if code in (1, 2) and last else "silent"

    def same_training(self, folder: Path) -> bool:
        """Whether a finished run has the log and the weights of the good one.

        The order of the lines may differ: a stage that lost its last step repeats it behind the stages that follow.
        """
        try:
            if _sorted_log(self.good) != _sorted_log(folder):
                return False
            for stage in sorted({path.parent.name for path in self.good.glob("*/step-*.safetensors")}):
                same_checkpoints(self.good / stage, folder / stage)
        except (ProgramError, OSError, ValueError):
            return False
        return True

    def same_record(self, folder: Path) -> bool:
        """Whether a run folder has the record of the good one."""
        with suppress(OSError, ValueError):
            found = json.loads((folder / "record.json").read_text())
            return all(found.get(key) == self.record[key] for key in COMPARED)
        return False

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A scratch folder of one attack."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            yield Path(name)

    def kills(self, rng: random.Random) -> str:
        """SIGKILL three times at random moments, the process alone or with its workers; then to the end."""
        with self.place() as place:
            folder = place / "run"
            for _ in range(3):
                pid = self.attacker.start("train", self.train(folder), place)
                time.sleep(rng.uniform(0.0, self.seconds))
                if not is_alive(pid):
                    continue
                os.kill(pid, signal.SIGKILL) if rng.random() < 0.5 else kill_session(pid)
                if left_over(pid):
                    return "orphan"
            found = self.judge(self.attacker.run("train", self.train(folder), place), place)
            return found if found != "equal" or self.same_training(folder) else "silent"

    def damage(self, rng: random.Random) -> str:
        """A file of a finished run is changed, cut, lost, or something else; then evaluate, and train goes on."""
        with self.place() as place:
            folder = place / "run"
            shutil.copytree(self.good, folder, symlinks=True)
            (folder / "record.json").unlink()
            files = [
                path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".png", ".webm")
            ]
            _damage(rng.choice(files), rng)
            program = rng.choice(("train", "evaluate", "evaluate"))
            words = self.train(folder) if program == "train" else [f"--run={folder}"]
            found = self.judge(self.attacker.run(program, words, place), place)
            is_same = self.same_training(folder) if program == "train" else self.same_record(folder)
            return found if found != "equal" or is_same else "silent"

    def options(self, rng: random.Random) -> str:
        """Hostile words; what is accepted as a setting is stopped as soon as it runs."""
        with self.place() as place:
            words = hostile_words(self.attacker.paper, rng)
            program = rng.choice(("train", "evaluate"))
            pid = self.attacker.start(program, [*words, f"--run={place / 'run'}"], place)
            code = self.attacker.finish(pid, place, seconds=3.0)
            if code is None:
                return "equal"  # a setting like any other, and it runs
            found = self.judge(code, place)
            outside = [path.name for path in place.iterdir() if path.name not in ("run", "out", "err", "code")]
            is_clean = not outside and (found != "refused" or code == 1 or not (place / "run").exists())
            return found if is_clean else "silent"

    def inputs(self, rng: random.Random) -> str:
        """A hostile file or folder for an option that takes one, for the paper's own task or for that of the run."""
        with self.place() as place:
            folder, program = place / "run", rng.choice(("train", "train", "evaluate"))
            takes = self.path_options(program)
            option, hostile = rng.choice(takes), hostile_path(place, sorted(self.good.rglob("*")), rng)
            task = rng.choice((self.task, importlib.import_module(f"{self.attacker.paper}.config").Config.task))
            if program == "evaluate" and option != "--run":
                shutil.copytree(self.good, folder, symlinks=True)
                words = [f"--run={folder}"]
            else:
                words = ["--task", task, "--preset", "smoke", *([] if option == "--run" else [f"--run={folder}"])]
            code = self.attacker.run(program, [*words, f"{option}={hostile}"], place)
            found = "executed" if (place / "executed").exists() else self.judge(code, place)
            if found != "equal" or option in ("--run", "--export"):
                return found
            if program == "evaluate":
                return found if self.same_record(folder) else "silent"
            return found if task == self.task and self.same_training(folder) else "silent"

    def path_options(self, program: str) -> list[str]:
        """The options of a program whose help speaks of a file, a folder or an official checkpoint."""
        with self.place() as place:
            self.attacker.run(program, ["--help"], place)
            parts = re.split(r"\n  (?=--)", (place / "out").read_text())[1:]
        return [part.split()[0] for part in parts if re.search(r"FILE|FOLDER|folder|official checkpoint", part)]

    def full_disk(self, rng: random.Random) -> str:
        """From a random write on there is no space; with room again the same command goes on."""
        with self.place() as place:
            folder = place / "run"
            code = self.attacker.run("train", self.train(folder), place, fault=rng.randint(1, 60))
            found = self.judge(code, place)
            if found not in ("equal", "refused") or (found == "equal" and not self.same_training(folder)):
                return "silent" if found == "equal" else found
            after = self.judge(self.attacker.run("train", self.train(folder), place), place)
            return after if after != "equal" or self.same_training(folder) else "silent"

    def dead_workers(self, rng: random.Random) -> str:
        """One process of the session that is not the first is killed; without such a process nothing is attacked."""
        with self.place() as place:
            folder = place / "run"
            pid = self.attacker.start("train", self.train(folder), place)
            end, victim = time.monotonic() + self.seconds, None
            while time.monotonic() < end and victim is None and is_alive(pid):
                victim = next((one for one in members(pid) if one != pid), None)
                time.sleep(0.01)
            if victim is not None:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            found = self.judge(self.attacker.finish(pid, place), place)
            if left_over(pid):
                return "orphan"
            return found if found != "equal" or self.same_training(folder) else "silent"

    def double_starts(self, rng: random.Random) -> str:
        """The same command while it runs; the second is refused, the first comes to its end."""
        with self.place() as place:
            folder = place / "run"
            first = self.attacker.start("train", self.train(folder), place / "first")
            end = time.monotonic() + self.seconds
            while not (folder / "metrics.jsonl").is_file() and time.monotonic() < end:
                time.sleep(0.01)
            second = self.judge(self.attacker.run("train", self.train(folder), place / "second"), place / "second")
            found = self.judge(self.attacker.finish(first, place / "first"), place / "first")
            if found != "equal" or not self.same_training(folder):
                return "silent" if found == "equal" else found
            return "silent" if second == "equal" and len(log_lines(folder)) != len(log_lines(self.good)) else second


def _sorted_log(folder: Path) -> list[str]:
    return sorted(json.dumps(line, sort_keys=True) for line in log_lines(folder))


def _damage(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "flip", "cut", "empty", "lost", "folder", "noise", "zeros"))
    if kind == "flip" and data:
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "lost":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "noise":
        path.write_bytes(rng.randbytes(len(data)))
    else:
        path.write_bytes(b"" if kind == "empty" else bytes(len(data)))


class _Payload:
    """Leaves a folder where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


def hostile_path(place: Path, good: Sequence[Path], rng: random.Random) -> Path:
    """Something in `place` that is not what an option asks for, under a name that it may ask for."""
    path = place / f"hostile{rng.choice(('', '.pt', '.pth.tar', '.npz', '.safetensors', '.png', '.mp4', '.csv'))}"
    kind = rng.choice(("missing", "empty", "noise", "folder", "full folder", "pipe", "loop", "payload", "cut"))
    if kind == "payload":
        path.write_bytes(pickle.dumps({"state_dict": _Payload(), "encoder": _Payload()}))
    elif kind == "cut":
        data = rng.choice([one for one in good if one.is_file() and one.stat().st_size]).read_bytes()
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in ("folder", "full folder"):
        path.mkdir()
        for name in ("a.png", "b.mp4", "config.json", "meta.json") if kind == "full folder" else ():
            os.mkfifo(path / name) if rng.random() < 0.3 else (path / name).write_bytes(rng.randbytes(1000))
    elif kind != "missing":
        path.write_bytes(rng.randbytes(1000) if kind == "noise" else b"")
    return path


def hostile_words(paper: str, rng: random.Random) -> list[str]:
    """One to three options with values that nobody should give."""
    config = importlib.import_module(f"{paper}.config")
    names = [f.name for f in fields(config.Config)]
    words: list[str] = []
    for _ in range(rng.randint(1, 3)):
        name, value = rng.choice(names), rng.choice(HOSTILE)
        form = rng.randrange(5)
        if form == 0:
            words.append(f"--{name.replace('_', '-')}={value}")
        elif form == 1:
            words += ["--set", f"{name}={value}"]
        elif form == 2:
            words += ["--set", value]
        elif form == 3:
            words += [f"--{rng.choice(('preset', 'task', 'seed', 'device'))}={value}"]
        else:
            words.append(value if value.startswith("-") else f"--{name[: rng.randint(1, len(name))]}{value}")
    return ["--preset", "smoke", *words]


def tables(rng: random.Random, scratch: Path) -> str:
    """A committed record or a table of published numbers, damaged; the loaders refuse it or read the same."""
    if rng.random() < 0.6:
        source = rng.choice(sorted(records.FOLDER.rglob("*-seed*.json")))
        target = scratch / source.relative_to(records.FOLDER)
        load: Callable[[], Any] = lambda: records.load(scratch)  # noqa: E731
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        _damage_text(target, rng)
    else:
        shutil.copytree(published.FOLDER, scratch, dirs_exist_ok=True)
        target = rng.choice(sorted(scratch.glob("*.csv")))
        load = lambda: published.load(scratch)  # noqa: E731
        _damage_text(target, rng)
    try:
        load()
    except ValueError:
        return "refused"
    except Exception:  # anything else is what a user would see as a traceback
        return "traceback"
    return "equal"


def _damage_text(path: Path, rng: random.Random) -> None:
    text = path.read_text(encoding="utf-8")
    at = rng.randrange(len(text))
    piece = rng.choice(
        ("9" * 400, "[" * 5000, "\\ud800", "NaN", "-", '"', ",", "null", "{}", "1e999", "\x00", "", "true")
    )
    path.write_text(text[:at] + piece + text[at + rng.randrange(30) :], encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.harden", description=(__doc__ or "").strip())
    parser.add_argument("paper", nargs="*", help="one or more papers; default: all")
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks of each kind, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="draws other attacks")
    options = parser.parse_args(argv)
    papers = [suite for suite in suites.load() if not options.paper or suite.paper in options.paper]
    if not papers:
        print(f"harden: error: no such paper; there are {', '.join(suites.names())}", file=sys.stderr)
        return 2
    done = suites.ROOT / "runs" / "harden" / f"seed{options.seed}"
    done.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the attacks themselves run in processes of their own
        running = {
            one.paper: pool.submit(attack, one, options.share, options.seed, done, len(papers)) for one in papers
        }
        results = {paper: found.result() for paper, found in running.items()}
    record = {"device": describe_device("cpu"), "revision": git_revision(), "seed": options.seed, "papers": results}
    if options.share == 1.0 and not options.paper:
        atomic_write(records.FOLDER / "harden.json", as_text(record).encode())
    bad = sum(
        count
        for kinds in results.values()
        for found in kinds.values()
        for word, count in found.items()
        if word in OUTCOMES[2:]
    )
    for paper, kinds in results.items():
        for kind, found in kinds.items():
            print(f"{paper:<10} {kind:<14} " + ", ".join(f"{count} {word}" for word, count in found.items()))
    return 1 if bad else 0


def attack(suite: Suite, share: float, seed: int, done: Path, papers: int) -> dict[str, dict[str, int]]:
    """The attacks on the first task of a paper, counted by kind and outcome; each is kept as soon as it is over."""
    log = done / f"{suite.paper}.jsonl"
    known = {}
    if log.is_file():
        known = {(one["kind"], one["number"]): one["outcome"] for one in map(json.loads, log.read_text().splitlines())}
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix=f"harden-{suite.paper}-") as scratch:
        target: Target | None = None
        for kind, total in KINDS.items():
            for number in range(math.ceil(share * total / papers)):
                outcome = known.get((kind, number))
                if outcome is None:
                    rng = random.Random(f"{seed} {suite.paper} {kind} {number}")
                    if kind == "tables":
                        with tempfile.TemporaryDirectory() as place:
                            outcome = tables(rng, Path(place))
                    else:
                        target = target or Target(suite, suite.tasks[0], Path(scratch))
                        outcome = getattr(target, kind.replace(" ", "_"))(rng)
                    with log.open("a") as file:
                        file.write(json.dumps({"kind": kind, "number": number, "outcome": outcome}) + "\n")
                    if outcome not in OUTCOMES[:2]:
                        print(f"{suite.paper} {kind} {number}: {outcome}", file=sys.stderr, flush=True)
                counts.setdefault(kind, Counter())[outcome] += 1
        if target is not None:
            target.attacker.close()
    return {kind: dict(sorted(found.items())) for kind, found in counts.items()}


if __name__ == "__main__":
    program(main)

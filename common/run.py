"""A folder per run: what was asked (config.json), where it ran (meta.json), what came of it (metrics.jsonl).

The same command on the same folder goes on with the run; a second one at the same time is refused. In a torchrun job
only rank 0 writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from common import eager
from common.config import from_dict, to_dict, user_error
from common.dist import job
from common.files import GuardedLog, Lock, atomic_write, check_is_file, disk_is_full
from common.program import RunError
from common.provenance import command_line, describe_device, git_revision, package_versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

LINE_SECONDS = 60.0  # between lines of progress where there is no terminal
TICK_SECONDS = 10.0  # between writes of the clock inside a long block


class NonFiniteError(RunError):
    """A loss became NaN or infinite."""


def is_main_process() -> bool:
    """False in every rank of a torchrun job but the first."""
    return job()[0] == 0


@dataclass
class Run:
    """An open run folder."""

    folder: Path
    paper: str
    config: dict[str, Any]
    started: float
    earlier_seconds: float = 0.0
    identity: str = ""
    lock: Lock | None = field(default=None, repr=False)
    guard: GuardedLog = field(init=False, repr=False)
    _marked: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.guard = GuardedLog(self.metrics_path)

    @classmethod
    def open(cls, paper: str, config: Any, preset: str, folder: Path) -> Run:
        """Makes the folder, or goes on with it if it is a run of the same config; else exits with code 2.

        The folder is locked until this process ends. `identity` stands in every file that belongs to this run alone.
        """
        values = to_dict(config)
        run = cls(folder, paper, values, time.monotonic())
        if is_main_process():
            if _is_run(folder):
                run.lock = _locked(folder)
                _continue(folder, paper, config)
            else:
                _create(folder, paper, values, preset)
                run.lock = _locked(folder)
            run.guard.open()
            run.identity = _meta(folder)["identity"]
        run.earlier_seconds = run.wall_seconds
        return run

    @staticmethod
    def load(paper: str, folder: Path) -> dict[str, Any]:
        """{"folder": Path, "config", "meta", "wall_seconds", "stage_seconds"} of a run, finished or not."""
        if not _is_run(folder):
            user_error(f"{folder} is no run folder; start one with python -m {paper}.train")
        meta = _meta(folder)
        config = _config(folder, meta)
        if meta["paper"] != paper:
            user_error(f"{folder} is a run of {meta['paper']}, not of {paper}")
        clock = _read_clock(folder)
        total = sum(clock.values())
        return {
            "folder": folder,
            "config": config,
            "meta": meta,
            "wall_seconds": total,
            "stage_seconds": clock,
        }

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def log(self, stage: str, step: int, **metrics: float | torch.Tensor) -> None:
        """Appends one line; a value that is not finite becomes null. `wall` is seconds over all starts."""
        if not is_main_process():
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"stage": stage, "step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        line["wall"] = round(self.earlier_seconds + time.monotonic() - self.started, 3)
        try:
            self.guard.append(json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not disk_is_full(error):
                raise
            print(f"warning: {self.metrics_path}: disk full, one line lost", file=sys.stderr)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        return read_metrics(self.folder)

    def flush(self) -> None:
        """Makes metrics.jsonl durable: a checkpoint must not know more lines than the disk."""
        if is_main_process():
            with open(self.metrics_path, "ab") as file:
                os.fsync(file.fileno())

    def forget(self, stage: str, after: int) -> None:
        """Drops the lines of `stage`, and of "<stage> <part>", behind step `after`: they will be written again."""
        if not is_main_process():
            return
        lines = self.metrics()
        kept = [
            line
            for line in lines
            if not (line["stage"] == stage or line["stage"].startswith(f"{stage} ")) or line["step"] <= after
        ]
        if len(kept) < len(lines):
            self.replace_log(kept)

    def replace_log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Put these lines in the place of all of metrics.jsonl."""
        if is_main_process():
            self.guard.rewrite(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def progress(self, total: int, desc: str, initial: int = 0, unit: str = "it") -> tqdm[Any]:
        """`progress_bar`, of this run."""
        return progress_bar(total, desc, initial, unit)

    def add_seconds(self, seconds: float, stage: str = "other") -> None:
        """Adds wall time of a stage to clock.json, which survives restarts."""
        if not is_main_process():
            return
        clock = _read_clock(self.folder)
        clock[stage] = clock.get(stage, 0.0) + seconds
        try:
            self._mark()
            atomic_write(self.folder / "clock.json", _json_bytes(clock))
        except OSError as error:
            if not disk_is_full(error):
                raise
            print(
                f"warning: {self.folder / 'clock.json'}: disk full, {seconds:.0f} s not counted",
                file=sys.stderr,
            )

    def _mark(self) -> None:
        """What ran as it is though it was to be a graph stands in meta.json, and from there in the record."""
        if len(eager.marks()) > self._marked:
            meta = _meta(self.folder)
            meta["marks"] = list(dict.fromkeys([*meta["marks"], *eager.marks()]))
            atomic_write(self.folder / "meta.json", _json_bytes(meta))
            self._marked = len(eager.marks())

    @contextmanager
    def timed(self, stage: str) -> Iterator[Callable[..., None]]:
        """Adds the wall time of the block to the clock, at its end and whenever the block calls what it is given.

        Such a call costs nothing more often than every TICK_SECONDS; without it a kill loses the seconds of the block.
        """
        last = time.monotonic()

        def tick(least: float = TICK_SECONDS) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= least:
                self.add_seconds(now - last, stage)
                last = now

        yield tick
        tick(0.0)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds per stage over all starts, as given to `add_seconds`."""
        return _read_clock(self.folder)

    @property
    def wall_seconds(self) -> float:
        """Wall seconds over all stages and starts, as given to `add_seconds`."""
        return sum(self.stage_seconds.values())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl in a run folder, oldest first; one line and exit code 2 if there is a bad one."""
    path = folder / "metrics.jsonl"
    lines = []
    try:
        for number, text in enumerate(GuardedLog(path).check().decode("utf-8").splitlines(), 1):
            line = json.loads(text)
            if not isinstance(line, dict) or not {"stage", "step"} <= line.keys():
                raise ValueError(f"line {number} is none of ours")
            lines.append(line)
    except (OSError, ValueError, RecursionError) as error:
        user_error(f"{path} is damaged or missing ({error}); {_way_out(folder)}")
    return lines


class _MinuteLines(tqdm):  # type: ignore[misc]
    """Progress for a file or a pipe: a line of its own instead of one that is overwritten."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self.fp.write((str(self) if msg is None else msg) + "\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        """A last line, unless it was all done before a first one was due."""
        if not self.disable:
            self.disable: bool = True
            self._decr_instances(self)
            if time.time() - self.start_t >= self.delay:
                self.display()


def progress_bar(total: int, desc: str, initial: int = 0, unit: str = "it") -> tqdm[Any]:
    """A bar with rate, time left and the number that matters; without a terminal one line a minute.

    Ranks other than the first are silent.
    """
    options: dict[str, Any] = {"total": total, "desc": desc, "initial": initial, "unit": unit}
    if not is_main_process():
        return tqdm(**options, disable=True)
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True)
    times = {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "delay": LINE_SECONDS}
    return _MinuteLines(**options, **times, ncols=100, ascii=True)


def usable_device(name: str) -> torch.device:
    """The torch device of that name, a CPU or an NVIDIA GPU; one line and exit 2 if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        user_error(f"device: {name!r} is no torch device; use cpu, cuda or cuda:<number>")
    if device.type not in ("cpu", "cuda"):
        user_error(f"device {name}: this suite computes on cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        user_error(f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def run_folder(paper: str, config: Any, options: argparse.Namespace) -> Path:
    """--run, or runs/<paper>/<task>-<preset>-seed<seed> below the current folder, with the changed fields behind it."""
    if options.run is not None:
        return Path(options.run)
    changes = "".join(
        f"-{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in sorted(options.changed.items())
    )
    return Path("runs") / paper / folder_name(f"{config.task}-{options.preset}-seed{config.seed}{changes}")


def folder_name(words: str) -> str:
    """Words as the name of one folder: what could lead elsewhere becomes "_"; a long end becomes its digest."""
    name = re.sub(r"[^\w.=,-]+", "_", words)
    return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def run_under_test(
    paper: str, config_class: type[C], config: C, options: argparse.Namespace, free: Collection[str]
) -> tuple[dict[str, Any], C]:
    """The run that a test is of, as `Run.load` gives it, and its config with what the command line says of the test.

    Fields in `free` belong to the test. The others choose the run; with --run they are refused. One line and exit
    code 2 for what is no run, or one of another version.
    """
    tested = {name: value for name, value in options.changed.items() if name in free}
    training = {name: value for name, value in options.changed.items() if name not in free}
    if options.run is not None and training:
        user_error(f"{', '.join(sorted(training))}: fixed by the run in --run; a test takes {', '.join(sorted(free))}")
    folder = run_folder(paper, config, options)
    if not _is_run(folder):
        folder = run_folder(paper, config, argparse.Namespace(**vars(options) | {"changed": training}))
    info = Run.load(paper, folder)
    return info, replace(run_config(config_class, info), **tested)


def run_config(config_class: type[C], info: Mapping[str, Any]) -> C:
    """The config of a run as `Run.load` gives it; one line and exit code 2 if it is of another version."""
    try:
        return from_dict(config_class, with_defaults(config_class, info["config"]))
    except ValueError as error:
        user_error(f"{info['folder']} was made by another version of this program: {error}")


def with_defaults(config_class: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an older run with the fields that have come since, each at its default: a run keeps its meaning."""
    known = {f.name: f.default for f in dataclasses.fields(config_class) if f.default is not dataclasses.MISSING}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()} | dict(values)


def check_finite(stage: str, step: int, losses: Mapping[str, float | torch.Tensor], checkpoint_folder: Path) -> None:
    """Raises NonFiniteError naming step, term and the last good checkpoint if a loss is NaN or infinite."""
    for name, value in losses.items():
        if not math.isfinite(float(value)):
            good = sorted(Path(checkpoint_folder).glob("step-*.safetensors"))
            last = f"last good checkpoint: {good[-1]}" if good else "no checkpoint yet"
            raise NonFiniteError(f"{stage} step {step}: {name} is {float(value)}; {last}")


def seed_everything(seed: int, device: str = "cpu") -> None:
    """Seeds the global generators of Python, numpy and torch; on a CPU asks for deterministic kernels too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    on_cpu = torch.device(device).type == "cpu"
    # What torch.use_deterministic_algorithms does, without importing the compiler, which a CPU never needs here.
    torch.set_deterministic_debug_mode("error" if on_cpu else "default")
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in a convolution too, unless a package asks for less
    # Filling every fresh buffer is a debugging aid of that mode: it costs time and changes no number here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "meta.json").is_file()


def _locked(folder: Path) -> Lock:
    try:
        return Lock(folder, command_line())
    except BlockingIOError as error:
        user_error(f"{folder} is in use by {error.strerror}; wait for it, or choose another folder with --run")
    except OSError as error:
        user_error(f"cannot lock {folder}: {error.strerror}")


def _create(folder: Path, paper: str, values: dict[str, Any], preset: str) -> None:
    # Filled under another name and renamed, so that nobody ever sees a half-made run folder.
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            user_error(f"{folder} exists and is no run folder; choose another with --run")
        meta = {
            "paper": paper,
            "preset": preset,
            "identity": _identity(paper, values),
            "packages": package_versions(paper),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "restarts": [],
            **_start_facts(values),
        }
        temporary.mkdir(parents=True)
        atomic_write(temporary / "config.json", _json_bytes(values))
        atomic_write(temporary / "meta.json", _json_bytes(meta))
        atomic_write(temporary / "metrics.jsonl", b"")
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        user_error(f"cannot make the run folder {folder}: {error.strerror}")
    except ValueError as error:  # a path with a null byte
        user_error(f"cannot make the run folder {folder}: {error}")


def _continue(folder: Path, paper: str, config: Any) -> None:
    meta, values = _meta(folder), to_dict(config)
    known = with_defaults(type(config), _config(folder, meta))
    if meta["paper"] != paper:
        user_error(f"{folder} is a run of {meta['paper']}, not of {paper}; {_way_out(folder)}")
    names = sorted(name for name in known.keys() | values.keys() if known.get(name) != values.get(name))
    if names:
        changes = ", ".join(f"{name} (was {known.get(name)}, now {values.get(name)})" for name in names)
        user_error(f"{folder} was started with another config: {changes}; {_way_out(folder)}")
    meta["restarts"].append(_start_facts(values))
    atomic_write(folder / "meta.json", _json_bytes(meta))
    read_metrics(folder)


def _way_out(folder: Path) -> str:
    return f"choose another folder with --run, or remove {folder}"


def _start_facts(values: Mapping[str, Any]) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    device = describe_device(values["device"])
    return {"started": now, "command": command_line(), "revision": git_revision(), "device": device}


def _meta(folder: Path) -> dict[str, Any]:
    """meta.json; a run of an earlier version has no identity, and its files are not asked for one."""
    meta = {"identity": "", "marks": []} | _read_json(folder / "meta.json")
    texts = ("paper", "preset", "identity", "command", "revision", "device")
    is_whole = all(isinstance(meta.get(name), str) for name in texts) and isinstance(meta.get("packages"), dict)
    starts, marks = meta.get("restarts"), meta["marks"]
    is_whole &= isinstance(marks, list) and all(isinstance(mark, str) for mark in marks)
    if not is_whole or not isinstance(starts, list) or not all(_is_start(start) for start in starts):
        user_error(f"{folder / 'meta.json'} is damaged (not what this program writes); {_way_out(folder)}")
    return meta


def _config(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, which must be the one that the run was made with."""
    values = _read_json(folder / "config.json")
    if meta["identity"] not in ("", _identity(meta["paper"], values)):
        user_error(f"{folder / 'config.json'} is not as this run was made with; {_way_out(folder)}")
    return values


def _identity(paper: str, values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps({"paper": paper, **values}).encode()).hexdigest()[:16]


def _is_start(start: Any) -> bool:
    return isinstance(start, dict) and isinstance(start.get("revision"), str)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        check_is_file(path)
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        user_error(f"{path} is damaged ({error}); {_way_out(path.parent)}")
    return values


def _read_clock(folder: Path) -> dict[str, float]:
    path = folder / "clock.json"
    clock = _read_json(path) if path.exists() else {}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in clock.values()):
        user_error(f"{path} is damaged (seconds that are no numbers); {_way_out(folder)}")
    return clock


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()

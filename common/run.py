"""A folder per run: what was asked (config.json), where it ran (meta.json), what came of it (metrics.jsonl).

The same command on the same folder goes on with the run. In a torchrun job only rank 0 writes.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from common.config import from_dict, to_dict, user_error

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

# Libraries whose version can change a number; those not installed are left out of meta.json.
PACKAGES = ["torch", "numpy", "safetensors", "opencv-python-headless", "pillow"]
PACKAGES += ["gymnasium", "vizdoom", "box2d", "pygame-ce", "cma"]
PACKAGES += ["dm-control", "mujoco", "ale-py", "crafter", "scikit-learn"]
RECORD_KEYS = (
    {"schema", "paper", "suite", "claim", "task", "preset", "seed", "metric", "unit", "value", "values"}
    | {"episodes", "policy", "protocol", "budget", "controls", "measurements", "curves", "wall_seconds"}
    | {"stage_seconds", "device", "parameters", "revision", "packages", "config", "command", "finished"}
)


class NonFiniteError(RuntimeError):
    """A loss became NaN or infinite."""


def is_main_process() -> bool:
    """False in every rank of a torchrun job but the first."""
    return int(os.environ.get("RANK", "0")) == 0


def disk_is_full(error: OSError) -> bool:
    """Whether the write failed for want of space, which costs the write and not the run."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def atomic_write(path: Path | str, data: bytes) -> None:
    """After this the file holds `data` whole; killed at any moment, it holds the old content whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass
class Run:
    """An open run folder."""

    folder: Path
    paper: str
    config: dict[str, Any]
    started: float
    earlier_seconds: float

    @classmethod
    def open(cls, paper: str, config: Any, preset: str, folder: Path) -> Run:
        """Makes the folder, or goes on with it if it is a run of the same config; else exits with code 2."""
        values = to_dict(config)
        if is_main_process():
            if _is_run(folder):
                _continue(folder, paper, values)
            else:
                _create(folder, paper, values, preset)
        run = cls(folder, paper, values, time.monotonic(), 0.0)
        run.earlier_seconds = run.wall_seconds
        return run

    @staticmethod
    def load(paper: str, folder: Path) -> dict[str, Any]:
        """{"folder": Path, "config", "meta", "wall_seconds", "stage_seconds"} of a run, finished or not."""
        if not _is_run(folder):
            user_error(f"{folder} is no run folder; start one with python -m {paper}.train")
        config, meta = _read_json(folder / "config.json"), _read_json(folder / "meta.json")
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
        position = self.metrics_path.stat().st_size
        try:
            with open(self.metrics_path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            if not disk_is_full(error):
                raise
            os.truncate(self.metrics_path, position)
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
            atomic_write(self.metrics_path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))

    def progress(self, total: int, desc: str, initial: int = 0, unit: str = "it") -> tqdm[Any]:
        """A bar with rate and time left; silent if stderr is no terminal or this is not the first rank."""
        return progress_bar(total, desc, initial, unit)

    def add_seconds(self, seconds: float, stage: str = "other") -> None:
        """Adds wall time of a stage to clock.json, which survives restarts."""
        if not is_main_process():
            return
        clock = _read_clock(self.folder)
        clock[stage] = clock.get(stage, 0.0) + seconds
        try:
            atomic_write(self.folder / "clock.json", _json_bytes(clock))
        except OSError as error:
            if not disk_is_full(error):
                raise
            print(
                f"warning: {self.folder / 'clock.json'}: disk full, {seconds:.0f} s not counted",
                file=sys.stderr,
            )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to the clock."""
        start = time.monotonic()
        yield
        self.add_seconds(time.monotonic() - start, stage)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds per stage over all starts, as given to `add_seconds`."""
        return _read_clock(self.folder)

    @property
    def wall_seconds(self) -> float:
        """Wall seconds over all stages and starts, as given to `add_seconds`."""
        return sum(self.stage_seconds.values())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl in a run folder, oldest first."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def progress_bar(total: int, desc: str, initial: int = 0, unit: str = "it") -> tqdm[Any]:
    """A bar with rate and time left; silent if stderr is no terminal or this is not the first rank."""
    quiet = not sys.stderr.isatty() or not is_main_process()
    return tqdm(total=total, desc=desc, initial=initial, unit=unit, disable=quiet, dynamic_ncols=True)


def usable_device(name: str) -> torch.device:
    """The torch device of that name; one line and exit 2 if this machine has none."""
    try:
        device = torch.device(name)
    except RuntimeError:
        user_error(f"device: {name!r} is no torch device; use cpu, cuda or cuda:<number>")
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
    name = f"{config.task}-{options.preset}-seed{config.seed}{changes}"
    return Path("runs") / paper / re.sub(r"[^\w.=,-]+", "_", name)


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
        return from_dict(config_class, info["config"])
    except ValueError as error:
        user_error(f"{info['folder']} was made by another version of this program: {error}")


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
    torch.use_deterministic_algorithms(on_cpu)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 in a convolution too, unless a package asks for less
    # Filling every fresh buffer is a debugging aid of that mode: it costs time and changes no number here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def record_template(run_info: Mapping[str, Any]) -> dict[str, Any]:
    """The part of record.json that is known from the run folder (the result of `Run.load`).

    The command is without its --run: where a run folder lay belongs to the machine and not to the record.
    """
    meta, config = run_info["meta"], run_info["config"]
    revisions = [meta["revision"], *(start["revision"] for start in meta["restarts"])]
    return {
        "schema": 1,
        "paper": meta["paper"],
        "task": config["task"],
        "preset": meta["preset"],
        "seed": config["seed"],
        "wall_seconds": round(run_info["wall_seconds"], 1),
        "stage_seconds": {name: round(value, 1) for name, value in run_info["stage_seconds"].items()},
        "device": meta["device"],
        "revision": ", ".join(dict.fromkeys(revisions)),
        "packages": meta["packages"],
        "config": config,
        "command": re.sub(r" --run[= ]\S+", "", meta["command"]),
    }


def write_record(path: Path | str, record: Mapping[str, Any]) -> None:
    """Raises ValueError for missing or unknown keys, numbers not finite, or episodes that do not fit."""
    missing, unknown = sorted(RECORD_KEYS - set(record)), sorted(set(record) - RECORD_KEYS)
    if missing or unknown:
        raise ValueError(f"record: missing keys {missing}, unknown keys {unknown}")
    if len(record["values"]) != record["episodes"]:
        raise ValueError(f"record: {record['episodes']} episodes but {len(record['values'])} values")
    atomic_write(path, _json_bytes(record))


def describe_device(device: str) -> str:
    """GPU name, or CPU model with the number of torch threads."""
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(torch.device(device)))
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads != 1 else ''}"


def package_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a number."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revision() -> str:
    """Short commit of the code, "-dirty" if the Python files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
        status = ["git", "status", "--porcelain", "--", "*.py"]
        changed = subprocess.run(status, cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    if commit.returncode != 0 or not (root / ".git").exists():
        return "unknown"
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def command_line() -> str:
    """The command as a reader would type it, without the path of the interpreter."""
    arguments = [word for word in sys.orig_argv[1:] if word != "-u"]
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launcher = ["python"] if ranks == "1" else ["torchrun", f"--nproc-per-node={ranks}"]
    return shlex.join(launcher + arguments)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "meta.json").is_file()


def _create(folder: Path, paper: str, values: dict[str, Any], preset: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        user_error(f"{folder} exists and is no run folder; choose another with --run")
    meta = {
        "paper": paper,
        "preset": preset,
        "packages": package_versions(),
        "python": platform.python_version(),
    }
    meta |= {"platform": platform.platform(), "restarts": [], **_start_facts(values)}
    # Filled under another name and renamed, so that nobody ever sees a half-made run folder.
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        atomic_write(temporary / "config.json", _json_bytes(values))
        atomic_write(temporary / "meta.json", _json_bytes(meta))
        atomic_write(temporary / "metrics.jsonl", b"")
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        user_error(f"cannot make the run folder {folder}: {error.strerror}")


def _continue(folder: Path, paper: str, values: dict[str, Any]) -> None:
    meta, known = _read_json(folder / "meta.json"), _read_json(folder / "config.json")
    way_out = "choose another folder with --run or remove this one"
    if meta["paper"] != paper:
        user_error(f"{folder} is a run of {meta['paper']}, not of {paper}; {way_out}")
    names = sorted(name for name in known.keys() | values.keys() if known.get(name) != values.get(name))
    if names:
        changes = ", ".join(f"{name} (was {known.get(name)}, now {values.get(name)})" for name in names)
        user_error(f"{folder} was started with another config: {changes}; {way_out}")
    meta["restarts"].append(_start_facts(values))
    atomic_write(folder / "meta.json", _json_bytes(meta))
    # A kill in the middle of a write leaves half a line; the next one must not be glued to it.
    metrics = folder / "metrics.jsonl"
    content = metrics.read_bytes()
    os.truncate(metrics, content.rfind(b"\n") + 1)


def _start_facts(values: Mapping[str, Any]) -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    device = describe_device(values["device"])
    return {"started": now, "command": command_line(), "revision": git_revision(), "device": device}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        user_error(f"{path} is damaged ({error})")
    return values


def _read_clock(folder: Path) -> dict[str, float]:
    path = folder / "clock.json"
    return _read_json(path) if path.exists() else {}


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()

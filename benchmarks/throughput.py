"""Speed of the shipped steps, imported and not copied: `python -m benchmarks.throughput [paper …] [--device cuda]`.

Every figure is the median of repeats after a warm-up. A peer is measured in the same run on the same machine. Each part
of `speed/<paper>.py` that the suite names runs in a process of its own, so that no part meets the compiled code or the
memory of another, and the record is written after each. Writes benchmarks/results/<paper>/throughput/<device>.json.
--peer adds other people's learners: `peers/<name>.py`. --part measures parts alone in this process; with --smoke at the
sizes of SMOKE in their files, where the figures mean nothing.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import records, suites
from benchmarks.peers.peer import ORIGINS, checkouts
from benchmarks.rows import Suite
from benchmarks.speed import timing
from common import eager
from common.config import Parser, user_error
from common.files import atomic_write
from common.program import program
from common.provenance import command_line, describe_device, git_revision, package_versions
from common.record import SCHEMA, as_text
from common.run import usable_device

BESIDE = "measure_beside"  # the part that is measured with --peer alone, and takes the checkouts


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    papers = {suite.paper: suite for suite in suites.load() if suite.speed}
    parser = Parser(prog="python -m benchmarks.throughput", description=(__doc__ or "").strip())
    parser.add_argument("paper", nargs="*", help=f"one or more of {', '.join(papers)}; default: all")
    parser.add_argument("--device", help="torch device; default: cuda where there is one, else cpu")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"measure a checkout of {', '.join(f'{o.repository} ({name})' for name, o in ORIGINS.items())} too",
    )
    parser.add_argument(
        "--part", nargs="+", default=[], metavar="PAPER/PART", help="measure these alone, the figures of each to --out"
    )
    parser.add_argument("--out", type=Path, help="the folder of PAPER/PART.json")
    parser.add_argument("--smoke", action="store_true", help="with --part: every line runs, the figures mean nothing")
    options = parser.parse_args(argv)
    unknown = [name for name in options.paper if name not in papers]
    if unknown:
        print(f"throughput: error: unknown paper {unknown[0]}; known: {', '.join(papers)}", file=sys.stderr)
        return 2
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = options.paper or list(papers)
    peers = checkouts(options.peer, chosen)
    for name in peers:
        if device.type != "cpu" and (not ORIGINS[name].runs_on_gpu or device.index):
            place = "a CPU or the first GPU" if ORIGINS[name].runs_on_gpu else "a CPU"
            user_error(f"--peer {name} is measured on {place}, not on {device}; use --device")
    mine = {name: {k: v for k, v in peers.items() if ORIGINS[k].paper == name} for name in papers}
    if bool(options.part) != (options.out is not None) or (options.smoke and not options.part):
        user_error("--part and --out go together, and --smoke goes with them")
    for part in options.part:
        paper, _, name = part.partition("/")
        if paper not in papers or name not in (*papers[paper].speed, BESIDE):
            listed = ", ".join(f"{one.paper}/{name}" for one in papers.values() for name in one.speed)
            user_error(f"unknown part {part}; there are {listed}")
        found = _measure(paper, name, mine[paper], device, options.smoke)
        (options.out / paper).mkdir(parents=True, exist_ok=True)
        atomic_write(options.out / f"{part}.json", json.dumps(found).encode())
    if options.part:
        return 0
    return max(_record(papers[name], mine[name], device) for name in chosen)


def _record(suite: Suite, peers: Mapping[str, Path], device: torch.device) -> int:
    """Measure every part of a paper; 1 if one of them failed, and the others stand in the record all the same."""
    record = new_record(suite.paper, device)
    path = records.FOLDER / place_of(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for part in (*suite.speed, *([BESIDE] if peers else [])):
        found = _in_a_process(suite.paper, part, peers, device)
        if found is None:
            failed = 1
            continue
        record["measurements"] += found
        records.check_speed(record)
        atomic_write(path, as_text(record).encode())
        for row in found:
            peer = f"   {row['ratio']} x {row['peer']}" if row["peer"] else ""
            print(f"{row['name']:<55} {row['value']:>10,.4g} {row['unit']}{peer}", flush=True)
    print(f"recorded: {path.relative_to(records.FOLDER.parent.parent)}")
    return failed


def new_record(paper: str, device: torch.device) -> dict[str, Any]:
    """A speed record without measurements."""
    return {
        "schema": SCHEMA,
        "paper": paper,
        "device": describe_device(str(device)),
        "revision": git_revision(),
        "packages": package_versions(paper),
        # Where a checkout lay belongs to the machine and not to the record.
        "command": re.sub(r"(--peer[= ]\w+=)\S*/", r"\1", command_line()),
        "measurements": [],
    }


def place_of(record: Mapping[str, Any]) -> Path:
    """Where a speed record lies below the results."""
    stem = re.sub("[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    return Path(record["paper"], "throughput", f"{stem}.json")


def _in_a_process(
    paper: str, part: str, peers: Mapping[str, Path], device: torch.device
) -> list[dict[str, Any]] | None:
    """The figures of one part, None if its process failed; its own message stands on stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.throughput", paper, "--device", str(device), "--out", scratch]
        command += ["--part", f"{paper}/{part}", *(f"--peer={name}={folder}" for name, folder in peers.items())]
        if subprocess.run(command, cwd=suites.ROOT, check=False).returncode != 0:
            print(f"throughput: {paper}, {part}: failed; its figures are left out", file=sys.stderr)
            return None
        found: list[dict[str, Any]] = json.loads(Path(scratch, paper, f"{part}.json").read_text(encoding="utf-8"))
        return found


def _measure(
    paper: str, part: str, peers: Mapping[str, Path], device: torch.device, is_smoke: bool
) -> list[dict[str, Any]]:
    """What a process of its own does: one part. What was not compiled or captured stands in the notes."""
    np.random.seed(0)
    module = importlib.import_module(f"benchmarks.speed.{paper}")
    if is_smoke:
        for small in (module, timing):
            vars(small).update(small.SMOKE)
    measure = getattr(module, part)
    found: list[dict[str, Any]] = measure(peers, device) if part == BESIDE else measure(device)
    marks = "; ".join(eager.marks())
    return [row | {"note": "; ".join(filter(None, (row["note"], marks)))} for row in found] if marks else found


if __name__ == "__main__":
    program(main)

"""Speed of the shipped steps, imported and not copied: `python -m benchmarks.throughput [paper …] [--device cuda]`.

Every figure is the median of repeats after a warm-up. A peer is measured in the same run on the same machine. Each part
of `speed/<paper>.py` that the suite names runs in a process of its own, so that no part meets the compiled code or the
memory of another, and the record is written after each. Writes benchmarks/results/<paper>/throughput/<device>.json.
--peer adds other people's learners: `peers/<name>.py`.
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
from common.config import Parser, user_error
from common.files import atomic_write
from common.provenance import command_line, describe_device, git_revision, package_versions
from common.record import SCHEMA
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
    parser.add_argument("--part", help="measure this part alone and write its figures to --out")
    parser.add_argument("--out", type=Path, help="the file that --part writes")
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
    mine = {name: {k: v for k, v in peers.items() if ORIGINS[k].paper == name} for name in chosen}
    if options.part is not None:
        found = _measure(chosen[0], options.part, mine[chosen[0]], device)
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return 0
    return max(_record(papers[name], mine[name], device) for name in chosen)


def _record(suite: Suite, peers: Mapping[str, Path], device: torch.device) -> int:
    """Measure every part of a paper; 1 if one of them failed, and the others stand in the record all the same."""
    name = describe_device(str(device))
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "paper": suite.paper,
        "device": name,
        "revision": git_revision(),
        "packages": package_versions(suite.paper),
        # Where a checkout lay belongs to the machine and not to the record.
        "command": re.sub(r"(--peer[= ]\w+=)\S*/", r"\1", command_line()),
        "measurements": [],
    }
    stem = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    path = records.FOLDER / suite.paper / "throughput" / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for part in (*suite.speed, *([BESIDE] if peers else [])):
        found = _in_a_process(suite.paper, part, peers, device)
        if found is None:
            failed = 1
            continue
        record["measurements"] += found
        records.check_speed(record)
        atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
        for row in found:
            peer = f"   {row['ratio']} x {row['peer']}" if row["peer"] else ""
            print(f"{row['name']:<55} {row['value']:>10,.4g} {row['unit']}{peer}", flush=True)
    print(f"recorded: {path.relative_to(records.FOLDER.parent.parent)}")
    return failed


def _in_a_process(
    paper: str, part: str, peers: Mapping[str, Path], device: torch.device
) -> list[dict[str, Any]] | None:
    """The figures of one part, None if its process failed; its own message stands on stderr."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "figures.json")
        command = [sys.executable, "-m", "benchmarks.throughput", paper, "--device", str(device)]
        command += ["--part", part, "--out", str(out), *(f"--peer={name}={folder}" for name, folder in peers.items())]
        if subprocess.run(command, cwd=suites.ROOT, check=False).returncode != 0:
            print(f"throughput: {paper}, {part}: failed; its figures are left out", file=sys.stderr)
            return None
        found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return found


def _measure(paper: str, part: str, peers: Mapping[str, Path], device: torch.device) -> list[dict[str, Any]]:
    """What a process of its own does: one part."""
    np.random.seed(0)
    measure = getattr(importlib.import_module(f"benchmarks.speed.{paper}"), part)
    found: list[dict[str, Any]] = measure(peers, device) if part == BESIDE else measure(device)
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Speed of the shipped steps, imported and not copied: `python -m benchmarks.throughput [paper …] [--device cuda]`.

Every figure is the median of repeats after a warm-up. A peer is measured in the same run on the same machine.
Writes benchmarks/results/<paper>/throughput/<device>.json. What is measured: `speed/<paper>.py`.
--peer adds other people's learners: `peers/<name>.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks import records
from benchmarks.peers.peer import ORIGINS, checkouts
from benchmarks.rows import PAPERS
from benchmarks.speed import dreamerv3, ha2018, ijepa
from common.config import Parser, user_error
from common.files import atomic_write
from common.provenance import command_line, describe_device, git_revision, package_versions
from common.record import SCHEMA
from common.run import usable_device

SUITES = {"ha2018": ha2018.measure, "dreamerv3": dreamerv3.measure, "ijepa": ijepa.measure}
BESIDE = {"dreamerv3": dreamerv3.measure_beside}  # on a CPU alone
BESIDE_ON = {"ijepa": ijepa.measure_beside}  # on any device


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.throughput", description=(__doc__ or "").strip())
    parser.add_argument("paper", nargs="*", help=f"one or more of {', '.join(SUITES)}; default: all")
    parser.add_argument("--device", help="torch device; default: cuda where there is one, else cpu")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help=f"measure a checkout of {', '.join(f'{o.repository} ({name})' for name, o in ORIGINS.items())} too",
    )
    options = parser.parse_args(argv)
    unknown = [name for name in options.paper if name not in SUITES]
    if unknown:
        print(f"throughput: error: unknown paper {unknown[0]}; known: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    papers = options.paper or [name for name in PAPERS if name in SUITES]
    peers = checkouts(options.peer, papers)
    for name in peers:
        if device.type != "cpu" and (ORIGINS[name].paper in BESIDE or device.index):
            place = "a CPU" if ORIGINS[name].paper in BESIDE else "a CPU or the first GPU"
            user_error(f"--peer {name} is measured on {place}, not on {device}; use --device")
    np.random.seed(0)
    for paper in papers:
        mine = {name: folder for name, folder in peers.items() if ORIGINS[name].paper == paper}
        measurements = SUITES[paper](device)
        if mine:
            measurements += BESIDE[paper](mine) if paper in BESIDE else BESIDE_ON[paper](mine, device)
        name = describe_device(str(device))
        record = {
            "schema": SCHEMA,
            "paper": paper,
            "device": name,
            "revision": git_revision(),
            "packages": package_versions(paper),
            # Where a checkout lay belongs to the machine and not to the record.
            "command": re.sub(r"(--peer[= ]\w+=)\S*/", r"\1", command_line()),
            "measurements": measurements,
        }
        records.check_speed(record)
        path = records.FOLDER / paper / "throughput" / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps(record, indent=1) + "\n").encode())
        for row in record["measurements"]:
            peer = f"   {row['ratio']} x {row['peer']}" if row["peer"] else ""
            print(f"{row['name']:<55} {row['value']:>10,.4g} {row['unit']}{peer}")
        print(f"recorded: {path.relative_to(records.FOLDER.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The log of a run as TensorBoard's event files, of any paper, finished or in training.

    python -m common.tensorboard runs/dreamerv3/*            # then: tensorboard --logdir runs/dreamerv3
    python -m common.tensorboard runs/dreamerv3/* --follow   # goes on adding what is logged, until Ctrl-C

The log stays what it is, metrics.jsonl; the event files are a copy in the run folder's `tensorboard/`, made anew each
time. tensorboardX writes them (`pip install tensorboardX`); to look at them takes TensorBoard itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config import Parser, user_error
from common.program import program

EVERY_SECONDS = 10.0
FOLDER = "tensorboard"


class Copy:
    """The event files of one run, and how much of its log they hold."""

    def __init__(self, run: Path) -> None:
        """Begins anew. Exits with code 2 if the folder has no log."""
        self.log = run / "metrics.jsonl"
        if not self.log.is_file():
            user_error(f"{run} is no run folder: it has no metrics.jsonl")
        self.folder = run / FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = _writer(self.folder)
        self.lines: list[bytes] = []

    def update(self) -> int:
        """Adds what the log has gained; its number of lines. A resumed run writes some lines again: so do we."""
        # A line without its end is still being written.
        lines = self.log.read_bytes().split(b"\n")[:-1]
        if lines[: len(self.lines)] != self.lines:
            self.writer.close()
            shutil.rmtree(self.folder)
            self.writer = _writer(self.folder)
            self.lines = []
        for line in lines[len(self.lines) :]:
            self._add(line)
        self.lines = lines
        self.writer.flush()
        return len(lines)

    def _add(self, text: bytes) -> None:
        """Every number of a line at its step, named after the stage; the time shown is that since the start."""
        try:
            line = json.loads(text)
            stage, step = line.pop("stage"), int(line.pop("step"))
            wall = line.pop("wall", None)
            numbers = {name: float(value) for name, value in line.items() if value is not None}
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            user_error(f"{self.log} has a line that is none of ours: {text[:60].decode(errors='replace')}")
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in numbers.items():
            self.writer.write_event(Event(wall_time=wall, step=step, summary=scalar(f"{stage}/{name}", value)))


def _writer(folder: Path) -> Any:
    # Not its SummaryWriter, which leaves the writing to a thread that a flush does not wait for.
    try:
        from tensorboardX.event_file_writer import EventsWriter
    except ModuleNotFoundError:
        user_error("tensorboardX is missing: pip install tensorboardX")
    folder.mkdir()
    return EventsWriter(str(folder / "events"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = Parser(
        prog="python -m common.tensorboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--follow", action="store_true", help=f"look for new lines every {EVERY_SECONDS:.0f} seconds")
    options = parser.parse_args(argv)
    copies = [Copy(run) for run in options.runs]
    for copy in copies:
        print(f"{copy.folder}: {copy.update()} lines of the log")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        while options.follow:
            time.sleep(EVERY_SECONDS)
            for copy in copies:
                copy.update()
    return 0


if __name__ == "__main__":
    program(main)

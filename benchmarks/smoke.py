"""A tour of a package: train, SIGKILL midway, the same again, evaluate; equal to a run left alone, bit for bit."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import records
from common.testing import ProgramError, has_lines, kill_when, log_lines, run, same_checkpoints, same_log, start


def tour(paper: str, task: str, root: Path) -> float:
    """Seconds that the tour of one task took. Raises ProgramError with what went wrong.

    The two runs have the same log and the same weights, so one evaluation speaks for both.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"smoke-{paper}-") as scratch:
        alone, killed = Path(scratch, "alone"), Path(scratch, "killed")
        train = [f"{paper}.train", "--task", task, "--preset", "smoke", "--seed", "0"]
        run(*train, f"--run={alone}", cwd=root)
        half = max(1, len(log_lines(alone)) // 2)
        kill_when(start(*train, f"--run={killed}", cwd=root), lambda: has_lines(killed, half))
        run(*train, f"--run={killed}", cwd=root)
        same_log(alone, killed)
        for stage in sorted({path.parent.name for path in alone.glob("*/step-*.safetensors")}):
            same_checkpoints(alone / stage, killed / stage)
        run(f"{paper}.evaluate", f"--run={killed}", cwd=root)
        try:
            records.read(killed / "record.json", records.check_record)
        except ValueError as error:
            raise ProgramError(str(error)) from error
    return time.monotonic() - started

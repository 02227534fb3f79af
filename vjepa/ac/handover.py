"""The planning tasks stand under `python -m vjepa.train` and `vjepa.evaluate` too, which pass them on to here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.files import check_is_file
from vjepa.ac.config import TASKS


def is_ac(argv: Sequence[str] | None) -> bool:
    """Whether a command line names a task of planning, or a run folder of one; what is wrong with it is said later."""
    words = list(sys.argv[1:] if argv is None else argv)
    pairs = [word.split("=", 1) for word in words if "=" in word]
    pairs += [[word, after] for word, after in zip(words, words[1:], strict=False) if "=" not in word]
    named = {value for name, value in pairs if name in ("--task", "task")}
    folders = [Path(value) for name, value in pairs if name == "--run"]
    return any(task in TASKS for task in [*named, *map(_task, folders)])


def _task(folder: Path) -> str:
    """The task of a run folder, "" if it is none."""
    try:
        check_is_file(folder / "config.json")
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    return str(values.get("task")) if isinstance(values, dict) else ""

"""A process that has a paper's programs loaded and forks once an attack: `python -m benchmarks.attack <paper>`.

One JSON object a line on stdin: {"program": "train" or "evaluate", "words": [...], "folder": scratch, "fault": ...}.
One a line on stdout: {"pid": ...} at the start of a child, which is the leader of a session of its own and writes to
`out` and `err` in the folder. Loading PyTorch takes seconds and an attack a fraction of one, hence the forks.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.program import program


def fail_write(number: int) -> None:
    """From the `number`-th durable write of this process on the disk is full."""
    left = number
    fsync, reserve = os.fsync, os.posix_fallocate

    def full(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(*arguments)

        return wrapped

    os.fsync, os.posix_fallocate = full(fsync), full(reserve)


def serve(paper: str) -> None:
    """Fork a child an order until stdin ends."""
    torch.set_num_threads(1)
    mains = {name: importlib.import_module(f"{paper}.{name}").main for name in ("train", "evaluate")}
    # Ended children are taken away by the kernel: a waiting one would look like an orphan.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attack(order, mains[order["program"]], f"{paper}.{order['program']}")
        print(json.dumps({"pid": pid}), flush=True)


def _attack(order: dict[str, Any], main: Callable[[list[str]], int | None], name: str) -> None:
    """The child: its exit code lies in the file `code` when it has ended by itself."""
    os.setsid()
    folder = Path(order["folder"])
    for descriptor, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    sys.argv = sys.orig_argv = ["python", "-m", name, *order["words"]]
    if order.get("fault"):
        fail_write(order["fault"])
    code = 1
    try:
        program(lambda: main(order["words"]))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # what the interpreter would print; this child is one
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "code").write_text(str(code))
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])

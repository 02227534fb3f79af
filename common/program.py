"""How a program ends: what went wrong is one line, and the exit code says whose fault it was.

0: done. 1: the machine or the method failed (full disk, a dead worker, a loss that is no number). 2: the user asked
for what there is not. 130: interrupted from the keyboard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class RunError(RuntimeError):
    """The run cannot go on, for a reason that its message gives in one line; exit code 1."""


def program(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and leave the interpreter as the module says; faults of our own code keep their traceback."""
    try:
        code = main()
    except KeyboardInterrupt:
        _end("interrupted; the same command goes on from the last checkpoint", 130)
    except RunError as error:
        _end(f"error: {error}", 1)
    except BrokenPipeError:
        # The reader of our output has gone; the interpreter must not complain when it flushes at its end.
        sys.stdout = None
        raise SystemExit(1) from None
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        _end(f"error: {place}{error.strerror or error}", 1)
    raise SystemExit(code)


def _end(message: str, code: int) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    raise SystemExit(code)

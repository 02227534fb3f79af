"""A peer's end of the line to the program that times it: orders come in and answers go out, one JSON value a line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Line:
    """Standard input and output. What the peer prints goes to standard error from here on."""

    def __init__(self) -> None:
        self.output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def orders(self) -> Iterator[dict[str, Any]]:
        """What comes in, until the other end is closed."""
        for line in sys.stdin:
            yield json.loads(line)

    def start(self) -> dict[str, Any]:
        """The first order: what to build. Its checkout is where modules are looked for first from here on."""
        order = next(self.orders())
        sys.path.insert(0, order["checkout"])
        return order

    def answer(self, value: Any) -> None:
        """Send a value."""
        print(json.dumps(value), file=self.output, flush=True)

    def serve(self, facts: dict[str, Any], update: Callable[[], object]) -> None:
        """Say what was built, then answer every order with the seconds of one update."""
        self.answer(facts)
        for _ in self.orders():
            start = time.perf_counter()
            update()
            self.answer(time.perf_counter() - start)

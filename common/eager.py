"""What a GPU compiles or captures is a step that runs as it is too: where that fails, the step goes on so.

One line on stderr says it, and records have it beside the device. With the environment variable EAGER set to a reason,
nothing is compiled or captured in the first place.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

VARIABLE = "EAGER"
_marks: list[str] = []
_numbers = itertools.count()


def marks() -> tuple[str, ...]:
    """What ran as it is in this process though it was to be compiled or captured, each once, with the reason."""
    return tuple(_marks)


def fall_back(what: str, reason: BaseException | str) -> None:
    """Say that `what` runs as it is from now on, once."""
    words = reason if isinstance(reason, str) else ": ".join(filter(None, (type(reason).__name__, str(reason))))
    mark = f"{what} not as a graph ({' '.join(words.split())[:200]})"
    if mark not in _marks:
        _marks.append(mark)
        print(f"warning: {mark}", file=sys.stderr, flush=True)


def is_forced(what: str) -> bool:
    """Whether EAGER forbids to compile or capture `what`, which is noted then."""
    reason = os.environ.get(VARIABLE, "")
    if reason:
        fall_back(what, reason)
    return bool(reason)


def captured(what: str, capture: Callable[[], T]) -> T | None:
    """What `capture` returns, None where it fails or is forbidden. It must have changed nothing if it fails."""
    if is_forced(what):
        return None
    try:
        return capture()
    except Exception as error:  # whatever a driver, a library or a compiler finds wrong: the step itself will tell
        fall_back(what, error)
        return None


def own_copy(function: Callable[P, T]) -> Callable[P, T]:
    """The function, a plain one, with code of its own.

    torch.compile gives up on a function that it has met in eight forms (kinds of input, precisions, with gradient and
    without), and takes functions of one code for one function: a model that is made anew would have what is left.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    copy = types.FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    found: Callable[P, T] = copy
    return found


def compiled(what: str, function: Callable[P, T], **options: Any) -> Callable[P, T]:
    """torch.compile, but a call that it fails at is made by the function itself, and so are all later ones.

    A backward pass is compiled when it first runs, which is not in here: its failure is the caller's.
    """
    if is_forced(what):
        return function
    fast: Callable[P, T] = torch.compile(function, **options)
    is_broken = False

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal is_broken
        if not is_broken:
            try:
                return fast(*args, **kwargs)
            except Exception as error:  # the same: if it is the function's own fault, the next line raises it again
                fall_back(what, error)
                is_broken = True
        return function(*args, **kwargs)

    return call

"""What imports what: learning and dreaming need no game, and a process that holds a game needs no torch."""

import subprocess
import sys

import pytest

from common.testing import ROOT

ENGINES = ("vizdoom", "Box2D", "pygame", "gymnasium")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ha2018.train, ha2018.evaluate, ha2018.screen", ENGINES),
        ("from ha2018 import env, processes, random_play, shards; env.preprocess", (*ENGINES, "torch")),
        ("from ha2018.env import new_game; new_game('doom', 5).close()", ("torch", "Box2D")),
        ("from ha2018.env import new_game; new_game('car', 5).close()", ("torch", "vizdoom")),
    ],
)
def test_imports_are_as_few_as_they_can_be(code, absent):
    """With the modules in sys.modules afterwards. The shards of a collection are made where the games are."""
    names = f"import sys; print(*(name for name in {absent} if name in sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{names}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []

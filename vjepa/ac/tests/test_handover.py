"""Planning tasks by the commands of the paper."""

from __future__ import annotations

import pytest

from vjepa import evaluate, train
from vjepa.ac.handover import is_ac
from vjepa.ac.tests.conftest import SMOKE


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "two-rooms", "--seed", "1"], True),
        (["--task=wall"], True),
        (["--set", "updates=3", "task=pointmaze"], True),
        (["--task", "shapes"], False),
        (["--preset", "cpu"], False),
        ([], False),
        (["--run", "nowhere"], False),
    ],
)
def test_a_planning_task_is_recognised(words, expected):
    assert is_ac(words) is expected


def test_a_run_folder_is_recognised_by_its_task(trained, tmp_path):
    assert is_ac(["--run", str(trained)])
    assert is_ac([f"--run={trained}", "--planner", "cem"])
    (tmp_path / "config.json").write_text("[")
    assert not is_ac(["--run", str(tmp_path)])


def test_the_commands_of_the_paper_train_and_test_a_planning_task(tmp_path, capsys):
    folder = tmp_path / "run"
    train.main([*SMOKE, "--task", "two-rooms", "--updates", "0", "--run", str(folder)])
    evaluate.main(["--run", str(folder)])
    assert "random policy" in capsys.readouterr().out

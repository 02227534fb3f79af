"""The test of a run: its record and files, the untrained control, graded positions, and a game in the terminal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from common import testing
from common.record import RECORD_KEYS
from muzero import evaluate, judges, pictures, play, train
from muzero.agent import network_for, snapshots
from muzero.boards import GAMES
from muzero.config import PRESETS, TASKS, Config
from muzero.env import BoardWorlds, space_of
from muzero.evaluate import claim, every_reply, games_and_grades
from muzero.positions import load_positions
from muzero.self_play import board_mover
from muzero.tests.conftest import SMOKE


def config_of(task: str, preset: str, **changes) -> Config:
    found = PRESETS[preset]
    return Config(**{**TASKS[task], **found.values, **found.by_task.get(task, {}), "task": task, **changes})


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    return folder


def test_a_run_leaves_its_record_and_pictures(run: Path) -> None:
    out, errors = testing.run("muzero.evaluate", "--run", str(run))
    assert errors == ""
    record = json.loads((run / "record.json").read_text())
    assert set(record) == RECORD_KEYS
    assert record["claim"] == "plays"
    assert record["protocol"] == "tictactoe-every-reply"
    assert record["budget"]["updates"] == 40
    assert set(record["values"]) <= {0.0, 100.0}
    assert 30 < record["controls"]["uniform random"]["value"] < 70
    assert record["controls"]["one line lost"]["value"] == pytest.approx(100 - 100 / record["episodes"], abs=1e-5)
    assert "lines of play not lost" in out
    for name in ("tree.png", "curves.png", "video.webm"):
        assert (run / name).stat().st_size > 5000
    assert snapshots(run) == [20, 40]


def test_an_untrained_control_is_a_valid_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        train.main([*SMOKE, "--updates", "0", "--run", str(folder)])
        evaluate.main(["--run", str(folder)])
    finally:
        torch.use_deterministic_algorithms(deterministic)
    record = json.loads((folder / "record.json").read_text())
    assert record["claim"] == "plays-untrained"
    assert record["budget"] == {"env_steps": 0, "env_frames": 0, "updates": 0}


def test_what_differs_from_the_preset_is_in_the_claim() -> None:
    config = config_of("connect4", "night")
    assert claim(config, "night") == "plays"
    assert claim(replace(config, policy="gumbel", simulations=2), "night") == "plays-gumbel-sims2"
    assert claim(replace(config, reanalyze=0.5), "night") == "plays-reanalyze0.5"
    assert claim(replace(config, updates=0), "night") == "plays-untrained"
    assert claim(replace(config_of("cartpole", "night"), td_steps=20), "night") == "plays-n20"


def test_search_with_the_true_rules_never_misses_a_win_in_one() -> None:
    config = config_of("tictactoe", "smoke")
    game = GAMES["tictactoe"]
    network = network_for(space_of(config), config)
    stones, turn = game.position([0, 3, 1, 4])  # cell 2 wins, for the other 5 would
    assert board_mover(network, game, config, 60, has_rules=True)(stones, turn)[0] == 2
    stones, turn = game.position([0, 3, 1])
    assert board_mover(network, game, config, 100, has_rules=True)(stones, turn)[0] == 2


def test_an_agent_of_connect_four_is_graded(tmp_path: Path, monkeypatch) -> None:
    """Every part of the test at a small size: eight positions of each class and two games."""
    config = config_of("connect4", "smoke", test_episodes=2)
    network = network_for(space_of(config), config)
    positions = load_positions()
    kept = [k for name in positions.classes for k in np.flatnonzero(np.array(positions.names) == name)[:8]]
    small = replace(
        positions,
        names=[positions.names[k] for k in kept],
        stones=positions.stones[kept],
        turn=positions.turn[kept],
        values=positions.values[kept],
    )
    monkeypatch.setattr(evaluate, "load_positions", lambda: small)
    monkeypatch.setattr(evaluate, "GRADED_SIMULATIONS", (1, 3))
    found = games_and_grades(network, config, 3, {"folder": tmp_path, "meta": {"identity": ""}})
    measured = found["measurements"]
    assert len([name for name in measured if "mistakes" in name]) == 6 * (2 * 2 + 2)
    assert measured["begin-easy: mistakes, 3 simulations"]["episodes"] == 8
    assert set(found["values"]) <= {0.0, 50.0, 100.0}
    pictures.draw_strength(found, tmp_path / "strength.png")
    assert (tmp_path / "strength.png").stat().st_size > 5000


def test_positions_of_another_game_or_a_bad_file_end_in_one_line(run: Path, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--run", str(run), "--positions", "nowhere.csv"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --positions grades agents of connect4; this run is of tictactoe\n"


def test_every_reply_is_asked_once_a_position() -> None:
    config = config_of("tictactoe", "smoke", test_episodes=4)
    found = every_reply(network_for(space_of(config), config), config, 4)
    game = GAMES["tictactoe"]
    lines = [judges.every_line(game, lambda stones, turn: game.legal(stones).argmax(1), side) for side in (1, -1)]
    assert found["episodes"] > 100
    assert 100 < sum(map(len, lines)) <= 384 + 945


def test_a_game_in_the_terminal(run: Path, monkeypatch, capsys) -> None:
    """Moves, a move that is none, a hint, both last moves back, and the end of the input."""
    monkeypatch.setattr("sys.stdin", StringIO("5\n5\n10\nx\nhint\nundo\n"))
    play.main(["--run", str(run)])
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert shown.count("is no move here; allowed:") == 3
    assert shown.count("agent: ") == 1
    assert "visits" in shown
    assert shown.endswith("good bye\n")


def test_a_whole_game_ends(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("\n".join("123456789" * 9) + "\n"))
    play.main(["--run", str(run), "--second"])
    assert capsys.readouterr().out.splitlines()[-1] in ("you win", "the agent wins", "a draw")


@pytest.mark.parametrize(
    ("changed", "complaint"), [({"task": "cartpole"}, "an agent of cartpole; one can play"), (None, "is no run folder")]
)
def test_play_refuses_what_is_no_board(changed, complaint, run: Path, capsys) -> None:
    if changed is None:
        (run / "meta.json").unlink()
    else:
        run = run.parent / "other"
        train.main([*SMOKE, "--task", "cartpole", "--updates", "0", "--run", str(run)])
    with pytest.raises(SystemExit) as end:
        play.main(["--run", str(run)])
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_match_with_chance_counts_for_the_agent_alone() -> None:
    """Uniform play in the agent's place takes about half of the points, one that wins when it can takes more."""
    game, rng = GAMES["tictactoe"], np.random.default_rng(0)

    def chance(rows: np.ndarray) -> np.ndarray:
        return judges.uniform_moves(worlds.legal()[rows], rng)

    def winner(rows: np.ndarray) -> np.ndarray:
        action, stones, turn = chance(rows), worlds.stones[rows], worlds.turn[rows]
        for cell in range(game.cells):
            open_ones = np.flatnonzero(stones[:, cell] == 0)
            after = game.place(stones[open_ones], turn[open_ones], np.full(len(open_ones), cell))
            action[open_ones[game.has_line(after, turn[open_ones])]] = cell
        return action

    found = []
    for mover in (chance, winner):
        worlds = BoardWorlds(game, 2000)
        found.append(evaluate.against_chance(worlds, mover, rng))
    even, better = (np.mean(evaluate.points(results)) for results in found)
    assert 46 < even < 54
    assert better > 65


def test_boards_without_a_test_of_their_own_are_played_against_chance() -> None:
    config = config_of("gomoku", "smoke", test_episodes=2)
    found = evaluate.games(network_for(space_of(config), config), config, 1)
    assert found["metric"] == "points against random"
    assert set(found["values"]) | set(found["controls"]["uniform random"]["values"]) <= {0.0, 50.0, 100.0}
    assert evaluate.protocol(config) == "gomoku-games"


def test_returns_of_a_world_are_measured_beside_chance() -> None:
    config = config_of("cartpole", "smoke", size="vector-small", support=10, test_episodes=3)
    network = network_for(space_of(config), config)
    found = evaluate.episodes(network, config, 2)
    assert found["episodes"] == 3
    assert all(8 <= value <= 500 for value in found["values"])
    assert all(8 <= value < 200 for value in found["controls"]["uniform random"]["values"])
    again = evaluate.episodes(network, config, 2)
    assert found["values"] == again["values"]

"""Rules against OpenSpiel, judges against known values, and the graded positions against their own floors."""

from __future__ import annotations

import numpy as np
import pytest

from muzero import judges
from muzero.boards import GAMES, LineGame
from muzero.positions import FILE, load_positions, mistakes, mistakes_of_chance

GAMES_PLAYED = {"tictactoe": 10_000, "connect4": 10_000}
SPIEL = {"tictactoe": "tic_tac_toe", "connect4": "connect_four"}


@pytest.mark.parametrize("name", SPIEL)
def test_rules_are_those_of_openspiel(name: str) -> None:
    """Legal moves at every position, ends and winners of random games that are played by both side by side."""
    pyspiel = pytest.importorskip("pyspiel", reason="OpenSpiel is not installed")
    game, rng, count = GAMES[name], np.random.default_rng(0), GAMES_PLAYED[name]
    theirs = pyspiel.load_game(SPIEL[name])
    states = [theirs.new_initial_state() for _ in range(count)]
    stones, turn = game.start(count)
    while len(states):
        legal = game.legal(stones)
        action = np.where(legal, rng.random(legal.shape), -1.0).argmax(1)
        for row, state, move in zip(legal, states, action.tolist(), strict=True):
            assert np.flatnonzero(row).tolist() == state.legal_actions()
            state.apply_action(move)
        stones = game.place(stones, turn, action)
        won = game.has_line(stones, turn)
        over = won | game.is_full(stones)
        assert over.tolist() == [state.is_terminal() for state in states]
        mover = 0 if turn[0] == 1 else 1
        assert won[over].tolist() == [
            state.returns()[mover] == 1 for state, end in zip(states, over, strict=True) if end
        ]
        states = [state for state, end in zip(states, over, strict=True) if not end]
        stones, turn = stones[~over], -turn[~over]


def test_an_illegal_move_is_refused() -> None:
    game = GAMES["connect4"]
    stones, turn = game.position([3] * 6)
    for action in (3, -1, 7):
        with pytest.raises(ValueError, match="illegal move in connect4"):
            game.place(stones, turn, np.array([action]))
    with pytest.raises(ValueError, match="after the end"):
        game.position([0, 1, 0, 1, 0, 1, 0, 1])


def test_an_observation_is_of_the_player_to_move() -> None:
    game = GAMES["tictactoe"]
    stones, turn = game.position([4, 0])
    first = game.observe(stones, turn)[0]
    second = game.observe(stones, -turn)[0]
    assert first[0, 1, 1] == first[1, 0, 0] == 1
    assert np.array_equal(first[:2], second[1::-1])
    assert first[2].all()
    assert not second[2].any()


def exact_values(game: LineGame) -> dict[bytes, int]:
    """Value of every reachable position for the side to move, by its `key`; for games as small as tic-tac-toe."""
    known: dict[bytes, int] = {}

    def value(stones: np.ndarray, turn: int) -> int:
        at = key(stones, turn)
        if at not in known:
            if game.has_line(stones[None], np.array([-turn]))[0]:
                known[at] = -1
            elif game.is_full(stones[None])[0]:
                known[at] = 0
            else:
                legal = np.flatnonzero(game.legal(stones[None])[0])
                turns = np.array([turn])
                known[at] = max(-value(game.place(stones[None], turns, np.array([a]))[0], -turn) for a in legal)
        return known[at]

    value(game.start(1)[0][0], 1)
    return known


def key(stones: np.ndarray, turn: int) -> bytes:
    """A position as a dictionary knows it."""
    return stones.astype(np.int8).tobytes() + bytes([turn + 1])


def test_tictactoe_is_a_draw_and_perfect_play_never_loses() -> None:
    game = GAMES["tictactoe"]
    values = exact_values(game)
    assert len(values) == 5478
    stones, turn = game.start(1)
    assert values[key(stones[0], 1)] == 0

    def perfect(stones: np.ndarray, turn: np.ndarray) -> np.ndarray:
        best = []
        for board, player in zip(stones, turn, strict=True):
            legal = np.flatnonzero(game.legal(board[None])[0])
            after = [game.place(board[None], np.array([player]), np.array([a]))[0] for a in legal]
            best.append(legal[int(np.argmin([values[key(a, -int(player))] for a in after]))])
        return np.array(best)

    for side in (1, -1):
        assert judges.every_line(game, perfect, side).min() == 0
        assert judges.every_line(game, lambda stones, turn: game.legal(stones).argmax(1), side).min() == -1


def test_alpha_beta_makes_the_known_mistakes_on_the_graded_positions() -> None:
    """The shares that an independent minimax of five plies made, in percent, in two of the six classes."""
    game, positions = GAMES["connect4"], load_positions()
    assert len(positions.names) == 1200
    for name, known, by_chance in (("begin-easy", 1.75, 50.3), ("end-easy", 4.6, 59.9)):
        part = positions.of_class(name)
        scores = judges.alpha_beta_scores(game, part.stones, part.turn, 5)
        best = (scores == scores.max(1, keepdims=True)).astype(np.float64)
        assert 100 * mistakes_of_chance(part, best).mean() == pytest.approx(known, abs=0.05)
        legal = game.legal(part.stones).astype(np.float64)
        assert 100 * mistakes_of_chance(part, legal).mean() == pytest.approx(by_chance, abs=0.05)
    best_move = dict(zip(map(bytes, positions.stones), positions.values.argmax(1), strict=True))
    assert not mistakes(positions, lambda stones, turn: np.array([best_move[bytes(s)] for s in stones])).any()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("begin-easy,9,1 1 1 1 1 1 1", "illegal move"),
        ("begin-easy,1,1 1 1", "not 7 of 1, 0, -1, x"),
        ("begin-easy,1a,1 1 1 1 1 1 1", "invalid literal"),
        ("begin-easy,1", "short"),
        ("begin-easy", "short"),
        ("begin-easy,1212121,1 1 1 1 1 1 1", "the game is over"),
    ],
)
def test_a_bad_position_is_named_by_its_line(line: str, complaint: str, tmp_path) -> None:
    path = tmp_path / "positions.csv"
    path.write_text(f"class,moves,values\nbegin-easy,1,1 1 1 1 1 1 1\n{line}\n")
    with pytest.raises(ValueError, match=f"line 3: .*{complaint}"):
        load_positions(path)
    path.write_text("moves\n1\n")
    with pytest.raises(ValueError, match="no column class, values"):
        load_positions(path)


def test_judges_beat_chance() -> None:
    game, rng = GAMES["connect4"], np.random.default_rng(0)
    chance = judges.random_mover(game, rng)
    for mover in (judges.alpha_beta_mover(game, 3, rng), judges.rollout_mover(game, 200, rng)):
        assert judges.match(game, mover, chance, 20, rng, 2).mean() > 0.7


def test_elo_orders_players_by_their_results() -> None:
    points = np.array([[0.0, 5.0, 1.0], [15.0, 0.0, 6.0], [19.0, 14.0, 0.0]])
    ratings = judges.elo(points)
    assert ratings[0] == 0
    assert ratings[0] < ratings[1] < ratings[2]
    even = judges.elo(np.array([[0.0, 10.0], [10.0, 0.0]]))
    assert even == pytest.approx([0.0, 0.0])


def test_the_file_travels_with_the_package() -> None:
    assert FILE.is_file()

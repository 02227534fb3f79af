"""Test an agent: tic-tac-toe against every reply, connect four move by move, other boards against chance, other worlds
by their returns.

    python -m muzero.evaluate --preset cpu --seed 0                     the run of that preset and seed
    python -m muzero.evaluate --run runs/... --positions FILE           its mistakes on positions of your own

Writes record.json, curves.png, tree.png, video.webm and, for connect four, strength.png into the run folder. The agent
moves without noise and takes the action its search prefers. Source: paper, Methods; the judges: `judges.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common import run as runs
from common.config import parse, user_error
from common.curves import draw_curves
from common.program import program
from common.record import close, curve, of_run, sample
from common.seeding import derive_seed
from muzero import judges, pictures, spiel
from muzero.agent import STAGE, load_network, load_snapshot, snapshots
from muzero.boards import GAMES, LineGame
from muzero.config import PRESETS, TASKS, Config
from muzero.env import GYM_IDS, Space, View, WorldError, Worlds, make_worlds, space_of
from muzero.networks import Network
from muzero.positions import Positions, load_positions, mistakes, mistakes_of_chance
from muzero.self_play import LearnedModel, board_mover, run_search, search_settings

Array = NDArray[Any]

TEST_SETTINGS = ("device", "test_episodes", "test_simulations", "use_fast")
GRADED_SIMULATIONS = (1, 10, 50, 200)
OPENING = 2  # random moves in front of a match, so that no two pairs of games are the same
LADDER_GAMES = 40


def greedy(network: Network, space: Space, config: Config, simulations: int) -> Callable[[Array, Array], Array]:
    """The agent without noise and at temperature 0: observations [B, ...] and legal moves [B, A] to actions [B]."""
    settings = search_settings(config, space, simulations)
    model = LearnedModel(network.eval(), settings.discount)
    device = next(network.parameters()).device

    @torch.no_grad()
    def choose(obs: Array, legal: Array) -> Array:
        root = model.root(torch.from_numpy(obs).to(device), torch.from_numpy(legal).to(device))
        return run_search(root, model, settings, None, use_fast=config.use_fast).action.cpu().numpy()

    return choose


def play(network: Network, worlds: Worlds, config: Config, simulations: int) -> list[float]:
    """The return of one greedy episode in each world."""
    view, choose = View(worlds), greedy(network, worlds.space, config, simulations)
    return _returns(worlds, view, lambda: choose(view.observe(), worlds.legal()))


def play_at_random(worlds: Worlds, seed: int) -> list[float]:
    """The return of one episode of uniform actions in each world."""
    rng = np.random.default_rng(derive_seed(seed, "test random"))

    def act() -> Array:
        return judges.uniform_moves(worlds.legal(), rng)

    return _returns(worlds, View(worlds), act)


def _returns(worlds: Worlds, view: View, act: Callable[[], Array]) -> list[float]:
    totals, running = np.zeros(worlds.count), np.ones(worlds.count, np.bool_)
    with runs.progress_bar(worlds.count, "test", unit="episode") as bar:
        while running.any():
            action = act()
            outcome = worlds.step(action)
            view.after(action, outcome)
            totals[running] += outcome.reward[running]
            ended = running & (outcome.terminated | outcome.truncated)
            running &= ~ended
            bar.update(int(ended.sum()))
    return totals.tolist()


def against_chance(worlds: Worlds, mover: Callable[[Array], Array], rng: np.random.Generator) -> Array:
    """Results [W] for the mover, 1, 0 or -1, of the first game in each world against uniform play, as `judges.match`:
    it begins in every other one, and the moves of the opening are random and those of a pair the same.

    worlds: of two players, at the start of a game; the mover is given the numbers of those in which it is to move.
    """
    pairs, begins = np.arange(worlds.count) // 2, np.arange(worlds.count) % 2 == 0
    result, running, number = np.zeros(worlds.count), np.ones(worlds.count, np.bool_), 0
    with runs.progress_bar(worlds.count, "test", unit="game") as bar:
        while running.any():
            drawn = rng.random((worlds.count, worlds.space.actions))
            action = np.where(worlds.legal(), drawn[pairs] if number < OPENING else drawn, -1.0).argmax(1)
            moves = begins == (number % 2 == 0)
            asked = np.flatnonzero(running & moves)
            if number >= OPENING and len(asked):
                action[asked] = mover(asked)
            outcome = worlds.step(action)
            ended = running & (outcome.terminated | outcome.truncated)
            result[ended] = np.where(moves, outcome.reward, -outcome.reward)[ended]
            running, number = running & ~ended, number + 1
            bar.update(int(ended.sum()))
    return result


def not_lost(game: LineGame, mover: judges.Mover) -> list[float]:
    """100 or 0 for every line of play of an opponent against whom the mover begins, then does not."""
    results = [judges.every_line(game, mover, side) for side in (1, -1)]
    return (100.0 * (np.concatenate(results) >= 0)).tolist()


def points(results: Array) -> list[float]:
    """100 for a won game, 50 for a draw, 0 for a lost one."""
    return (50.0 * (1 + results)).tolist()


def every_reply(network: Network, config: Config, simulations: int) -> dict[str, Any]:
    """Every reply of an opponent, from either side; beside it uniform play and the same search with the true rules."""
    game, name = GAMES["tictactoe"], protocol(config)
    rng = np.random.default_rng(derive_seed(config.seed, "test"))
    agent = board_mover(network, game, config, simulations)
    rules = board_mover(network, game, config, simulations, has_rules=True)
    chance = [value for _ in range(20) for value in not_lost(game, judges.random_mover(game, rng))]
    results = judges.match(game, agent, judges.random_mover(game, rng), config.test_episodes, rng, 0)
    lines = not_lost(game, agent)
    return {
        **sample(lines, name),
        "metric": "lines of play not lost",
        "unit": "%",
        "controls": {
            "uniform random": sample([float(np.mean(chance))], name),
            # What perfect play must exceed, as the number of lines depends on the agent's moves.
            "one line lost": sample([100.0 * (1 - 1 / len(lines))], name),
        },
        "measurements": {
            "true rules, the same network": sample(not_lost(game, rules), name),
            "points against random": sample(points(results), "tictactoe-games"),
        },
    }


def grade(positions: Positions, mover: judges.Mover, label: str) -> dict[str, Any]:
    """Share of mistakes in percent in each class."""
    return {
        f"{name}: mistakes, {label}": sample(100 * mistakes(positions.of_class(name), mover), "connect4-positions")
        for name in positions.classes
    }


def games_and_grades(network: Network, config: Config, simulations: int, info: Mapping[str, Any]) -> dict[str, Any]:
    """Games against alpha-beta of five plies, the graded positions, and the ladder of the run's own snapshots."""
    game, name = GAMES["connect4"], protocol(config)
    rng = np.random.default_rng(derive_seed(config.seed, "test"))
    agent = board_mover(network, game, config, simulations)
    deep, chance = judges.alpha_beta_mover(game, 5, rng), judges.random_mover(game, rng)
    rollouts = judges.rollout_mover(game, 1000, rng)
    count = config.test_episodes
    found = {
        "points against random": sample(points(judges.match(game, agent, chance, count, rng, OPENING)), name),
        "points against 1,000 rollouts": sample(points(judges.match(game, agent, rollouts, count, rng, OPENING)), name),
    }
    positions = load_positions()
    for number in GRADED_SIMULATIONS:
        found |= grade(positions, board_mover(network, game, config, number), f"{number} simulations")
        rules = board_mover(network, game, config, number, has_rules=True)
        found |= grade(positions, rules, f"{number} simulations with the true rules")
    found |= _grades_of_floors(positions, game)
    main = points(judges.match(game, agent, deep, count, rng, OPENING))
    control = points(judges.match(game, chance, deep, count, rng, OPENING))
    return {
        **sample(main, name),
        "metric": "points against alpha-beta of 5 plies",
        "unit": "%",
        "controls": {"uniform random": sample(control, name), "even games": sample([50.0], name)},
        "measurements": found,
        "curves": {"Elo of the snapshots": ladder(network, config, simulations, info, rng)},
    }


def _grades_of_floors(positions: Positions, game: LineGame) -> dict[str, Any]:
    """Exact expectations: alpha-beta draws among its best moves, chance among all legal ones."""
    scores = judges.alpha_beta_scores(game, positions.stones, positions.turn, 5)
    movers = {
        "alpha-beta of 5 plies": scores == scores.max(1, keepdims=True),
        "uniform random": game.legal(positions.stones),
    }
    found = {}
    for label, weight in movers.items():
        expected = 100 * mistakes_of_chance(positions, weight.astype(np.float64))
        for name in positions.classes:
            rows = np.array([other == name for other in positions.names])
            found[f"{name}: mistakes, {label}"] = sample(expected[rows], "connect4-positions")
    return found


def ladder(
    network: Network, config: Config, simulations: int, info: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Elo of the run's snapshots by matches of each with the two before it; the first has 0."""
    game, steps = GAMES["connect4"], snapshots(info["folder"])
    movers, device = [], next(network.parameters()).device
    for step in steps:
        earlier = load_snapshot(info, step, config, device)
        movers.append(board_mover(earlier, game, config, simulations))
    results = np.zeros((len(movers), len(movers)))
    for later in range(1, len(movers)):
        for earlier_one in range(max(0, later - 2), later):
            outcome = judges.match(game, movers[later], movers[earlier_one], LADDER_GAMES, rng, OPENING)
            won = float((1 + outcome).sum() / 2)
            results[later, earlier_one], results[earlier_one, later] = won, LADDER_GAMES - won
    ratings = judges.elo(results).tolist() if len(movers) > 1 else []
    return {"x": steps[: len(ratings)], "y": ratings, "x_unit": "update", "y_unit": "Elo above the first snapshot"}


def games(network: Network, config: Config, simulations: int) -> dict[str, Any]:
    """Games of two players against uniform play, beside uniform play in the agent's place."""
    name, rng = protocol(config), np.random.default_rng(derive_seed(config.seed, "test"))

    def played(is_agent: bool) -> list[float]:
        worlds = make_worlds(config, range(config.test_episodes), "test")
        choose = greedy(network, worlds.space, config, simulations)

        def mover(rows: Array) -> Array:
            legal = worlds.legal()[rows]
            return choose(worlds.observe()[rows], legal) if is_agent else judges.uniform_moves(legal, rng)

        results = against_chance(worlds, mover, rng)
        worlds.close()
        return points(results)

    return {
        **sample(played(is_agent=True), name),
        "metric": "points against random",
        "unit": "%",
        "controls": {"uniform random": sample(played(is_agent=False), name)},
        "measurements": {},
    }


def episodes(network: Network, config: Config, simulations: int) -> dict[str, Any]:
    """Returns of fresh greedy episodes, beside uniform random play in the same ones."""
    name, lanes = protocol(config), range(config.test_episodes)
    worlds = make_worlds(config, lanes, "test")
    returns = play(network, worlds, config, simulations)
    worlds.close()
    worlds = make_worlds(config, lanes, "test")
    random = play_at_random(worlds, config.seed)
    worlds.close()
    controls = {"uniform random": sample(random, name)}
    if config.task in GYM_IDS:
        import gymnasium  # here: boards need none

        bar = gymnasium.spec(GYM_IDS[config.task]).reward_threshold
        controls |= {} if bar is None else {"solved, by gymnasium": sample([bar], name)}
    return {
        **sample(returns, name),
        "metric": "return",
        "unit": "return",
        "controls": controls,
        "measurements": {},
    }


def protocol(config: Config) -> str:
    """The name of the test."""
    names = {"tictactoe": "tictactoe-every-reply", "gym": "gym-greedy-episodes"}
    names |= {task: f"{task}-games" for task in ("connect4", "gomoku", *spiel.NAMES)}
    benchmark = config.task.split("_")[0]
    return names.get(config.task, f"{benchmark}-noops" if benchmark.startswith("atari") else f"{benchmark}-episodes")


def claim(config: Config, preset: str) -> str:
    """The word that tells apart the records of one task: what is not the preset's."""
    found = PRESETS[preset]
    usual = {**TASKS[config.task], **found.values, **found.by_task.get(config.task, {})}

    def is_changed(name: str) -> bool:
        return getattr(config, name) != usual.get(name, getattr(Config, name))

    parts = {
        config.policy: is_changed("policy"),
        f"sims{config.simulations}": is_changed("simulations"),
        f"test{config.test_simulations}": is_changed("test_simulations"),
        f"reanalyze{config.reanalyze:g}": is_changed("reanalyze"),
        f"n{config.td_steps}": is_changed("td_steps"),
        f"by-{config.normalisation}": is_changed("normalisation"),
        "penalty": is_changed("weight_decay") and config.weight_decay > 0,
        f"updates{config.updates}": is_changed("updates") and config.updates > 0,
        "untrained": config.updates == 0,
    }
    return "-".join(["plays", *(word for word, is_there in parts.items() if is_there)])


def record_of_run(info: dict[str, Any], network: Network, config: Config, updates: int) -> dict[str, Any]:
    """The test of a finished run, as record.json."""
    start = time.monotonic()
    simulations = config.test_simulations or config.simulations
    if config.task == "tictactoe":
        found = every_reply(network, config, simulations)
    elif config.task == "connect4":
        found = games_and_grades(network, config, simulations, info)
    elif space_of(config).players == 2:
        found = games(network, config, simulations)
    else:
        found = episodes(network, config, simulations)
    info["stage_seconds"]["test"] = time.monotonic() - start
    info["wall_seconds"] += info["stage_seconds"]["test"]
    lines = [line for line in runs.read_metrics(info["folder"]) if line["stage"] == STAGE]
    curves = {
        "training return": curve(lines, "return", "update", "return", x="updates"),
        "episode length": curve(lines, "length", "update", "moves", x="updates"),
        "value loss": curve(lines, "loss_value", "update", "sum over the unrolled steps", x="updates"),
        "policy loss": curve(lines, "loss_policy", "update", "nats, sum over the steps", x="updates"),
        **found.pop("curves", {}),
    }
    steps = int(lines[-1]["env_steps"]) if lines else 0
    return of_run(info) | {
        "claim": claim(config, info["meta"]["preset"]),
        **found,
        "policy": f"greedy, {config.policy} search of {simulations} simulations, after {updates} updates",
        "budget": {"env_steps": steps, "env_frames": steps * frames_per_step(config), "updates": updates},
        "curves": {label: values for label, values in curves.items() if values["x"]},
        "parameters": {"network": sum(p.numel() for p in network.parameters())},
    }


def frames_per_step(config: Config) -> int:
    """Frames of the world for one decision of the agent."""
    return 4 if config.task.startswith("atari") else 1


def _options(parser: argparse.ArgumentParser) -> None:
    text = "grade the run on the positions of this file and print the share of mistakes of each class"
    parser.add_argument("--positions", type=Path, metavar="FILE", help=text)


def print_grades(network: Network, config: Config, path: Path) -> None:
    """The share of mistakes of each class of a file; one line and exit code 2 for what cannot be graded."""
    if config.task != "connect4":
        user_error(f"--positions grades agents of connect4; this run is of {config.task}")
    try:
        positions = load_positions(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        user_error(f"--positions: {error}")
    simulations = config.test_simulations or config.simulations
    mover = board_mover(network, GAMES["connect4"], config, simulations)
    for name in positions.classes:
        found = mistakes(positions.of_class(name), mover)
        print(f"{name}: {100 * found.mean():.1f} % mistakes in {len(found)} positions, {simulations} simulations")


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(
        Config, TASKS, PRESETS, argv, prog="python -m muzero.evaluate", description=__doc__ or "", extra=_options
    )
    info, config = runs.run_under_test("muzero", Config, config, options, TEST_SETTINGS)
    folder = info["folder"]
    device = runs.usable_device(config.device)
    runs.seed_everything(config.seed, config.device)
    try:
        network, updates = load_network(info, config, device)
        if options.positions is not None:
            print_grades(network, config, options.positions)
            return
        record = record_of_run(info, network, config, updates)
        draw_curves(record, folder / "curves.png")
        pictures.show(network, config, record, folder)
    except WorldError as error:
        user_error(str(error))
    close(record, folder)


if __name__ == "__main__":
    program(main)

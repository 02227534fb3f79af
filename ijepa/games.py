"""The 22 games of AtariARI and what the bytes of their memory mean.

Source: Anand et al. 2019, arXiv 1906.08226; reference code: atariari/benchmark/ram_annotations.py, categorization.py.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

# Our name and that of the emulator's game file.
GAMES = {
    "pong": "pong",
    "boxing": "boxing",
    "asteroids": "asteroids",
    "berzerk": "berzerk",
    "bowling": "bowling",
    "breakout": "breakout",
    "demonattack": "demon_attack",
    "freeway": "freeway",
    "frostbite": "frostbite",
    "hero": "hero",
    "montezumarevenge": "montezuma_revenge",
    "mspacman": "ms_pacman",
    "pitfall": "pitfall",
    "privateeye": "private_eye",
    "qbert": "qbert",
    "riverraid": "riverraid",
    "seaquest": "seaquest",
    "spaceinvaders": "space_invaders",
    "tennis": "tennis",
    "venture": "venture",
    "videopinball": "video_pinball",
    "yarsrevenge": "yars_revenge",
}


@dataclass(frozen=True)
class Variable:
    """A byte of a game's memory with a meaning; a variable may be in no category or in two."""

    name: str
    index: int
    categories: tuple[str, ...]


def variables(game: str) -> tuple[Variable, ...]:
    """All annotated bytes of a game, in the order of the annotation."""
    with (Path(__file__).parent / "ram_indices.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["game"] == game]
    return tuple(
        Variable(row["variable"], int(row["ram_index"]), tuple(c for c in row["categories"].split(";") if c))
        for row in rows
    )

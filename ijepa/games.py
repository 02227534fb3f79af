"""The 22 games of AtariARI and what the bytes of their memory mean.

Source: Anand et al. 2019, arXiv 1906.08226; reference code: atariari/benchmark/ram_annotations.py, categorization.py.
The published tables were printed with the annotation of October 2019 (commit 9a31785, 308 bytes); later commits changed
bytes and names of seven games, and with the names their categories.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

# Editions of the annotation: that of the published tables, and the last commit of the released code.
PUBLISHED, TODAY = "2019", "2021"

HEIGHT, WIDTH = 210, 160  # of a frame
REPEAT = 4  # raw frames an action is held

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


def variables(game: str, edition: str = PUBLISHED) -> tuple[Variable, ...]:
    """All annotated bytes of a game, in the order of the annotation of that edition.

    Deviation D10: the edition of the published numbers, not TODAY's. Raises ValueError for any other edition.
    """
    if edition not in (PUBLISHED, TODAY):
        raise ValueError(f"edition {edition!r} of the annotation: expected {PUBLISHED!r} or {TODAY!r}")
    with (Path(__file__).parent / "ram_indices.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["game"] == game and row["edition"] in ("", edition)]
    return tuple(
        Variable(row["variable"], int(row["ram_index"]), tuple(c for c in row["categories"].split(";") if c))
        for row in rows
    )

"""Rows of I-JEPA (Assran et al. 2023, arXiv 2301.08243): AtariARI probes, ablations on drawn shapes, ImageNet."""

from __future__ import annotations

from typing import Any

from benchmarks.rows import Row, Suite

SEEDS = (0, 1, 2)
GAMES = {
    "pong": "Pong", "boxing": "Boxing", "breakout": "Breakout", "seaquest": "Seaquest",
    "spaceinvaders": "Space Invaders", "asteroids": "Asteroids", "berzerk": "Berzerk", "bowling": "Bowling",
    "demonattack": "Demon Attack", "freeway": "Freeway", "frostbite": "Frostbite", "hero": "Hero",
    "montezumarevenge": "Montezuma's Revenge", "mspacman": "Ms Pacman", "pitfall": "Pitfall",
    "privateeye": "Private Eye", "qbert": "Qbert", "riverraid": "River Raid", "tennis": "Tennis",
    "venture": "Venture", "videopinball": "Video Pinball", "yarsrevenge": "Yars' Revenge",
}  # fmt: skip
CONTROLS = tuple(GAMES)[:5]
NIGHT_GAMES = tuple(GAMES)[:3]
FULL_PLAY = ("--controls", "--preset", "paper")
METHODS = (
    ("pixel-pred", "pixel prediction"), ("cpc", "CPC"), ("st-dim", "ST-DIM"), ("supervised", "supervised training"),
)  # fmt: skip
ENCODERS = (
    ("random-cnn", "random-cnn", "a random convolutional network"),
    ("random-cnn-standardised", "random-cnn, standardised", "a random convolutional network, standardised as ours are"),
    ("untrained", "untrained encoder", "the same encoder before its training"),
)  # fmt: skip
SHAPES = "Drawn shapes: linear probes on I-JEPA beat"
# Tables 6 and 7. The published numbers are those of ImageNet: other images and another protocol.
ABLATIONS = (
    ("masking", "block", "those after training with one block as target (direction of table 6)"),
    ("masking", "random", "those after training with random patches as target (direction of table 6)"),
    ("masking", "rasterized", "those after training with quadrants as targets (direction of table 6)"),
    ("target", "pixels", "those after training to predict pixels (direction of table 7)"),
    ("target", "online", "those after training on targets of the encoder itself, without a moving average"),
    ("target", "attached", "those after training on targets of the encoder itself, with gradient"),
)


def _control_rows(game: str) -> tuple[Row, Row]:
    """AtariARI's two controls on a game: the calibration of its labels, splits and probes, minutes each.

    A seed draws the play and the random network anew.
    """
    random_cnn = Row(
        id=f"{game}-random-cnn",
        title=f"{GAMES[game]}: AtariARI's control, F1 of linear probes on a random convolutional network",
        kind="calibration",
        suite="calibration",
        task=game,
        seeds=SEEDS,
        claim="control-random-cnn",
        published=f"{game}-random-cnn",
        minutes=6,
        evaluate=FULL_PLAY,
        is_trained=False,
        only_bench=True,
    )
    majority = Row(
        id=f"{game}-majority",
        title=f"{GAMES[game]}: AtariARI's control, F1 of the majority classifier",
        kind="calibration",
        suite="calibration",
        task=game,
        seeds=SEEDS,
        claim="control-random-cnn",
        published=f"{game}-maj-clf",
        quantity="controls/majority",
        minutes=6,
        evaluate=FULL_PLAY,
        is_trained=False,
        only_bench=True,
    )
    return random_cnn, majority


def _claims(suite: str, game: str, seeds: tuple[int, ...], minutes: float) -> tuple[Row, ...]:
    """What a preset is to show on a game: our probes against AtariARI's control of the same run, and harder ones."""
    where = suite, game, seeds, minutes
    return tuple(
        _f1(*where, id, f" beat those on {words}", kind="claim", published=f"{game}-random-cnn", control=control)
        for id, control, words in ENCODERS
    )


def _full_play(suite: str, game: str, minutes: float) -> tuple[Row, ...]:
    """The claims at a preset with the full play, and the numbers that AtariARI has of other methods on such play."""
    where = suite, game, (0,), minutes
    beside = (
        _f1(*where, method, f", beside those on {words}", kind="beside", published=f"{game}-{method}")
        for method, words in METHODS
    )
    return *_claims(*where), *beside


def _f1(suite: str, game: str, seeds: tuple[int, ...], minutes: float, id: str, words: str, **comparison: Any) -> Row:
    """A comparison of the probes on a game."""
    return Row(
        id=f"{suite}-{game}-{id}",
        title=f"{GAMES[game]}: linear probes on I-JEPA{words} (AtariARI F1)",
        suite=suite,
        task=game,
        seeds=seeds,
        claim="probe-f1",
        minutes=minutes,
        **comparison,
    )


def _shapes(id: str, title: str, control: str = "", rival: str = "", rival_settings: tuple[str, ...] = ()) -> Row:
    """A comparison on drawn shapes at the night preset, one seed."""
    return Row(
        id=f"night-shapes-{id}",
        title=f"{SHAPES} {title}",
        kind="claim",
        suite="night",
        task="shapes",
        seeds=(0,),
        claim="probe-accuracy",
        published="",
        control=control,
        rival=rival,
        rival_settings=rival_settings,
        fraction_of="updates",
        minutes=18,
    )


SUITE = Suite(
    paper="ijepa",
    title="I-JEPA",
    tasks=("shapes", "pong"),
    rows=(
        *_claims("cpu", "pong", SEEDS, 8),
        *(row for game in CONTROLS for row in _control_rows(game)),
        _shapes("untrained", "those on the same encoder before its training", "untrained encoder"),
        _shapes("thumbnails", "those on pixels", "pixels"),
        *(
            _shapes(value, words, rival=f"probe-accuracy-{value}", rival_settings=(f"{field}={value}",))
            for field, value, words in ABLATIONS
        ),
        *(row for game in NIGHT_GAMES for row in _full_play("night", game, 80)),
        *(row for game in GAMES for row in _full_play("gpu", game, 25)),
        Row(
            id="imagenet-h14",
            title="ImageNet-1K: top-1 of a linear probe on ViT-H/14, 300 epochs",
            kind="number",
            suite="paper",
            task="imagenet",
            seeds=(0,),
            claim="probe-accuracy",
            published="imagenet-1k-linear-i-jepa-vit-h-14-300ep",
            fraction_of="updates",
            minutes=72 * 60,
        ),
    ),
)

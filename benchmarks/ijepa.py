"""Rows of I-JEPA (Assran et al. 2023, arXiv 2301.08243): drawn shapes, AtariARI probes, ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.compare import Result
from benchmarks.content import Cell, Table, games_by_method
from benchmarks.plots import Plot, dots
from benchmarks.published import Published
from benchmarks.rows import CALIBRATION, Beside, Calibration, Claim, Experiment, Number, Quantity, Suite
from benchmarks.steps import speed

SEEDS = (0, 1, 2)
GAMES = {
    "pong": "Pong", "boxing": "Boxing", "breakout": "Breakout", "seaquest": "Seaquest",
    "spaceinvaders": "Space Invaders", "asteroids": "Asteroids", "berzerk": "Berzerk", "bowling": "Bowling",
    "demonattack": "Demon Attack", "freeway": "Freeway", "frostbite": "Frostbite", "hero": "Hero",
    "montezumarevenge": "Montezuma's Revenge", "mspacman": "Ms Pacman", "pitfall": "Pitfall",
    "privateeye": "Private Eye", "qbert": "Qbert", "riverraid": "River Raid", "tennis": "Tennis",
    "venture": "Venture", "videopinball": "Video Pinball", "yarsrevenge": "Yars' Revenge",
}  # fmt: skip
CALIBRATED = tuple(GAMES)[:5]
NIGHT_GAMES = tuple(GAMES)[:3]
# Probes on raw features, as published, beside ours, which are standardised: other protocols, hence no verdict.
METHODS = (
    ("pixel-pred", "pixel prediction"), ("cpc", "CPC"), ("st-dim", "ST-DIM"), ("supervised", "supervised training"),
)  # fmt: skip
UNTRAINED, STANDARDISED = "untrained encoder", "random-cnn, standardised"
# Tables 6 and 7. The published numbers are those of ImageNet: other images and another protocol.
ABLATIONS = (
    ("masking", "block", "training with one block as target (direction of table 6)", "paper"),
    ("masking", "random", "training with random patches as target (direction of table 6)", "paper"),
    ("masking", "rasterized", "training with quadrants as targets (direction of table 6)", "paper"),
    ("target", "pixels", "training to predict pixels (direction of table 7)", "paper"),
    ("target", "online", "training on targets of the encoder itself, without a moving average", "us"),
    ("target", "attached", "training on targets of the encoder itself, with gradient", "us"),
)  # fmt: skip


def calibrations(game: str) -> tuple[Calibration, Calibration]:
    """AtariARI's two controls on a game: the calibration of its labels, splits and probes, minutes each.

    A seed draws the play and the random network anew.
    """
    run = Experiment(
        CALIBRATION, game, "control-random-cnn", SEEDS, 6, evaluate=("--controls", "--preset", "paper"),
        is_trained=False, only_bench=True,
    )  # fmt: skip
    return (
        Calibration(
            id=f"{game}-random-cnn",
            title=f"{GAMES[game]}: F1 of linear probes on a random convolutional network",
            ours=Quantity(run),
            published=f"{game}-random-cnn",
        ),
        Calibration(
            id=f"{game}-majority",
            title=f"{GAMES[game]}: F1 of the majority classifier",
            ours=Quantity(run, "controls/majority"),
            published=f"{game}-maj-clf",
        ),
    )


def game_run(suite: str, game: str, seeds: tuple[int, ...], minutes: float) -> Experiment:
    """I-JEPA on the frames of a game, probed for its memory."""
    return Experiment(suite, game, "probe-f1", seeds, minutes, needs_gpu=suite == "gpu")


def game_checks(*runs: Experiment, name: str) -> tuple[Claim, Claim]:
    """Whether training helps: against the same encoder untrained, and against a random network standardised alike."""
    suite = runs[0].suite
    id = f"{suite}-{runs[0].task}" if len(runs) == 1 else f"{suite}-games"
    untrained, random = (
        Claim(
            id=f"{id}-{word}",
            title=f"{name}: linear probes on I-JEPA beat those on {words} (AtariARI F1)",
            ours=tuple(Quantity(run) for run in runs),
            control=tuple(Quantity(run, f"controls/{control}") for run in runs),
            against=words,
            asserted_by="us",
            is_paired=True,
        )
        for word, control, words in (
            ("untrained", UNTRAINED, "the same encoder before its training"),
            ("standardised", STANDARDISED, "a random convolutional network, standardised as ours are"),
        )
    )
    return untrained, random


SHAPES = Experiment("night", "shapes", "probe-accuracy", (0,), minutes=18)


def shapes_rows() -> tuple[Claim, ...]:
    """Drawn shapes at the night preset: the controls of the same record, and masks and targets of other runs."""
    title = "Drawn shapes: linear probes on I-JEPA beat those"
    controls = (
        ("untrained", "on the same encoder before its training", "untrained encoder"),
        ("thumbnails", "on pixels", "pixels"),
    )
    inside = [
        Claim(
            id=f"night-shapes-{word}",
            title=f"{title} {words}",
            ours=(Quantity(SHAPES),),
            control=(Quantity(SHAPES, f"controls/{name}"),),
            against=words.removeprefix("on "),
            asserted_by="us",
            is_paired=True,
        )
        for word, words, name in controls
    ]
    others = [
        Claim(
            id=f"night-shapes-{value}",
            title=f"{title} after {words}",
            ours=(Quantity(SHAPES),),
            control=(Quantity(replace(SHAPES, claim=f"probe-accuracy-{value}", settings=(f"{field}={value}",))),),
            against=words.split(" (")[0],
            asserted_by="paper" if source == "paper" else "us",
            equal="updates",
        )
        for field, value, words, source in ABLATIONS
    ]
    return (*inside, *others)


NIGHT = {game: game_run("night", game, (0,), 80) for game in NIGHT_GAMES}
GPU_RUNS = tuple(game_run("gpu", game, (0,), 25) for game in GAMES)
IMAGENET = Experiment("paper", "imagenet", "probe-accuracy", (0,), minutes=72 * 60, needs_gpu=True)
OFFICIAL = Experiment(
    "paper", "imagenet", "probe-accuracy-official", (0,), minutes=600, settings=("updates=0",), needs_gpu=True
)


def imagenet_row(run: Experiment, id: str, words: str, is_official: bool) -> Number:
    """Linear probing of ViT-H/14."""
    return Number(
        id=id,
        title=f"ImageNet-1K: top-1 of a linear probe on ViT-H/14, {words}",
        ours=Quantity(run),
        floor=Quantity(run, "controls/untrained encoder"),
        published="imagenet-1k-linear-i-jepa-vit-h-14-300ep",
        is_official=is_official,
    )


def tables(results: Mapping[str, Result], published: Published) -> Sequence[Table]:
    """AtariARI's F1 by game and method, and single variables of its controls."""
    return (games_by_method(GAMES, results, published, METHODS), variables(results, published))


def variables(results: Mapping[str, Result], published: Published) -> Table:
    """Single variables of the random network that are published too: where a difference comes from."""
    rows = []
    for game in CALIBRATED:
        result = results[f"{game}-random-cnn"]
        parts: dict[str, list[float]] = {}
        for record in () if result.ours is None else result.ours.records:
            for name, part in record.data["measurements"].items():
                parts.setdefault(name, []).append(part["value"])
        for name, values in parts.items():
            known = published.numbers.get(("ijepa", f"{game}-{name.replace('_', '-')}-random-cnn"))
            if known is not None:
                mean = sum(values) / len(values)
                seeds = ", ".join(f"{value:.1f}" for value in values) if len(values) > 1 else ""
                rows.append((
                    Cell(f"{GAMES[game]}: {name}"), Cell(f"{known.value:g}"), Cell(f"{mean:.1f}", seeds),
                    Cell(f"{mean - known.value:+.1f}"),
                ))  # fmt: skip
    columns = ("variable", "published F1, %", "measured", "difference")
    title = "Calibration of AtariARI, variable by variable: a random convolutional network"
    return Table(title, columns, tuple(rows), "No calibration is recorded yet.", is_folded=True)


def plots(results: Mapping[str, Result], published: Published) -> Sequence[Plot]:
    """A dot a method and game."""
    lines = []
    for game in NIGHT_GAMES:
        result = results[f"night-{game}-untrained"]
        if result.ours is None:
            continue
        controls = result.ours.records[0].data["controls"]
        dot = {
            "I-JEPA": (result.ours.mean, "ours"),
            "the same encoder, untrained": (controls[UNTRAINED]["value"], "control"),
        }
        dot["random network, standardised"] = (controls[STANDARDISED]["value"], "control")
        for method, words in METHODS:
            dot[f"{words} (published)"] = (published.numbers[("ijepa", f"{game}-{method}")].value, "published")
        lines.append((GAMES[game], dot))
    caption = (
        "AtariARI: how well the memory of a game can be read from the features of one frame, by method (preset night, "
        "one seed; published methods probe raw features)"
    )
    return (dots("ijepa-atariari", caption, "F1 of linear probes, %", lines),) if lines else ()


SPEED = ("measure", "measure_base", "measure_huge")

SUITE = Suite(
    paper="ijepa",
    title="I-JEPA",
    citation="Assran et al. 2023, arXiv 2301.08243",
    tasks=("shapes", "pong"),
    headline="night-shapes-untrained",
    scale="drawn shapes, linear probes on frozen features",
    budget={"env_frames": "environment frames", "updates": "updates", "parameters": "parameters"},
    rows=(
        *shapes_rows(),
        *game_checks(game_run("cpu", "pong", SEEDS, 8), name="Pong"),
        *(row for game, run in NIGHT.items() for row in game_checks(run, name=GAMES[game])),
        *(
            Beside(
                id=f"night-{game}-{method}",
                title=f"{GAMES[game]}: linear probes on I-JEPA, standardised, beside those on {words} (AtariARI F1)",
                ours=Quantity(run),
                published=f"{game}-{method}",
            )
            for game, run in NIGHT.items()
            for method, words in METHODS
        ),
        *(row for game in CALIBRATED for row in calibrations(game)),
        *game_checks(*GPU_RUNS, name="Mean over 22 games"),
        imagenet_row(IMAGENET, "imagenet-h14", "300 epochs", is_official=False),
        imagenet_row(OFFICIAL, "imagenet-h14-official", "the authors' own weights", is_official=True),
    ),
    tables=tables,
    plots=plots,
    speed=SPEED,
    steps=speed("ijepa", *SPEED),
    film=("night", "shapes", "probe-accuracy"),
)

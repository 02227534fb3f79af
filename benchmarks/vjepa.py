"""Rows of V-JEPA (Bardes et al. 2024) and V-JEPA 2 (Assran et al. 2025): shapes, digits, Pong, physics, videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from benchmarks import vjepa_ac
from benchmarks.compare import Result
from benchmarks.content import Cell, Table
from benchmarks.plots import Plot, dots
from benchmarks.published import Published
from benchmarks.rows import Beside, Claim, Experiment, Number, Quantity, Row, Suite
from benchmarks.steps import COMPILES, Step, device_tests, speed

SEEDS = (0, 1, 2)
UNTRAINED, PIXELS, STILL = "untrained encoder", "pixels", "last frame alone"
COPY = "copy of the last frame"
ATTENTIVE, COMPONENTS, MEAN = "attentive probe", "256 components of all tokens", "mean of tokens"
READINGS = (
    (MEAN, "from the mean of the tokens"),
    (COMPONENTS, "from 256 components of all tokens"),
    (ATTENTIVE, "by an attentive probe"),
)
BLOCKS = ("permanence", "continuity", "constancy", "solidity", "gravity")
BEST = "best context of each block"
ROLLED = {steps: f"states rolled out, learnt with {steps} step{'s' if steps > 1 else ''}" for steps in (1, 4)}
AHEAD = (2, 4, 6, 8)  # frames

CPU = Experiment("cpu", "shapes", "velocity-r2", SEEDS, minutes=8)
NIGHT_SHAPES = Experiment("night", "shapes", "velocity-r2", SEEDS, minutes=45)
NIGHT_DIGITS = Experiment("night", "digits", "velocity-r2", SEEDS, minutes=45)
NIGHT_PONG = Experiment("night", "atari-pong", "velocity-r2", SEEDS, minutes=30)
PHYSICS = Experiment("night", "physics", "physics-accuracy", (0,), minutes=150)
GPU_PHYSICS = Experiment("gpu", "physics", "physics-accuracy", (0,), minutes=60, needs_gpu=True)


def states(run: Experiment, name: str) -> tuple[Claim, ...]:
    """Velocities and positions of what moves, each way to read them, beside the encoder before its training.

    Of velocities also beside pixels, and of the score beside single frames, which show none.
    """
    id = f"{run.suite}-{run.task}"
    rows = []
    for what in ("velocity", "position"):
        for reading, words in READINGS:
            parts = _reading(what, reading)
            rows.append(
                Claim(
                    id=f"{id}-{what}-{reading.split()[0]}",
                    title=f"{name}: {what} read {words} on V-JEPA, beside the same encoder before its training (R²)",
                    ours=(Quantity(run, parts[0]),),
                    control=(Quantity(run, f"{parts[1]}{UNTRAINED}"),),
                    against="the same encoder before its training",
                    asserted_by="us",
                    is_paired=True,
                )
            )
    others = [(STILL, "on the last frame alone", MEAN), *((PIXELS, "on pixels", reading) for reading, _ in READINGS)]
    for control, words, reading in others:
        parts = _reading("velocity", reading)
        rows.append(
            Claim(
                id=f"{id}-velocity-{reading.split()[0]}-{control.split()[0]}",
                title=f"{name}: velocity read {dict(READINGS)[reading]} on V-JEPA, beside the same {words} (R²)",
                ours=(Quantity(run, parts[0]),),
                control=(Quantity(run, f"{parts[1]}{control}"),),
                against=f"the same {words}",
                asserted_by="us",
                is_paired=True,
            )
        )
    return tuple(rows)


def _reading(what: str, reading: str) -> tuple[str, str]:
    """Where a record has a reading of ours, and how the places of its controls begin."""
    if (what, reading) == ("velocity", MEAN):
        return "value", "controls/"
    return f"measurements/{what}, {reading}", f"measurements/{what}, {reading}, "


def to_come(run: Experiment) -> tuple[Row, ...]:
    """Where digits will be, in the manner of EB-JEPA's video example: after two frames, mean over all later ones."""
    title = "Moving digits: their places after two frames, from predicted tokens (mean average precision)"
    place = "measurements/digits expected"
    controls = (
        ("untrained", f"{place}, {UNTRAINED}", "the same networks before their training"),
        ("copied", "measurements/digits copied", "the tokens of these frames themselves"),
    )
    claims = [
        Claim(
            id=f"{run.suite}-digits-to-come-{word}",
            title=f"{title}, beside {words}",
            ours=(Quantity(run, place),),
            control=(Quantity(run, control),),
            against=words,
            asserted_by="us",
            is_paired=True,
        )
        for word, control, words in controls
    ]
    published = Beside(
        id=f"{run.suite}-digits-to-come-published",
        title=f"{title}, beside EB-JEPA's video example",
        ours=Quantity(run, place),
        published="moving-mnist-eb-jepa",
        why="another method's, on other digits",
    )
    return (*claims, published)


def rolled_out(run: Experiment) -> tuple[Row, ...]:
    """The claim of EB-JEPA's video example: several steps learnt at once keep more of the way than single ones."""
    title = "Moving digits: their places in states rolled out by a step learnt four at a time"
    four, one = (f"measurements/{words}" for words in (ROLLED[4], ROLLED[1]))
    parts: tuple[tuple[str, str, str, str, str, Literal["paper", "us"]], ...] = (
        ("steps", "mean average precision", four, one, "a step learnt one at a time", "paper"),
        (
            "decay", "average precision lost from 2 to 8 frames ahead",
            f"{four}, lost on the way", f"{one}, lost on the way", "a step learnt one at a time", "paper",
        ),
        (
            "untrained", "mean average precision", four, f"{four}, {UNTRAINED}",
            "the same in states of the encoder before its training", "us",
        ),
        ("copied", "mean average precision", four, "measurements/states copied", "states copied", "us"),
    )  # fmt: skip
    claims = [
        Claim(
            id=f"{run.suite}-digits-rollout-{word}",
            title=f"{title} ({what}), beside {against}",
            ours=(Quantity(run, ours),),
            control=(Quantity(run, control),),
            against=against,
            asserted_by=source,
            is_paired=True,
            is_less=word == "decay",
        )
        for word, what, ours, control, against, source in parts
    ]
    published = Beside(
        id=f"{run.suite}-digits-rollout-published",
        title=f"{title} (mean average precision), beside EB-JEPA's video example",
        ours=Quantity(run, four),
        published="moving-mnist-eb-jepa",
        why="another encoder's, on other digits",
    )
    return (*claims, published)


def physics(run: Experiment) -> tuple[Row, ...]:
    """The published ordering: trained above untrained and above a predictor of pixels, at one context and at the best.

    The published numbers take the best context of each property on the pairs they are measured on; so do the rows named
    so, with the same choice for the controls.
    """
    id = f"{run.suite}-physics"
    title = "Possible and impossible videos told apart by surprise"
    pixels = replace(run, claim="physics-accuracy-pixels", settings=("target=pixels",))
    controls = (
        ("untrained", UNTRAINED, "the same networks before their training", run),
        ("copy", COPY, "a copy of the last frame", run),
        ("pixels", "", "a predictor of pixels of equal size", pixels),
    )
    rows: list[Row] = []
    for word, control, words, other in controls:
        for place, start in (("value", "controls/"), (f"measurements/{BEST}", f"measurements/{BEST}, ")):
            is_best = place != "value"
            rows.append(
                Claim(
                    id=f"{id}-{word}{'-best' if is_best else ''}",
                    title=f"{title}, {'best context of each block' if is_best else 'half a window seen'}: V-JEPA "
                    f"beside {words}",
                    ours=(Quantity(run, place),),
                    control=(Quantity(other, start + control if control else place),),
                    against=words,
                    asserted_by="us" if word == "copy" else "paper",
                    is_paired=True,
                    equal="" if control else "updates",
                )
            )
    rows.append(
        Beside(
            id=f"{id}-published",
            title=f"{title}, best context of each block, beside IntPhys",
            ours=Quantity(run, f"measurements/{BEST}"),
            published="intphys-v-jepa-vit-h-rope",
            why="another world's",
        )
    )
    return tuple(rows)


def masks(run: Experiment) -> tuple[Claim, ...]:
    """Table 4 on bouncing shapes: multi-block masks against random tubes, each way to read."""
    other = replace(run, claim="velocity-r2-random-tube", settings=("masking=random-tube",))
    return tuple(
        Claim(
            id=f"{run.suite}-{run.task}-tubes-{reading.split()[0]}",
            title=f"Bouncing shapes: velocity read {words} after training with multi-block masks, beside random tubes "
            "(direction of table 4)",
            ours=(Quantity(run, _reading("velocity", reading)[0]),),
            control=(Quantity(other, _reading("velocity", reading)[0]),),
            against="training with random tubes",
            asserted_by="paper",
            is_paired=True,
            equal="updates",
        )
        for reading, words in READINGS
    )


def videos(id: str, words: str, clips: int, published: str, needs: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """Top-1 of an attentive probe on so many clips a video, which are named by data and test_data.

    On a training of ours, which the published number stands beside, since its own saw two million videos; and with
    init_from on the authors' weights. `needs` says which data set the videos are of.
    """
    run = Experiment("paper", "videos", f"probe-accuracy-{clips}x3", (0,), minutes=20_000, needs_gpu=True, needs=needs)
    official = replace(
        run, claim=f"{run.claim}-official", minutes=2000, settings=("updates=0",), needs=("init_from", *needs)
    )
    title = f"{words}: top-1 of an attentive probe on"
    return (
        Beside(
            id=f"{id}-trained",
            title=f"{title} ViT-L/16, trained on the same videos",
            ours=Quantity(run),
            published=published,
            why="after training on VideoMix2M",
        ),
        Number(
            id=f"{id}-official",
            title=f"{title} the authors' ViT-L/16",
            ours=Quantity(official),
            floor=Quantity(official, f"controls/{UNTRAINED}"),
            published=published,
            is_official=True,
        ),
    )


def tables(results: Mapping[str, Result], published: Published) -> Sequence[Table]:
    """Physics block by block, the three ways to read side by side, and digits by how far ahead they are."""
    return (_blocks(results), _readings(results), _ahead(results))


def _ahead(results: Mapping[str, Result]) -> Table:
    found = results["night-digits-rollout-steps"].ours
    records = () if found is None else found.records
    lines = {
        "a step learnt four at a time": (ROLLED[4], ""),
        "a step learnt one at a time": (ROLLED[1], ""),
        "four at a time, encoder before its training": (ROLLED[4], f", {UNTRAINED}"),
        "states copied": ("states copied", ""),
    }
    rows = []
    for name, (words, end) in lines.items() if records else ():
        cells = []
        for frames in AHEAD:
            measured = f"{words}, {frames} frames ahead{end}"
            values = [one.data["measurements"][measured]["value"] for one in records]
            cells.append(Cell(f"{sum(values) / len(values):.1f}"))
        rows.append((Cell(name), *cells))
    columns = ("average precision in %, mean over seeds", *(f"{frames} frames ahead" for frames in AHEAD))
    return Table("Moving digits: how far ahead their places are told", columns, tuple(rows), "No run is recorded yet.")


def _blocks(results: Mapping[str, Result]) -> Table:
    found = results["night-physics-untrained"].ours
    rows = []
    parts = {} if found is None else found.records[0].data["measurements"]
    for name in (*BLOCKS, BEST, "largest surprise"):
        if name in parts:
            cells = [Cell(f"{parts[name + end]['value']:.1f}") for end in ("", f", {UNTRAINED}", f", {COPY}")]
            rows.append((Cell(name), *cells))
    columns = ("pairs told apart, %", "V-JEPA", "before its training", "copy of the last frame")
    return Table("Intuitive physics, block by block", columns, tuple(rows), "No run is recorded yet.")


def _readings(results: Mapping[str, Result]) -> Table:
    rows = []
    runs = {CPU: "shapes, cpu", NIGHT_SHAPES: "shapes, night", NIGHT_DIGITS: "digits, night", NIGHT_PONG: "Pong, night"}
    for run, words in runs.items():
        for what in ("velocity", "position"):
            for reading, _ in READINGS:
                result = results[f"{run.suite}-{run.task}-{what}-{reading.split()[0]}"]
                if result.ours is not None and result.other is not None:
                    cells = (Cell(f"{result.ours.mean:.1f}"), Cell(f"{result.other.mean:.1f}"))
                    rows.append((Cell(f"{words}: {what}, {reading}"), *cells))
    columns = ("R² in %, mean over seeds", "V-JEPA", "before its training")
    return Table(
        "Where things are and how they move, by the way to read", columns, tuple(rows), "No run is recorded yet."
    )


def plots(results: Mapping[str, Result], published: Published) -> Sequence[Plot]:
    """A dot a block of physics."""
    found = results["night-physics-untrained"].ours
    if found is None:
        return ()
    parts = found.records[0].data["measurements"]
    lines = [
        (
            block,
            {
                "V-JEPA": (parts[block]["value"], "ours"),
                "before its training": (parts[f"{block}, {UNTRAINED}"]["value"], "control"),
                "copy of the last frame": (parts[f"{block}, {COPY}"]["value"], "control"),
            },
        )
        for block in BLOCKS
    ]
    caption = "How often an impossible video surprises more than the possible one of its pair (preset night, one seed)"
    return (dots("vjepa-physics", caption, "pairs told apart, %", lines),)


SPEED = ("measure_large", "measure_giant", "measure_planning")

SUITE = Suite(
    paper="vjepa",
    title="V-JEPA and V-JEPA 2",
    citation="Bardes et al. 2024, arXiv 2404.08471; Assran et al. 2025, arXiv 2506.09985",
    tasks=("shapes", "digits", "physics", "two-rooms"),
    headline="night-shapes-velocity-mean",
    scale="bouncing shapes, 5,000 updates, velocities from the mean of frozen tokens",
    budget={"updates": "updates", "parameters": "parameters"},
    rows=(
        *states(CPU, "Bouncing shapes"),
        *states(NIGHT_SHAPES, "Bouncing shapes"),
        *masks(NIGHT_SHAPES),
        *states(NIGHT_DIGITS, "Moving digits"),
        *states(NIGHT_PONG, "Pong"),
        *to_come(NIGHT_DIGITS),
        *rolled_out(NIGHT_DIGITS),
        *physics(PHYSICS),
        *physics(GPU_PHYSICS),
        *videos("k400", "Kinetics-400", 8, "kinetics-400-frozen-attentive-probe-16x8x3-v-jepa-vit-l-16"),
        *videos(
            "ssv2", "Something-Something v2", 2, "ssv2-frozen-attentive-probe-16x2x3-v-jepa-vit-l-16",
            ("probe_segments=2",),
        ),
        *vjepa_ac.ROWS,
    ),
    tables=tables,
    plots=plots,
    speed=("measure", *SPEED),
    film=("night", "physics", "physics-accuracy"),
    steps=(
        device_tests("vjepa", "tests/test_gpu.py"),
        *speed("vjepa", *SPEED, seconds=COMPILES),
        Step("vjepa", "two-rooms", "training", ("updates=3",), 300, 8, vjepa_ac.FULL),
        Step("vjepa", "two-rooms-random", "training", ("updates=3",), 300, 4, vjepa_ac.FULL_RANDOM),
    ),
)  # fmt: skip

"""Rows of World Models (Ha & Schmidhuber 2018, arXiv 1803.10122): Doom Take Cover and CarRacing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.compare import Result
from benchmarks.content import Table, beside_published
from benchmarks.plots import Plot, over_settings
from benchmarks.published import Published
from benchmarks.rows import CALIBRATION, Beside, Calibration, Claim, Curve, Experiment, Number, Quantity, Row, Suite
from benchmarks.steps import Step, device_tests, speed

if TYPE_CHECKING:
    from benchmarks.runner import Job

TRANSFER = "dream-transfer"
SEEDS = (0, 1, 2)
TEMPERATURES = ("0.10", "0.50", "1.00", "1.15", "1.30")
AT_THE_FLOOR = ("0.10", "0.50")  # what is learnt in these dreams serves for nothing in the game: the paper's finding
PUBLISHED_TAU = "1.15"  # the temperature of the paper's best controller, whose run the others take V and M from
GPU = 25  # minutes
# What C sees: the claim word, words, the published score, and settings.
CONTROLLERS = (
    ("real-zh", "C on z and h", "carracing-vm", ()),
    ("real-z", "C on z alone", "carracing-v", ("controller_inputs=z",)),
    (
        "real-z-hidden40",
        "C on z, 40 hidden units",
        "carracing-v-hidden",
        ("controller_inputs=z", "controller_hidden=40"),
    ),
)
UNTRAINED = "real-zh-untrained"
MODEL_FROM = "--model-from"

CPU = Experiment("cpu", "doom", TRANSFER, SEEDS, minutes=8)
UNIFORM = Experiment(CALIBRATION, "doom", "random-uniform", (0,), 1, evaluate=("--random", "uniform"), is_trained=False)
HELD = Experiment(
    CALIBRATION, "doom", "random-held", (0,), 2, evaluate=("--random", "held", "--test-episodes", "400"),
    is_trained=False,
)  # fmt: skip


def dreams(base: Experiment) -> dict[str, Experiment]:
    """The controllers of the paper's table 2 by temperature, all on the V and M of `base`."""
    found = {PUBLISHED_TAU: base}
    for tau in TEMPERATURES:
        if tau != PUBLISHED_TAU:
            settings = (*base.settings, f"temperature={float(tau)}")
            found[tau] = replace(base, claim=f"{TRANSFER}-tau{tau}", settings=settings, takes=(MODEL_FROM, base))
    return {tau: found[tau] for tau in TEMPERATURES}


def temperature_rows(base: Experiment) -> tuple[Row, ...]:
    """Both columns of table 2 and what they claim."""
    rows: list[Row] = []
    by_tau, suite = dreams(base), base.suite
    for tau, run in by_tau.items():
        where = f"at temperature {tau}"
        rows += [
            Number(
                id=f"{suite}-dream-tau{tau}",
                title=f"Take Cover inside the dream {where}",
                ours=Quantity(run, "measurements/dream return"),
                floor=Quantity(run, "measurements/dream uniform random"),
                published=f"doom-dream-tau{tau}",
            ),
            real_row(run, suite, tau),
        ]
    best = by_tau[PUBLISHED_TAU]
    rows += [
        Claim(
            id=f"{suite}-beats-tau{tau}",
            title=f"Take Cover: temperature {PUBLISHED_TAU} transfers better to the real game than {tau} (table 2)",
            ours=(Quantity(best),),
            control=(Quantity(by_tau[tau]),),
            against=f"temperature {tau}",
            equal="rollouts",
        )
        for tau in AT_THE_FLOOR
    ]
    return (*rows, held_check(base, f"{suite}-beats-held"))


def real_row(run: Experiment, suite: str, tau: str) -> Row:
    """The score in the real game. At the two low temperatures the published number is that of random play."""
    id, published = f"{suite}-real-tau{tau}", f"doom-real-tau{tau}"
    title = f"Take Cover in the real game, trained in the dream at {tau}"
    if tau in AT_THE_FLOOR:
        return Beside(id, title, Quantity(run), published, why="the same score, which is that of random play")
    return Number(id, title, Quantity(run), Quantity(run, "controls/uniform random"), published)


def held_check(run: Experiment, id: str) -> Claim:
    """Against the stronger of the random policies."""
    return Claim(
        id=id,
        title=f"Take Cover: training in the dream at temperature {PUBLISHED_TAU} beats held random play in the game",
        ours=(Quantity(run),),
        control=(Quantity(run, "controls/held random"),),
        against="held random play",
        asserted_by="us",
    )  # fmt: skip


def car_rows(base: Experiment) -> tuple[Row, ...]:
    """Table 1 with the learning curves of its first and last line, and what they claim; all share one V."""
    suite, rows = base.suite, list[Row]()
    reduced = "32 members of 1 rollout in place of 64 of 16" if suite == "night" else ""
    runs = {
        claim: base if claim == base.claim else replace(base, claim=claim, settings=settings, takes=(MODEL_FROM, base))
        for claim, _, _, settings in CONTROLLERS
    }
    for claim, words, published, _ in CONTROLLERS:
        rows.append(
            Number(
                id=f"{suite}-{claim}",
                title=f"CarRacing: return over 100 random tracks, {words}",
                ours=Quantity(runs[claim]),
                floor=Quantity(runs[claim], "controls/collection random"),
                published=published,
            )
        )
    rows.append(
        Curve(
            id=f"{suite}-{base.claim}-curve",
            title="CarRacing: mean return of the CMA-ES population at equal environment steps, C on z and h",
            ours=Quantity(base, "population mean at equal steps"),
            published="carracing-population",
            floor=Quantity(base, "controls/collection random"),
            reduced=reduced,
        )
    )
    untrained = replace(base, claim=UNTRAINED, settings=("memory_updates=0",), takes=(MODEL_FROM, base))
    rows += [
        Claim(
            id=f"{suite}-zh-beats-z",
            title="CarRacing: C on z and h beats C on z alone after as many rollouts (table 1)",
            ours=(Quantity(base),),
            control=(Quantity(runs["real-z"]),),
            against="C on z alone",
            equal="rollouts",
        ),
        Claim(
            id=f"{suite}-zh-beats-untrained",
            title="CarRacing: C on z and h beats C on z and h of an M as it was initialised, after as many rollouts",
            ours=(Quantity(base),),
            control=(Quantity(untrained),),
            against="h of an untrained M",
            asserted_by="us",
            equal="rollouts",
        ),
    ]
    return tuple(rows)


def eyes_checks(run: Experiment) -> tuple[Claim, Claim]:
    """Whether C looks at all: against the best policy without eyes, and against itself with them shut."""
    sweep, blind = (
        Claim(
            id=f"{run.suite}-beats-{word}",
            title=f"Take Cover: C trained in the dream at temperature {PUBLISHED_TAU} beats {words} in the game",
            ours=(Quantity(run),),
            control=(Quantity(run, f"controls/{name}"),),
            against=words,
            asserted_by="us",
        )
        for word, name, words in (
            ("sweep", "best blind sweep", "the best sweep without eyes"),
            ("blind", "C blind", "itself with noise in place of z"),
        )
    )
    return sweep, blind


# The paper's data and sizes; 200 of its 1,800 generations, which its authors call decent.
PAPER = Experiment("paper", "doom", TRANSFER, (0,), minutes=600, settings=("generations=200",))
NIGHT = Experiment("night", "doom", TRANSFER, (0,), minutes=45)
NIGHT_CAR = Experiment("night", "car", "real-zh", (0,), minutes=56)
GPU_DOOM = Experiment("gpu", "doom", TRANSFER, SEEDS, minutes=GPU, needs_gpu=True)
GPU_CAR = Experiment("gpu", "car", "real-zh", SEEDS, minutes=GPU, needs_gpu=True)


def tables(results: Mapping[str, Result], published: Published) -> Sequence[Table]:
    """Table 2 of the paper, both scores by temperature, ours beside."""
    suite = shown_suite(results)
    lines = [
        (
            f"temperature {tau}",
            [results[f"{suite}-dream-tau{tau}"], results[f"{suite}-real-tau{tau}"]],
        )
        for tau in TEMPERATURES
    ]
    car = [(words, [results[f"night-{claim}"]]) for claim, words, _, _ in CONTROLLERS]
    return (
        beside_published(f"Table 2 of the paper: Take Cover, tics survived (preset {suite})", ("dream", "game"), lines),
        beside_published("Table 1 of the paper: CarRacing, return (preset night)", ("100 random tracks",), car),
    )


def plots(results: Mapping[str, Result], published: Published) -> Sequence[Plot]:
    """Dream and real score over the temperature, the paper's own finding in one picture."""
    suite = shown_suite(results)
    series = {
        f"{words} ({whose})": [(float(tau), results[f"{suite}-{where}-tau{tau}"]) for tau in TEMPERATURES]
        for where, words in (("dream", "inside the dream"), ("real", "in the real game"))
        for whose in ("ours", "published")
    }
    caption = (
        "Take Cover: what a controller scores inside the dream it was trained in, and in the real game, by the "
        f"temperature of the dream (preset {suite})"
    )
    return over_settings("ha2018-temperature", caption, "temperature τ of the dream", "tics survived", series)


def shown_suite(results: Mapping[str, Result]) -> str:
    """The strongest preset whose table 2 has been run."""
    presets = ("paper", "gpu", "night")
    return next((name for name in presets if (row := results.get(f"{name}-real-tau1.15")) and row.is_run), "night")


NEEDS = ("cma", "PIL")
SPEED = ("measure_dream", "measure_vision", "measure_memory")


def gpu_dreams() -> Step:
    """Table 2's controllers, each in the dream of the paper's world that was learnt before: no game is played."""
    runs = []
    for tau in TEMPERATURES:
        settings = (*PAPER.settings, f"temperature={float(tau)}", "device=cuda")
        claim = TRANSFER if tau == PUBLISHED_TAU else f"{TRANSFER}-tau{tau}"
        runs.append(replace(PAPER, claim=claim, settings=settings, takes=(MODEL_FROM, PAPER)))
    return Step(
        "ha2018", "temperatures", "training", tuple(f"temperature={float(tau)}" for tau in TEMPERATURES), 300, 17,
        runs[0], shares=("vision", "memory"), needs=NEEDS, also=tuple(runs[1:]), together=in_one_batch,
    )  # fmt: skip


def in_one_batch(jobs: Sequence[Job]) -> list[str]:
    """The program that trains the controllers of all these runs, which differ in temperature alone."""
    one, settings = jobs[0], [setting for job in jobs for setting in job.overrides]
    temperatures = [setting.split("=")[1] for setting in settings if setting.startswith("temperature=")]
    common = [setting for setting in one.overrides if not setting.startswith("temperature=")]
    assert one.takes is not None
    return [
        *("ha2018.temperatures", "--task", one.task, "--seed", str(one.seed), "--preset", one.preset),
        *(("--set", *common) if common else ()),
        *(one.takes[0], (one.folder.parent / one.takes[1]).as_posix()),
        *("--temperatures", *temperatures, "--runs", *(job.folder.as_posix() for job in jobs)),
    ]


SUITE = Suite(
    paper="ha2018",
    title="World Models",
    citation="Ha & Schmidhuber 2018, arXiv 1803.10122",
    tasks=("doom", "car"),
    headline=f"night-real-tau{PUBLISHED_TAU}",
    scale="Take Cover in the real game, trained in the dream alone",
    budget={
        "env_frames": "environment frames",
        "episodes_collected": "episodes collected",
        "generations": "CMA-ES generations",
        "rollouts": "CMA-ES rollouts",
        "parameters": "parameters",
    },
    rows=(
        Claim(
            id="transfer",
            title="Take Cover: a controller trained only in the dream beats uniform random play in the game",
            ours=(Quantity(CPU),),
            control=(Quantity(CPU, "controls/uniform random"),),
            against="uniform random play",
            asserted_by="us",
        ),
        replace(
            held_check(CPU, "transfer-held"), title="Take Cover: the same against held random play, a stronger policy"
        ),
        Number(
            id="score",
            title="Take Cover in the real game, trained in the dream at 1.15",
            ours=Quantity(CPU),
            floor=Quantity(CPU, "controls/uniform random"),
            published="doom-real-tau1.15",
        ),
        Curve(
            id="dream-curve",
            title="Take Cover: mean return of the CMA-ES population inside the dream",
            ours=Quantity(CPU, "dream population mean"),
            published="doom-population",
            floor=Quantity(CPU, "controls/uniform random"),
            reduced="Z 32 and H 256 in place of 64 and 512, 32 members of 8 rollouts in place of 64 of 16",
        ),
        Calibration(
            id="random-uniform",
            title="Take Cover: uniform random play",
            ours=Quantity(UNIFORM),
            published="doom-random",
        ),
        Calibration(
            id="random-held",
            title="Take Cover: mean length of the episodes kept by the collection policy",
            ours=Quantity(HELD, "measurements/kept length"),
            published="doom-kept-length",
        ),
        *temperature_rows(PAPER),
        *eyes_checks(PAPER),
        *temperature_rows(NIGHT),
        *car_rows(NIGHT_CAR),
        *temperature_rows(GPU_DOOM),
        *car_rows(GPU_CAR),
    ),
    tables=tables,
    plots=plots,
    speed=(*SPEED, "measure_games"),
    film=("night", "doom", TRANSFER),
    steps=(
        device_tests("ha2018", "tests/test_gpu.py", needs=NEEDS),
        *speed("ha2018", *SPEED, needs=NEEDS, seconds=75),  # its peers run on all cores first
        gpu_dreams(),
    ),
)

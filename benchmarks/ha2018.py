"""Rows of World Models (Ha & Schmidhuber 2018, arXiv 1803.10122): Doom Take Cover and CarRacing."""

from __future__ import annotations

from functools import partial

from benchmarks.rows import Row, Suite

TRANSFER = "dream-transfer"
HIDDEN = "controller_hidden=40"
SEEDS = (0, 1, 2)

TEMPERATURES = ("1.15", "0.10", "0.50", "1.00", "1.30")  # the run that the others share comes first
UNTRAINED = "C on z and h of an M as it was initialised (control)"
UNTRAINED_M = ("memory_updates=0",)
CONTROLLERS = (
    ("real-zh", "C on z and h", "carracing-vm", ()),
    ("real-z", "C on z alone", "carracing-v", ("controller_inputs=z",)),
    ("real-z-hidden40", "C on z, 40 hidden units", "carracing-v-hidden", ("controller_inputs=z", HIDDEN)),
    ("real-zh-untrained", UNTRAINED, "carracing-vm", UNTRAINED_M),
)
DOOM_NIGHT, CAR_NIGHT, GPU = 45, 30, 25


def temperature_table(suite: str, seeds: tuple[int, ...], minutes: float) -> tuple[Row, ...]:
    """Both columns of the paper's table 2, the control, and what they claim.

    All of them share one V and M, the control its V.
    """
    row = partial(Row, kind="number", suite=suite, task="doom", seeds=seeds, minutes=minutes)
    rows = []
    for tau in TEMPERATURES:
        is_base = tau == TEMPERATURES[0]
        of_tau = partial(
            row,
            claim=TRANSFER if is_base else f"{TRANSFER}-tau{tau}",
            settings=() if is_base else (f"temperature={float(tau)}",),
            shares_world=not is_base,
        )
        dream = of_tau(
            id=f"{suite}-dream-tau{tau}",
            title=f"Take Cover: score inside the dream at temperature {tau}",
            published=f"doom-dream-tau{tau}",
            quantity="measurements/dream return",
        )
        real = of_tau(
            id=f"{suite}-real-tau{tau}",
            title=f"Take Cover: score in the real game after training in the dream at temperature {tau}",
            published=f"doom-real-tau{tau}",
        )
        rows += [dream, real]
    control = row(
        id=f"{suite}-real-untrained",
        title="Take Cover: score in the real game at temperature 1.15 with M as it was initialised (control)",
        claim=f"{TRANSFER}-untrained",
        published="doom-real-tau1.15",
        settings=UNTRAINED_M,
        shares_world=True,
    )
    better = partial(row, kind="claim", claim=TRANSFER, published="", shares_world=True)
    claims = (
        better(
            id=f"{suite}-beats-held",
            title="Take Cover: training in the dream at temperature 1.15 beats held random play in the real game",
            control="held random",
        ),
        better(
            id=f"{suite}-beats-untrained",
            title="Take Cover: a dream of a trained M teaches more for the real game than that of an untrained one",
            rival=f"{TRANSFER}-untrained",
            rival_settings=UNTRAINED_M,
        ),
        *(
            better(
                id=f"{suite}-beats-tau{tau}",
                title=f"Take Cover: temperature 1.15 transfers better to the real game than {tau} (shape of table 2)",
                rival=f"{TRANSFER}-tau{tau}",
                rival_settings=(f"temperature={float(tau)}",),
            )
            for tau in ("0.10", "0.50")
        ),
    )
    return (*rows, control, *claims)


def car_table(suite: str, seeds: tuple[int, ...], minutes: float) -> tuple[Row, ...]:
    """The paper's table 1 and the control, each with its learning curve, and what they claim; all share one V."""
    rows = []
    for claim, words, published, settings in CONTROLLERS:
        row = partial(
            Row,
            suite=suite,
            task="car",
            seeds=seeds,
            claim=claim,
            minutes=minutes,
            settings=settings,
            shares_world=bool(settings),
        )
        score = row(
            id=f"{suite}-{claim}",
            title=f"CarRacing: return over 100 random tracks, {words}",
            kind="number",
            published=published,
            fraction_of="env_frames" if published == "carracing-vm" else "episodes_collected",
        )
        curve = row(
            id=f"{suite}-{claim}-curve",
            title=f"CarRacing: mean return of the CMA-ES population at equal environment steps, {words}",
            kind="curve",
            published="carracing-population",
            quantity="population mean at equal steps",
        )
        rows += [score, curve]
    better = partial(
        Row, kind="claim", suite=suite, task="car", seeds=seeds, minutes=minutes, published="", fraction_of="rollouts"
    )
    zh, z, _, untrained = CONTROLLERS
    claims = (
        better(
            id=f"{suite}-beats-random",
            title="CarRacing: C on z and h beats the random play of the data collection",
            claim=zh[0],
            control="collection random",
        ),
        *(
            better(
                id=f"{suite}-{ours}-beats-{theirs}",
                title=f"CarRacing: {words} after as many rollouts",
                claim=ours,
                rival=theirs,
                rival_settings=rival_settings,
                shares_world=True,
            )
            for ours, theirs, rival_settings, words in (
                (zh[0], z[0], z[3], "C on z and h beats C on z alone (direction of table 1)"),
                (zh[0], untrained[0], untrained[3], "C on z and h beats C on z and h of an untrained M"),
            )
        ),
    )
    return (*rows, *claims)


SUITE = Suite(
    paper="ha2018",
    title="World Models",
    tasks=("doom", "car"),
    rows=(
        Row(
            id="transfer",
            title="Take Cover: a controller trained only in the dream beats uniform random play in the game",
            kind="claim",
            suite="cpu",
            task="doom",
            seeds=SEEDS,
            claim=TRANSFER,
            published="doom-real-tau1.15",
            control="uniform random",
            minutes=8,
        ),
        Row(
            id="transfer-held",
            title="Take Cover: the same against the stronger policy of the data collection, held actions",
            kind="claim",
            suite="cpu",
            task="doom",
            seeds=SEEDS,
            claim=TRANSFER,
            published="doom-real-tau1.15",
            control="held random",
            minutes=8,
        ),
        Row(
            id="score",
            title="Take Cover: score in the real game after training in the dream at temperature 1.15",
            kind="number",
            suite="cpu",
            task="doom",
            seeds=SEEDS,
            claim=TRANSFER,
            published="doom-real-tau1.15",
            minutes=8,
        ),
        Row(
            id="dream-curve",
            title="Take Cover: mean return of the CMA-ES population inside the dream",
            kind="curve",
            suite="cpu",
            task="doom",
            seeds=SEEDS,
            claim=TRANSFER,
            published="doom-population",
            quantity="dream population mean",
            minutes=8,
        ),
        Row(
            id="random-uniform",
            title="Take Cover: uniform random policy, the environment's own calibration",
            kind="calibration",
            suite="calibration",
            task="doom",
            seeds=(0,),
            claim="random-uniform",
            published="doom-random",
            minutes=1,
            evaluate=("--random", "uniform"),
            is_trained=False,
        ),
        Row(
            id="random-held",
            title="Take Cover: mean length of the episodes kept by the collection policy",
            kind="calibration",
            suite="calibration",
            task="doom",
            seeds=(0,),
            claim="random-held",
            published="doom-kept-length",
            quantity="measurements/kept length",
            minutes=2,
            evaluate=("--random", "held", "--test-episodes", "400"),
            is_trained=False,
        ),
        *temperature_table("night", (0,), DOOM_NIGHT),
        *car_table("night", (0,), CAR_NIGHT),
        *temperature_table("gpu", SEEDS, GPU),
        *car_table("gpu", SEEDS, GPU),
    ),
)

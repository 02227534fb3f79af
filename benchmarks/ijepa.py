"""Rows of I-JEPA (Assran et al. 2023, arXiv 2301.08243): AtariARI probes, their controls, ImageNet."""

from __future__ import annotations

from benchmarks.rows import Row, Suite

SEEDS = (0, 1, 2)
CONTROLS = (
    ("pong", "Pong"), ("boxing", "Boxing"), ("breakout", "Breakout"), ("seaquest", "Seaquest"),
    ("spaceinvaders", "Space Invaders"),
)  # fmt: skip
FULL_PLAY = ("--controls", "--preset", "paper")


def _control_rows(game: str, title: str) -> tuple[Row, Row]:
    """AtariARI's two controls on a game: the calibration of its labels, splits and probes."""
    random_cnn = Row(
        id=f"{game}-random-cnn",
        title=f"{title}: AtariARI's control, F1 of linear probes on a random convolutional network",
        kind="calibration",
        suite="calibration",
        task=game,
        seeds=(0,),
        claim="control-random-cnn",
        published=f"{game}-random-cnn",
        minutes=6,
        evaluate=FULL_PLAY,
        is_trained=False,
    )
    majority = Row(
        id=f"{game}-majority",
        title=f"{title}: AtariARI's control, F1 of the majority classifier",
        kind="calibration",
        suite="calibration",
        task=game,
        seeds=(0,),
        claim="control-random-cnn",
        published=f"{game}-maj-clf",
        quantity="controls/majority",
        minutes=6,
        evaluate=FULL_PLAY,
        is_trained=False,
    )
    return random_cnn, majority


SUITE = Suite(
    paper="ijepa",
    title="I-JEPA",
    tasks=("shapes", "pong"),
    rows=(
        Row(
            id="cpu-random-cnn",
            title="Pong: linear probes on I-JEPA beat those on a random convolutional network (AtariARI F1)",
            kind="claim",
            suite="cpu",
            task="pong",
            seeds=SEEDS,
            claim="probe-f1",
            published="pong-random-cnn",
            control="random-cnn",
            minutes=8,
        ),
        Row(
            id="cpu-random-cnn-standardised",
            title="Pong: the same with the random network's features standardised as ours are",
            kind="claim",
            suite="cpu",
            task="pong",
            seeds=SEEDS,
            claim="probe-f1",
            published="pong-random-cnn",
            control="random-cnn, standardised",
            minutes=8,
        ),
        Row(
            id="cpu-untrained",
            title="Pong: they beat those on the same encoder before its training",
            kind="claim",
            suite="cpu",
            task="pong",
            seeds=SEEDS,
            claim="probe-f1",
            published="pong-random-cnn",
            control="untrained encoder",
            minutes=8,
        ),
        *(row for game, title in CONTROLS for row in _control_rows(game, title)),
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

"""Finds the papers of a checkout: `<paper>/` and `benchmarks/<paper>.py` with its SUITE, nothing else to register."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from benchmarks.rows import PAPERS, Suite

ROOT = Path(__file__).resolve().parent.parent


def names(root: Path = ROOT) -> tuple[str, ...]:
    """The papers whose package and suite file are in `root`, in the order of PAPERS, further ones behind them."""
    there = [
        path.stem for path in sorted((root / "benchmarks").glob("*.py")) if (root / path.stem / "train.py").is_file()
    ]
    known = [name for name in PAPERS if name in there]
    return (*known, *(name for name in there if name not in known))


def load(root: Path = ROOT) -> tuple[Suite, ...]:
    """The suites of a checkout. ValueError if a file has none, or one of another paper."""
    return tuple(_suite(name, root) for name in names(root))


def _suite(name: str, root: Path) -> Suite:
    path = root / "benchmarks" / f"{name}.py"
    if root == ROOT:
        module = importlib.import_module(f"benchmarks.{name}")
    else:
        spec = importlib.util.spec_from_file_location(f"suite_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    suite = getattr(module, "SUITE", None)
    if not isinstance(suite, Suite) or suite.paper != name:
        raise ValueError(f"{path} has no SUITE of {name}")
    return suite

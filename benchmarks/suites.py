"""The suites of all papers that this checkout holds, in the order of the report."""

from __future__ import annotations

from benchmarks import dreamerv3, ha2018
from benchmarks.rows import Suite

SUITES: tuple[Suite, ...] = (ha2018.SUITE, dreamerv3.SUITE)

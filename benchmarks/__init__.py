"""Joins run records with published numbers: suites of rows, verdicts, the report and the runner."""

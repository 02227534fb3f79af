"""The captured search against the readable form: on a GPU, and on a CPU with a tape in the place of the graph."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from common import eager, tape
from muzero import search, search_cuda
from muzero.tests.models import random_table
from muzero.tests.test_search import ACTIONS, KINDS, noise_for, roots

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def moved(found):
    """The same on the GPU."""
    parts = {field.name: getattr(found, field.name) for field in fields(found)}
    return type(found)(**{name: part if part is None else part.cuda() for name, part in parts.items()})


@on_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_captured_searches_choose_as_the_readable_form(kind: str) -> None:
    """Three batches of roots through one graph."""
    settings, table = KINDS[kind], random_table(200, ACTIONS, 0.95, seed=3)
    model = moved(table)
    captured = search_cuda.Captured(model, settings)
    for seed in range(3):
        there = roots(table, 17, seed)
        root, noise = moved(there), noise_for(settings, there).cuda()
        ours, theirs = captured(root, noise), search.search(root, model, settings, noise)
        assert torch.equal(ours.visits, theirs.visits)
        assert torch.equal(ours.action, theirs.action)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)


def searched(kind: str) -> search_cuda.Captured:
    """The search of three batches of roots, each beside the readable form."""
    table, settings = random_table(200, ACTIONS, 0.95, seed=3), replace(KINDS[kind], simulations=12)
    captured = search_cuda.Captured(table, settings)
    for seed in range(3):
        root = roots(table, 17, seed)
        noise = noise_for(settings, root)
        ours, theirs = captured(root, noise), search.search(root, table, settings, noise)
        assert torch.equal(ours.visits, theirs.visits)
        assert torch.equal(ours.action, theirs.action)
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-4, atol=1e-5)
    return captured


@pytest.mark.parametrize("kind", ["tree", "node", "gumbel"])
def test_a_replayed_search_is_the_search(monkeypatch, kind: str) -> None:
    tape.put_in_place(monkeypatch)
    captured = searched(kind)
    assert isinstance(captured.graph, tape.Tape)
    # Whether a root has a move is asked of a CPU alone.
    assert set(captured.graph.waits) <= {"aten._local_scalar_dense.default", "aten.is_nonzero.default"}
    assert len(captured.graph.waits) <= 2


def test_a_search_whose_capture_fails_goes_on_as_it_is(monkeypatch, capsys) -> None:
    tape.break_captures(monkeypatch)
    monkeypatch.setattr(eager, "_marks", [])
    captured = searched("node")
    assert (captured.graph, captured.captures) == (None, False)
    assert capsys.readouterr().err.count("\n") == 1

"""The captured search against the readable form: on a GPU, and on a CPU with a tape in the place of the graph."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from common import eager, fake_cuda, tape
from common.testing import ROOT
from muzero import search, search_cuda
from muzero.agent import network_for
from muzero.env import space_of
from muzero.evaluate import every_reply
from muzero.tests.models import random_table
from muzero.tests.test_evaluate import config_of
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


@on_gpu
def test_a_network_on_the_gpu_is_judged() -> None:
    config = config_of("tictactoe", "smoke", device="cuda", test_episodes=4)
    found = every_reply(network_for(space_of(config), config).cuda().eval(), config, 4)
    assert found["measurements"]["true rules, the same network"]["episodes"] > 100


def test_true_rules_search_with_a_network_that_is_on_a_gpu(tmp_path) -> None:
    """Traced on tensors that are nowhere, in a process of its own."""
    try:
        library = fake_cuda.library(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(library)}
    words = [sys.executable, "-m", "muzero.tests.trace"]
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[3, 3]\n"


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

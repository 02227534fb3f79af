"""On a GPU: the captured search and the form that it records, against the readable one on the same device."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

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

"""How many kernels an update launches on a GPU, and that the host waits for none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from common import eager, fake_cuda
from common.testing import ROOT
from dreamerv3 import imagination_fast, layers_fast, rssm_fast

MOST = 4000


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> dict[str, Any]:
    """What the trace prints, from a process of its own."""
    try:
        library = fake_cuda.library(tmp_path_factory.mktemp("device"))
    except RuntimeError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-m", "dreamerv3.tests.trace"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(library)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_an_update_of_the_smallest_size_launches_few_kernels(traced):
    assert traced["parts"].keys() == {"scan", "imagination", "rest"}
    assert 1000 < traced["kernels"] <= MOST


def test_what_stands_between_two_products_is_one_kernel(traced):
    """By the plan of the compiler itself."""
    several = {name: kernels for name, kernels in traced["bodies"].items() if kernels != 1}
    assert several == {"layers_fast.backward": 2}  # a sum over each row, and one over all rows
    assert len(traced["bodies"]) >= 18


def test_an_update_waits_for_nothing(traced):
    assert traced["waits"] == []


def test_what_is_compiled_has_no_break_in_it(monkeypatch):
    """A break would be a kernel more, and could be a wait."""

    def compile_whole(function: Any, **_: Any) -> Any:
        return real(function, backend="eager", fullgraph=True, dynamic=False)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_whole)
    layers_fast.for_device.cache_clear()
    batch, blocks, width, stoch, classes = 5, 2, 3, 4, 4
    deter = blocks * width

    def numbers(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))

    slope = layers_fast.norm_slopes(numbers(batch, deter), numbers(deter))
    raw, h, keep = numbers(blocks, batch, 3 * width), numbers(batch, deter), numbers(batch, 1).round()
    cases: tuple[tuple[Any, tuple[Any, ...]], ...] = (
        (rssm_fast.mix, (numbers(blocks, batch, width), h, h, keep, numbers(deter))),
        (rssm_fast.gate, (raw, numbers(blocks, 1, 3 * width), h, keep)),
        (rssm_fast.pick, (numbers(batch, stoch * classes), numbers(stoch * classes), numbers(batch, stoch), 0.01)),
        (rssm_fast.gate_backward, (h, h, h, numbers(blocks, batch, 4, width))),
        (rssm_fast.mix_backward, (numbers(blocks, batch, width), numbers(deter), *slope)),
        (layers_fast.backward, (h, h, numbers(deter))),
        (imagination_fast.gate, (raw, h)),
        (imagination_fast.push, (numbers(batch, 4), numbers(4), numbers(batch, 2))),
        (imagination_fast.choose, (numbers(batch, 4), numbers(4), numbers(batch, 1), 0.01)),
        (imagination_fast.pick, (numbers(batch, 16), numbers(16), numbers(batch, stoch), 0.01)),
    )
    try:
        for function, inputs in cases:
            found, wanted = layers_fast.for_device(function, "cuda", deter)(*inputs), function(*inputs)
            for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted)), strict=True):
                torch.testing.assert_close(ours, theirs)
    finally:
        layers_fast.for_device.cache_clear()
    assert eager.marks() == ()

"""Compiled blocks and the update that runs through them, against the same modules as they are."""

from __future__ import annotations

import pytest
import torch

from common import eager
from ijepa.crops import to_input
from ijepa.statistics import Statistics
from ijepa.tests.test_jepa import batch, model
from ijepa.train import compile_blocks, micro_step

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@on_gpu
def test_compiled_blocks_have_the_losses_and_gradients_of_plain_ones() -> None:
    plain, compiled = model(dtype=torch.float32).cuda(), model(dtype=torch.float32).cuda()
    compile_blocks(compiled)
    for count in (3, 4):
        images, masks = batch(count)
        masks = masks.to(torch.device("cuda"))
        losses = []
        for jepa in (plain, compiled):
            jepa.zero_grad()
            loss, _ = micro_step(jepa, images.float().cuda(), masks.context, masks.target)
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(compiled.encoder.parameters(), plain.encoder.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    assert eager.marks() == ()


@on_gpu
def test_images_arrive_on_the_device_as_they_are_on_a_cpu() -> None:
    images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    ones = torch.ones(3, dtype=torch.float64).numpy()
    found, expected = (to_input(images, Statistics(ones / 2, ones), torch.device(name)) for name in ("cuda", "cpu"))
    torch.testing.assert_close(found.cpu(), expected)


def test_blocks_that_do_not_compile_run_as_they_are(monkeypatch, capsys):
    def broken(function, **options):
        def call(*args, **kwargs):
            raise RuntimeError("no kernel")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(eager, "_marks", [])
    plain, compiled = model(), model()
    compile_blocks(compiled)
    images, masks = batch()
    one, two = (micro_step(jepa, images, masks.context, masks.target)[0] for jepa in (plain, compiled))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert capsys.readouterr().err == "warning: a block not as a graph (RuntimeError: no kernel)\n"

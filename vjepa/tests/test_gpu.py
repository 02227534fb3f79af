"""Compiled blocks and the update that runs through them, against the same modules as they are."""

from __future__ import annotations

import pytest
import torch

from common import eager
from vjepa.tests.test_jepa import batch, new_model
from vjepa.train import compile_blocks, micro_step

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@on_gpu
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_compiled_blocks_have_the_losses_and_gradients_of_plain_ones(positions: str) -> None:
    plain, compiled = new_model(positions).float().cuda(), new_model(positions).float().cuda()
    compile_blocks(compiled)
    for count in (3, 4):
        clips, masks = batch(count)
        masks = masks.to(torch.device("cuda"))
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            loss, _ = micro_step(model, clips.float().cuda(), masks.context, masks.target)
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(compiled.encoder.parameters(), plain.encoder.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_blocks_that_do_not_compile_run_as_they_are(monkeypatch, capsys):
    def broken(function, **options):
        def call(*args, **kwargs):
            raise RuntimeError("no kernel")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(eager, "_marks", [])
    plain, compiled = new_model(), new_model()
    compile_blocks(compiled)
    clips, masks = batch()
    one, two = (micro_step(model, clips, masks.context, masks.target)[0] for model in (plain, compiled))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert capsys.readouterr().err == "warning: a block not as a graph (RuntimeError: no kernel)\n"

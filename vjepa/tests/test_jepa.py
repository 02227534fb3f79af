"""What the loss sees, where gradients go, how the target moves, and what the watch says of a collapse."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from common import eager
from vjepa import collapse
from vjepa.jepa import JEPA, Schedule, distance, new_jepa, normalise, predict, select, targets, update_target
from vjepa.masks import MaskKind, sample_masks
from vjepa.predictor import Predictor
from vjepa.probe import AttentiveProbe, new_probe
from vjepa.train import compile_blocks, micro_step
from vjepa.vit import SIZES, Size, VideoTransformer


def new_model(positions="sincos") -> JEPA:
    encoder = VideoTransformer((4, 32, 32), 3, 2, 8, Size(24, 2, 2, 48), positions)
    predictor = Predictor(encoder.grid, 24, 24, 2, 2, 2, positions)
    return new_jepa(encoder, predictor, torch.Generator().manual_seed(0)).double()


def batch(count=3):
    clips = torch.rand(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kinds = [MaskKind(8, (0.15, 0.15)), MaskKind(2, (0.7, 0.7))]
    return clips, sample_masks(kinds, (2, 4, 4), count, 0, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_gradients_reach_encoder_and_predictor_and_nothing_else(positions):
    model, (clips, masks) = new_model(positions), batch()
    loss, tokens = micro_step(model, clips, masks.context, masks.target)
    loss.backward()
    assert not tokens.requires_grad
    assert all(p.grad is None for p in model.target_encoder.parameters())
    used = [token.grad is not None for token in model.predictor.mask_tokens]
    assert used == ([True, True] if positions == "sincos" else [True, False])
    for name, parameter in [*model.encoder.named_parameters(), *model.predictor.named_parameters()]:
        if not name.startswith("mask_tokens"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_predictions_do_not_see_what_is_hidden():
    model, (clips, masks) = new_model(), batch(1)
    hidden = torch.zeros(32, dtype=torch.bool).scatter(0, masks.target[0][0], True).reshape(2, 4, 4)
    changed = clips.clone()
    pixels = hidden.repeat_interleave(2, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    changed[0, :, pixels] = 0
    with torch.no_grad():
        torch.testing.assert_close(predict(model, changed, masks)[0], predict(model, clips, masks)[0])
        assert not torch.allclose(targets(model.target_encoder, changed), targets(model.target_encoder, clips))


def test_the_loss_is_the_mean_over_kinds_of_their_means():
    """Kinds weigh the same, however many tokens they have."""
    ours = [torch.zeros(2, 3, 4), torch.zeros(2, 30, 4)]
    theirs = [torch.full((2, 3, 4), 2.0), torch.full((2, 30, 4), -1.0)]
    assert distance(ours, theirs) == pytest.approx(1.5)


def test_the_target_moves_by_the_momentum():
    model = new_model()
    before = copy.deepcopy(model.target_encoder)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1)
    update_target(model.target_encoder, model.encoder, 0.75)
    for old, new in zip(before.parameters(), model.target_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_targets_of_all_kinds_come_from_one_pass():
    model, (clips, masks) = new_model(), batch()
    tokens = targets(model.target_encoder, clips)
    chosen = select(tokens, masks)
    assert [part.shape[1] for part in chosen] == [mask.shape[1] for mask in masks.target]
    torch.testing.assert_close(tokens, normalise(model.target_encoder(clips)).detach())


def test_a_schedule_is_constant_between_warm_up_and_fall():
    schedule = Schedule(100, 10, 1.0, 0.0, 1.0, 0.0, 0.1, 0.1, 0.9, 0.9, "linear", 20)
    assert schedule.lr_at(4) == pytest.approx(0.5)
    assert {schedule.lr_at(k) for k in range(9, 80)} == {1.0}
    assert schedule.lr_at(89) == pytest.approx(0.5)
    assert schedule.lr_at(99) == pytest.approx(0.0)


def test_the_watch_tells_a_constant_from_a_representation():
    generator = torch.Generator().manual_seed(0)
    tokens, same = torch.randn(16, 6, 8, generator=generator), torch.randn(1, 6, 8, generator=generator)
    target = [torch.arange(6).expand(16, -1)]
    of_constant = collapse.constant_error(tokens, target)
    healthy = collapse.watch(tokens, target, of_constant / 2)
    assert healthy["vs_constant"] == pytest.approx(0.5)
    assert healthy["rank"] > 4
    dead = collapse.watch(same.expand(16, -1, -1), target, torch.tensor(0.1))
    assert dead["std"] < 1e-3
    assert dead["rank"] == 0
    assert dead["vs_constant"] > 1e6


@pytest.mark.parametrize(
    ("name", "classes", "depth", "has_unused", "count"),
    [
        ("large", 400, 1, True, 13_007_248),
        ("huge", 400, 1, True, 20_191_120),
        ("large", 174, 4, False, 49_514_670),
        ("huge", 174, 4, False, 77_294_254),
        ("giant", 174, 4, False, 93_494_190),
    ],
)
def test_parameter_counts_of_the_published_probes(name, classes, depth, has_unused, count):
    with torch.device("meta"):
        probe = AttentiveProbe(SIZES[name].width, 16, classes, depth, has_unused)
    assert sum(p.numel() for p in probe.parameters()) == count


def test_the_unused_projection_of_a_probe_has_no_gradient():
    probe = new_probe(16, 2, 3, 1, True, torch.Generator().manual_seed(0))
    probe(torch.rand(2, 5, 16)).sum().backward()
    unused = [name for name, p in probe.named_parameters() if p.grad is None]
    assert unused == ["pooler.cross_attention_block.xattn.proj.weight", "pooler.cross_attention_block.xattn.proj.bias"]


@torch.no_grad()
def test_further_blocks_of_a_probe_read_the_answer_in_the_first_generation_and_the_tokens_in_the_second():
    tokens = torch.rand(2, 5, 16)
    for has_unused in (True, False):
        pooler = new_probe(16, 2, 3, 2, has_unused, torch.Generator().manual_seed(0)).pooler
        query, ask, block = pooler.query_tokens.expand(2, -1, -1), pooler.cross_attention_block, pooler.blocks[0]
        wanted = block(ask(query, tokens)) if has_unused else ask(query, block(tokens))
        torch.testing.assert_close(pooler(tokens), wanted)


@pytest.mark.parametrize(
    ("depth", "has_unused", "query", "blocks"),
    [(1, True, 1, []), (3, True, 1, [2, 3]), (1, False, 1, []), (4, False, 3, [1, 2, 3])],
)
def test_last_layers_of_a_probe_are_scaled_by_the_number_of_their_block(depth, has_unused, query, blocks):
    pooler = new_probe(96, 2, 3, depth, has_unused, torch.Generator().manual_seed(0)).pooler
    found = [pooler.cross_attention_block.mlp.fc2.weight.std()]
    found += [pooler.get_parameter(f"blocks.{k}.mlp.fc2.weight").std() for k in range(depth - 1)]
    wanted = 0.02 / torch.tensor([query, *blocks]).mul(2).sqrt()
    torch.testing.assert_close(torch.stack(found), wanted, rtol=0.03, atol=0)


def test_compiled_blocks_are_traced_whole_and_agree(monkeypatch):
    """Without a code generator: what counts is that no length of a mask breaks the graph, or makes one of its own.

    torch.compile gives up on a function after eight forms, and one model has six; another one counts anew.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    losses, before = [], {}
    for is_rounded in (False, True):
        model, compiled = new_model("rotary").float(), new_model("rotary").float()
        compile_blocks(compiled)
        for count in (3, 4, 5):
            clips, masks = batch(count)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
                one, two = (micro_step(m, clips.float(), masks.context, masks.target)[0] for m in (model, compiled))
            torch.testing.assert_close(one, two)
            losses.append(float(two.detach()))
            if count == 4:
                before = dict(torch._dynamo.utils.counters["stats"])
        assert torch._dynamo.utils.counters["stats"] == before, "a new length made a new graph"
    assert len(set(losses)) > 3
    assert eager.marks() == ()

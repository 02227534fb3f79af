"""Numbers of the authors' modules against the shipped functions, at the tolerances of golden/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.golden import Parity, load
from ijepa import masks
from ijepa.jepa import JEPA, Schedule, new_optimizer, normalise, predict, select, targets
from ijepa.masks import MaskConfig, Masks
from ijepa.predictor import Predictor, repeat_chunks
from ijepa.train import train_step
from ijepa.vit import Block, Size, VisionTransformer, gather_tokens, position_table

GOLDEN = Path(__file__).parent / "golden"
FORWARD = {"atol": 2e-5, "rtol": 1e-4}
GRADIENT = {"atol": 1e-5, "rtol": 1e-3}


def below(case: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in case.items() if name.startswith(prefix)}


def depth_of(weights: dict[str, Tensor], word: str) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith(word)})


def encoder_of(weights: dict[str, Tensor], heads: int) -> VisionTransformer:
    """32 px images, patch 8; strict loading also compares the names and the stored position table's shape."""
    width = weights["norm.weight"].numel()
    size = Size(width, depth_of(weights, "blocks"), heads, weights["blocks.0.mlp.fc1.bias"].numel())
    encoder = VisionTransformer(32, 32, 3, 8, size)
    encoder.load_state_dict(weights, strict=True)
    return encoder


def predictor_of(weights: dict[str, Tensor], heads: int) -> Predictor:
    own, width = weights["predictor_embed.weight"].shape
    predictor = Predictor((4, 4), width, own, depth_of(weights, "predictor_blocks"), heads)
    predictor.load_state_dict(weights, strict=True)
    return predictor


def numbered(case: dict[str, np.ndarray], prefix: str) -> list[Tensor]:
    return [torch.from_numpy(case[name]) for name in sorted(case) if name.startswith(prefix)]


def test_position_table(parity: Parity) -> None:
    for name, table in load(GOLDEN / "pos_embed_2d.npz").items():
        width, grid = (int(part[1:]) for part in name.split("_")[1:])
        parity.check("position table", position_table(width, grid, grid), table, atol=1e-12)
    case = load(GOLDEN / "encoder_forward.npz")
    stored = position_table(32, 4, 4).astype(np.float32)[None]
    parity.check("position table", stored, case["enc/pos_embed"], atol=1e-12)


def test_gather_and_repeat(parity: Parity) -> None:
    case = load(GOLDEN / "apply_masks.npz")
    x, pair = torch.from_numpy(case["x"]), numbered(case, "mask")
    parity.check("gather and repeat", gather_tokens(x, pair), case["applied"], atol=0)
    ours = repeat_chunks(gather_tokens(x, pair), 2, 2)
    parity.check("gather and repeat", ours, case["repeat_interleaved_B3_rep2"], atol=0)


@torch.no_grad()
def test_encoder(parity: Parity) -> None:
    case = load(GOLDEN / "encoder_forward.npz")
    encoder, images = encoder_of(below(case, "enc/"), 4), torch.from_numpy(case["images"])
    tokens = encoder.embed(images)
    parity.check("encoder: patches", encoder.patch_embed(images), case["patch_tokens"], **FORWARD)
    parity.check("encoder: patches", tokens, case["tokens_plus_pos"], **FORWARD)
    first, second = encoder.blocks
    assert isinstance(first, Block)
    q, k = first.attn.qkv(first.norm1(tokens)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)[:2]
    parity.check("encoder: blocks", (q @ k.mT * 8**-0.5).softmax(-1), case["attn_block0"], **FORWARD)
    parity.check("encoder: blocks", first(tokens), case["after_block0"], **FORWARD)
    parity.check("encoder: blocks", second(first(tokens)), case["after_block1"], **FORWARD)
    parity.check("encoder: output", encoder(images), case["out_full"], **FORWARD)
    parity.check("encoder: output", encoder(images, numbered(case, "mask")), case["out_masked"], **FORWARD)
    parity.check("encoder: output", encoder.layers(images, 1)[0].mean(1), case["avgpool_last"], **FORWARD)


@torch.no_grad()
@pytest.mark.parametrize("name", ["1ctx_4tgt", "2ctx_3tgt"])
def test_predictor(name: str, parity: Parity) -> None:
    case = load(GOLDEN / f"predictor_forward_{name}.npz")
    predictor = predictor_of(below(case, "pred/"), 4)
    context = torch.from_numpy(case["context"])
    out = predictor(context, numbered(case, "mask_ctx"), numbered(case, "mask_tgt"))
    parity.check("predictor", out, case["out"], **FORWARD)


def test_block_sizes(parity: Parity) -> None:
    case = load(GOLDEN / "mask_block_sizes.npz")
    for grid in (6, 8, 12, 14, 16, 28):
        if (name := f"hw_pred_hw_enc_grid{grid}") not in case:
            continue
        config = published_masks(grid)
        ours = [sum(masks.block_shapes(config, int(step)), ()) for step in case["steps"]]
        parity.check("masks: block sizes", np.array(ours), case[name], atol=0)


def published_masks(grid: int, contexts: int = 1, targets: int = 4, min_keep: int = 10, overlap: bool = False):
    return MaskConfig(grid, grid, targets, contexts, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), min_keep, overlap)


def mask_cases(grid: int):
    """The config, the batch size and the seed of a case, and its numbered batches."""
    case = load(GOLDEN / f"masks_g{grid}.npz")
    pixels, patch, batch, count, seed, contexts, wanted, min_keep, overlap = map(
        int, case["meta_input_patch_B_nb_seed_nenc_npred_minkeep_overlap"]
    )
    assert pixels // patch == grid
    assert case["meta_scales_enc_pred_ar"].tolist() == [0.85, 1.0, 0.15, 0.2, 0.75, 1.5]
    return case, published_masks(grid, contexts, wanted, min_keep, bool(overlap)), batch, count, seed


@pytest.mark.parametrize("grid", [6, 8, 12, 14, 16, 28])
def test_masks_of_the_same_seed(grid: int, parity: Parity) -> None:
    case, config, batch, count, seed = mask_cases(grid)
    generator = torch.Generator().manual_seed(seed)
    for k in range(count):
        found = masks.sample_masks(config, batch, k, generator)
        parity.check("masks: indices", torch.stack(found.context), case[f"b{k}_enc"], atol=0)
        parity.check("masks: indices", torch.stack(found.target), case[f"b{k}_pred"], atol=0)


@pytest.mark.parametrize("grid", [6, 8, 12, 14, 16, 28])
def test_masks_of_the_same_draws(grid: int, parity: Parity) -> None:
    """Every draw in its order, with its bound; none is left over."""
    case, config, batch, count, _ = mask_cases(grid)
    for k in range(count):
        draws = iter(case[f"b{k}_draws"].tolist())

        def draw(high: int, draws=draws) -> int:
            low, bound, value = next(draws)
            assert (low, bound) == (0, high)
            return value

        target, context = (tuple(shape) for shape in case[f"b{k}_block_sizes"].tolist())
        found = masks.place_blocks(config, batch, target, context, draw)
        parity.check("masks: indices", torch.stack(found.context), case[f"b{k}_enc"], atol=0)
        parity.check("masks: indices", torch.stack(found.target), case[f"b{k}_pred"], atol=0)
        assert next(draws, None) is None


def schedule_of(numbers: np.ndarray) -> Schedule:
    per_epoch, epochs, warmup, stretch, lr, start, end, decay, decay_end, momentum, momentum_end = numbers.tolist()
    return Schedule(
        int(per_epoch * epochs), int(warmup * per_epoch), stretch, start, lr, end, decay, decay_end, momentum,
        momentum_end,
    )  # fmt: skip


def test_schedules(parity: Parity) -> None:
    case = load(GOLDEN / "schedules.npz")
    for name in ("tiny_scale1.25", "tiny_scale1.0", "release_h14_in1k"):
        schedule = schedule_of(case[f"{name}/cfg_ipe_epochs_warmup_scale_lr_startlr_finallr_wd_finalwd_ema0_ema1"])
        steps = case[f"{name}/step_index"].tolist()
        for key, ours in (("lr", schedule.lr_at), ("wd", schedule.weight_decay_at), ("momentum", schedule.momentum_at)):
            parity.check("schedules", [ours(step) for step in steps], case[f"{name}/{key}"], atol=1e-12)


def test_train_step(parity: Parity) -> None:
    """Losses, gradients and weights over the optimisation steps of the case."""
    case = load(GOLDEN / "train_step.npz")
    hyper = "lr_startlr_finallr_wd_finalwd_ema0_ema1_ipe_epochs_warmup_scale"
    lr, start, end, wd, wd_end, m, m_end, per_epoch, epochs, warmup, stretch = case[f"hyper_{hyper}"].tolist()
    schedule = schedule_of(np.array([per_epoch, epochs, warmup, stretch, lr, start, end, wd, wd_end, m, m_end]))
    model = JEPA(encoder_of(below(case, "init/enc/"), 2), predictor_of(below(case, "init/pred/"), 2))
    optimizer = new_optimizer(model)
    steps = 0
    while f"step{steps}/images" in case:
        step = below(case, f"step{steps}/")
        found = Masks(numbered(case, f"step{steps}/mask_ctx"), numbered(case, f"step{steps}/mask_tgt"))
        if steps == 0:
            with torch.no_grad():
                wanted = select(targets(model.target_encoder, step["images"]), found)
                parity.check("train step: targets", wanted, step["targets"], **FORWARD)
                ours = predict(model, step["images"], found)
                parity.check("train step: predictions", ours, step["predictions"], **FORWARD)
        losses = train_step(model, optimizer, [(step["images"], found)], schedule, steps)
        parity.check("train step: loss", losses["loss"], step["loss"], **FORWARD)
        group = optimizer.param_groups[0]
        parity.check(
            "train step: schedules", [group["lr"], group["weight_decay"]], [step["lr"], step["wd"]], atol=1e-12
        )
        parity.check("train step: schedules", schedule.momentum_at(steps), step["momentum"], atol=1e-12)
        for name, module in (("enc", model.encoder), ("pred", model.predictor)):
            norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
            parity.check("train step: gradients", norm, step[f"gradnorm_{name}"], **GRADIENT)
            for key, reference in below(case, f"step{steps}/grad/{name}/").items():
                gradient = module.get_parameter(key).grad
                assert gradient is not None
                parity.check("train step: gradients", gradient, reference, **GRADIENT)
        steps += 1
    assert steps > 1
    for name, module in (("enc", model.encoder), ("pred", model.predictor), ("target", model.target_encoder)):
        compare_weights(module, below(case, f"final/{name}/"), 2.1 * lr * steps, parity)


def compare_weights(module: nn.Module, reference: dict[str, Tensor], most: float, parity: Parity) -> None:
    """All but the key part of the attention's bias, whose gradient is rounding noise; see golden/README.md."""
    state = module.state_dict()
    assert state.keys() == reference.keys()
    for name, value in reference.items():
        ours = state[name]
        if name.endswith("qkv.bias"):
            width = value.numel() // 3
            assert (ours - value).abs().max() <= most
            ours, value = (torch.cat([t[:width], t[2 * width :]]) for t in (ours, value))
        parity.check("train step: final weights", ours, value, atol=2e-5)


def test_targets_are_normalised_twice() -> None:
    case = load(GOLDEN / "encoder_forward.npz")
    encoder, images = encoder_of(below(case, "enc/"), 4), torch.from_numpy(case["images"])
    found = targets(encoder, images)
    torch.testing.assert_close(found, normalise(encoder(images)).detach())
    assert not found.requires_grad
    assert found.mean(-1).abs().max() < 1e-6

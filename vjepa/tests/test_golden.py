"""Numbers of the authors' modules against the shipped functions, at the tolerances of golden/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.golden import Parity, load
from vjepa import masks
from vjepa.jepa import JEPA, Schedule, new_optimizer, predict, select, set_schedule, targets
from vjepa.masks import MaskKind, Masks
from vjepa.predictor import Predictor
from vjepa.probe import AttentiveProbe
from vjepa.train import train_step
from vjepa.videos import frame_indices
from vjepa.vit import (
    Attention,
    Size,
    VideoTransformer,
    axis_width,
    places_of,
    position_table,
    resized_table,
    rotate,
    rotation,
    video_rotation,
    video_table,
)

GOLDEN = Path(__file__).parent / "golden"
FORWARD = {"atol": 2e-5, "rtol": 1e-4}
GRADIENT = {"atol": 1e-5, "rtol": 1e-3}


def below(case: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in case.items() if name.startswith(prefix)}


def depth_of(weights: dict[str, Tensor], word: str) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith(word)})


def positions_of(weights: dict[str, Tensor]) -> str:
    return "sincos" if any("pos_embed" in name for name in weights) else "rotary"


def encoder_of(weights: dict[str, Tensor], heads: int = 2) -> VideoTransformer:
    """4 frames of 16 px, patch 4, tubelet 2; strict loading also compares names and the stored table's shape."""
    size = Size(
        weights["norm.weight"].numel(), depth_of(weights, "blocks"), heads, weights["blocks.0.mlp.fc1.bias"].numel()
    )
    encoder = VideoTransformer((4, 16, 16), 3, 2, 4, size, positions_of(weights))
    encoder.load_state_dict(weights, strict=True)
    return encoder


def predictor_of(weights: dict[str, Tensor], heads: int = 2) -> Predictor:
    own, width = weights["predictor_embed.weight"].shape
    tokens, depth = (depth_of(weights, word) for word in ("mask_tokens", "predictor_blocks"))
    predictor = Predictor((2, 4, 4), width, own, depth, heads, tokens, positions_of(weights))
    predictor.load_state_dict(weights, strict=True)
    return predictor


def pairs(case: dict[str, np.ndarray], prefix: str = "") -> Masks:
    return Masks(*([torch.from_numpy(case[f"{prefix}{word}{k}"]) for k in range(2)] for word in ("ctx", "tgt")))


# --- positions --------------------------------------------------------------------------------------------------------


def test_position_tables(parity: Parity) -> None:
    for name, table in load(GOLDEN / "pos_embed_3d.npz").items():
        kind, *parts = name.split("_")
        if kind == "pos2d":
            width, side = (int(part[1:]) for part in parts[1:])
            ours = position_table((width // 2, width // 2), (side, side))
        else:
            width, side, steps = (int(part[1:]) for part in parts[:3])
            grid = (steps, side, side)
            ours = video_table(width, grid)
            if parts[3] == "default":
                ours = position_table((width // 2, width // 4, width // 4), grid)
        parity.check("position tables", ours, table, atol=1e-12)
    case = load(GOLDEN / "v1_encoder_predictor.npz")
    for name, width in (("enc/pos_embed", 24), ("pred/predictor_pos_embed", case["pred/predictor_norm.weight"].size)):
        stored = video_table(width, (2, 4, 4)).astype(np.float32)[None]
        parity.check("position tables", stored, case[name], atol=1e-7)


def test_resized_position_table(parity: Parity) -> None:
    case = load(GOLDEN / "v1_pos_interpolation.npz")
    ours = resized_table(torch.from_numpy(case["pos_embed"]), (2, 4, 4), (4, 6, 6))
    parity.check("position tables: resized", ours, case["pos_embed_8f_24px"], **FORWARD)


def test_rotations(parity: Parity) -> None:
    case = load(GOLDEN / "v2_rope_rotation.npz")
    for name in [name for name in case if name.startswith("x_")]:
        x, width = torch.from_numpy(case[name]), int(name.removeprefix("x_d"))
        positions = torch.from_numpy(case[f"pos_d{width}"])
        parity.check("rotations", rotate(x, rotation(positions, width)), case[f"rotated_d{width}"], **FORWARD)
        shared = rotate(x, rotation(torch.arange(x.shape[2]), width))
        parity.check("rotations", shared, case[f"rotated_arange_d{width}"], **FORWARD)


@torch.no_grad()
def test_rotary_attention(parity: Parity) -> None:
    case = load(GOLDEN / "v2_rope_attention.npz")
    head, *widths = case["dims_head_d_h_w"].tolist()
    assert widths == [axis_width(head)] * 3
    attention = Attention(case["x"].shape[2], int(case["num_heads"]))
    attention.load_state_dict(below(case, "attn/"), strict=True)
    x, tokens = torch.from_numpy(case["x"]), torch.arange(27)
    places = places_of(tokens, (3, 3, 3))
    for k, name in enumerate(("frame_pos", "height_pos", "width_pos")):
        parity.check("rotary attention", places[:, k], case[name], atol=0)
    parity.check("rotary attention", attention(x, video_rotation(places, head)), case["out"], **FORWARD)
    masked = places_of(torch.from_numpy(case["mask"]), (3, 3, 3))
    out = attention(torch.from_numpy(case["x_masked"]), video_rotation(masked, head))
    parity.check("rotary attention", out, case["out_masked"], **FORWARD)
    steps, rows, columns = case["nonsquare_T_H_W"].tolist()
    grid = (steps, rows, columns)
    oblong = places_of(torch.arange(int(np.prod(grid))), grid)
    out = attention(torch.from_numpy(case["x_nonsquare"]), video_rotation(oblong, head))
    parity.check("rotary attention", out, case["out_nonsquare"], **FORWARD)


# --- networks ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_encoder_and_predictor_of_the_first_generation(parity: Parity) -> None:
    case = load(GOLDEN / "v1_encoder_predictor.npz")
    encoder, predictor = encoder_of(below(case, "enc/")), predictor_of(below(case, "pred/"))
    clips, found = torch.from_numpy(case["video"]), pairs(case)
    parity.check("V-JEPA: encoder", encoder.patch_embed(clips), case["patch_tokens"], **FORWARD)
    parity.check("V-JEPA: encoder", encoder(clips), case["enc_full"], **FORWARD)
    for k, (context, target) in enumerate(zip(found.context, found.target, strict=True)):
        tokens = encoder(clips, context)
        parity.check("V-JEPA: encoder", tokens, case[f"enc_ctx{k}"], **FORWARD)
        parity.check("V-JEPA: predictor", predictor(tokens, context, target, k), case[f"pred{k}"], **FORWARD)
    predictions = predict(JEPA(encoder, predictor), clips, found)
    for k, ours in enumerate(predictions):
        parity.check("V-JEPA: predictor", ours, case[f"pred{k}"], **FORWARD)


@torch.no_grad()
def test_encoder_and_predictor_of_the_second_generation(parity: Parity) -> None:
    case = load(GOLDEN / "v2_encoder_predictor.npz")
    encoder, predictor = encoder_of(below(case, "enc/")), predictor_of(below(case, "pred/"))
    clips, found = torch.from_numpy(case["video"]), pairs(case)
    parity.check("V-JEPA 2: encoder", encoder.patch_embed(clips), case["patch_tokens"], **FORWARD)
    parity.check("V-JEPA 2: encoder", encoder(clips), case["enc_full"], **FORWARD)
    longer = encoder(torch.from_numpy(case["video_longer"]))
    parity.check("V-JEPA 2: encoder", longer, case["enc_full_longer"], **FORWARD)
    for k, (context, target) in enumerate(zip(found.context, found.target, strict=True)):
        tokens = encoder(clips, context)
        parity.check("V-JEPA 2: encoder", tokens, case[f"enc_ctx{k}"], **FORWARD)
        for mask_token in range(2):
            if (name := f"pred{k}_token{mask_token}") in case:
                ours = predictor(tokens, context, target, mask_token)
                parity.check("V-JEPA 2: predictor", ours, case[name], **FORWARD)
    for k, ours in enumerate(predict(JEPA(encoder, predictor), clips, found)):
        parity.check("V-JEPA 2: predictor", ours, case[f"pred{k}_token0"], **FORWARD)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "depth", "has_unused"), [("v1_attentive_probe", 1, True), ("v2_attentive_probe_depth4", 4, False)]
)
def test_attentive_probes(name: str, depth: int, has_unused: bool, parity: Parity) -> None:
    case = load(GOLDEN / f"{name}.npz")
    heads = int(case.get("num_heads", np.array(4)))
    tokens = torch.from_numpy(case["tokens"])
    probe = AttentiveProbe(tokens.shape[2], heads, case["logits"].shape[1], depth, has_unused)
    probe.load_state_dict(below(case, "probe/"), strict=True)
    parity.check("attentive probes", probe.pooler(tokens), case["pooled"], **FORWARD)
    parity.check("attentive probes", probe(tokens), case["logits"], **FORWARD)


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_cases(name: str):
    """The kinds, the grid, batch size, number of batches and seed of a case, and its arrays."""
    case = load(GOLDEN / f"masks3d_v1_{name}.npz")
    side, frames, patch, tubelet, batch, count, seed = map(int, case["meta_crop_frames_patch_tubelet_B_nb_seed"])
    kinds = []
    rows = case["meta_cfg_rows_nblocks_smin_smax_tmin_tmax_armin_armax_maxtkeep_maxkeep"]
    for blocks, s0, s1, t0, t1, r0, r1, keep, most in rows.tolist():
        kinds.append(MaskKind(int(blocks), (s0, s1), (t0, t1), (r0, r1), keep, int(most) if most >= 0 else None))
    return case, kinds, (frames // tubelet, side // patch, side // patch), batch, count, seed


@pytest.mark.parametrize("name", ["224x16f", "96x8f", "64x4f_p8"])
def test_masks_of_the_same_seed(name: str, parity: Parity) -> None:
    case, kinds, grid, batch, count, seed = mask_cases(name)
    generator = torch.Generator().manual_seed(seed)
    for k in range(count):
        found = masks.sample_masks(kinds, grid, batch, k, generator)
        for i, kind in enumerate(kinds):
            shape = masks.block_shape(kind, grid, k)
            parity.check("masks: block sizes", np.array(shape), case[f"b{k}_block_thw{i}"], atol=0)
            parity.check("masks: indices", found.context[i], case[f"b{k}_enc{i}"], atol=0)
            parity.check("masks: indices", found.target[i], case[f"b{k}_pred{i}"], atol=0)


@pytest.mark.parametrize("name", ["224x16f", "96x8f", "64x4f_p8"])
def test_masks_of_the_same_draws(name: str, parity: Parity) -> None:
    """Every draw in its order, with its bound; none is left over."""
    case, kinds, grid, batch, count, _ = mask_cases(name)
    for k in range(count):
        draws = iter(case[f"b{k}_draws"].tolist())

        def draw(high: int, draws=draws) -> int:
            low, bound, value = next(draws)
            assert (low, bound) == (0, high)
            return value

        for i, kind in enumerate(kinds):
            steps, rows, columns = map(int, case[f"b{k}_block_thw{i}"])
            context, target = masks.place_blocks(kind, grid, batch, (steps, rows, columns), draw)
            parity.check("masks: indices", context, case[f"b{k}_enc{i}"], atol=0)
            parity.check("masks: indices", target, case[f"b{k}_pred{i}"], atol=0)
        assert next(draws, None) is None


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    # The case with the complement as target has contexts of 6 tokens.
    "full_complement": {"complement": "target", "max_keep": 6},
    "pred_full_complement": {"complement": "context"},
    "inv_block": {"is_inverted": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_mask_options_of_the_second_generation(name: str, parity: Parity) -> None:
    case, generator = load(GOLDEN / "v2_masks_options.npz"), torch.Generator().manual_seed(7)
    kind = MaskKind(4, (0.15, 0.15), **OPTIONS[name])
    for k in range(2):
        found = masks.sample_masks([kind], (2, 6, 6), 3, k, generator)
        parity.check("masks: options of V-JEPA 2", found.context[0], case[f"{name}_b{k}_enc"], atol=0)
        parity.check("masks: options of V-JEPA 2", found.target[0], case[f"{name}_b{k}_pred"], atol=0)


def test_random_tubes(parity: Parity) -> None:
    case = load(GOLDEN / "masks3d_random_tube.npz")
    for name in [name.removesuffix("_enc") for name in case if name.endswith("_enc")]:
        side, frames, percent, seed = (int("".join(filter(str.isdigit, part))) for part in name.split("_"))
        grid = (frames // 2, side // 16, side // 16)
        rng = np.random.RandomState(seed)
        found = masks.random_tubes(percent / 100, grid, len(case[f"{name}_enc"]), rng)
        parity.check("masks: random tubes", found.context[0], case[f"{name}_enc"], atol=0)
        parity.check("masks: random tubes", found.target[0], case[f"{name}_pred"], atol=0)


# --- clips ------------------------------------------------------------------------------------------------------------


def test_frame_indices(parity: Parity) -> None:
    case = load(GOLDEN / "clip_frame_indices.npz")
    columns = "vlen_videofps_fpc_fps_step_nclips_overlap_random_seed"
    for name in [name.removesuffix("/indices") for name in case if name.endswith("/indices")]:
        length, fps, frames, target, step, clips, overlaps, is_random, seed = case[f"{name}/cfg_{columns}"].tolist()
        spacing = int(step) if step > 0 else int(np.ceil(fps)) // int(target)
        rng = np.random.RandomState(int(seed)) if is_random else None
        ours = frame_indices(int(length), int(frames), spacing, int(clips), bool(overlaps), rng)
        parity.check("clips: frame indices", ours, case[f"{name}/indices"], atol=0)


# --- training ---------------------------------------------------------------------------------------------------------


def schedule_of(numbers: np.ndarray, **more: object) -> Schedule:
    per_epoch, epochs, warmup, stretch, lr, start, end, decay, decay_end, momentum, momentum_end = numbers.tolist()
    return Schedule(
        int(per_epoch * epochs), int(warmup * per_epoch), stretch, start, lr, end, decay, decay_end, momentum,
        momentum_end, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_schedules_of_the_first_generation(parity: Parity) -> None:
    case = load(GOLDEN / "v1_schedules.npz")
    for name in ("release", "tiny", "probe_k400_like"):
        schedule = schedule_of(case[f"{name}/cfg_ipe_epochs_warmup_scale_lr_startlr_finallr_wd_finalwd_ema0_ema1"])
        steps = case[f"{name}/step_index"].tolist()
        for key, ours in (("lr", schedule.lr_at), ("wd", schedule.weight_decay_at), ("momentum", schedule.momentum_at)):
            parity.check("V-JEPA: schedules", [ours(step) for step in steps], case[f"{name}/{key}"], atol=1e-12)


def constant(total: int, warmup: int, start: float, lr: float, end: float, **more: object) -> Schedule:
    """Of V-JEPA 2: weight decay and momentum stay."""
    return Schedule(
        total, warmup, 1.0, start, lr, end, 0.04, 0.04, 0.99925, 0.99925, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_schedules_of_the_second_generation(parity: Parity) -> None:
    case = load(GOLDEN / "v2_schedules.npz")
    warmup, total, start, lr, end = case["v2_primary_vitg/cfg_warmup_T_startlr_lr_finallr"].tolist()
    schedules = {"v2_primary_vitg": constant(int(total), int(warmup), start, lr, end)}
    total, lr, end = case["v2_cooldown_384/cfg_T_lr_finallr"].tolist()
    schedules["v2_cooldown_384"] = constant(int(total), 0, lr, lr, end, decay="linear")
    for name in ("ac_release", "wsd_tiny"):
        warmup, anneal, total, start, lr, end = case[f"{name}/cfg_warmup_anneal_T_startlr_lr_finallr"].tolist()
        schedules[name] = constant(int(total), int(warmup), start, lr, end, decay="linear", anneal=int(anneal))
    for name, schedule in schedules.items():
        ours = [schedule.lr_at(step) for step in case[f"{name}/step_index"].tolist()]
        parity.check("V-JEPA 2: schedules", ours, case[f"{name}/lr"], atol=1e-12)
        assert {schedule.weight_decay_at(step) for step in range(20)} == {0.04}
        assert {schedule.momentum_at(step) for step in range(20)} == {0.99925}


def test_train_steps_of_the_first_generation(parity: Parity) -> None:
    """Losses, gradients after clipping, and weights over the optimisation steps of the case."""
    case = load(GOLDEN / "v1_train_step.npz")
    hyper = "lossexp_clip_lr_startlr_finallr_wd_finalwd_ema0_ema1_ipe_epochs_warmup_scale"
    _, clip, lr, start, end, wd, wd_end, m, m_end, per_epoch, epochs, warmup, stretch = case[f"hyper_{hyper}"].tolist()
    numbers = np.array([per_epoch, epochs, warmup, stretch, lr, start, end, wd, wd_end, m, m_end])
    compare_steps("V-JEPA", case, schedule_of(numbers, clip=clip), lr, "grad_clipped", parity)


def test_train_steps_of_the_second_generation(parity: Parity) -> None:
    case = load(GOLDEN / "v2_train_step.npz")
    lr, start, wd, m, per_epoch, epochs, warmup, stretch = case["hyper_lr_startlr_wd_ema_ipe_epochs_warmup_scale"]
    numbers = np.array([per_epoch, epochs, warmup, stretch, lr, start, lr, wd, wd, m, m])
    compare_steps("V-JEPA 2", case, schedule_of(numbers), lr, "grad", parity)


def compare_steps(
    name: str, case: dict[str, np.ndarray], schedule: Schedule, lr: float, gradients: str, parity: Parity
) -> None:
    model = JEPA(encoder_of(below(case, "init/enc/")), predictor_of(below(case, "init/pred/")))
    optimizer = new_optimizer(model)
    steps = 0
    while f"step{steps}/video" in case:
        step = below(case, f"step{steps}/")
        found = pairs(case, f"step{steps}/")
        losses = train_step(model, optimizer, [(step["video"], found)], schedule, steps)
        parity.check(f"{name}: train step, loss", losses["loss"], step["loss"], **FORWARD)
        group = optimizer.param_groups[0]
        rates = [group["lr"], group["weight_decay"]]
        parity.check(f"{name}: train step, schedules", rates, [step["lr"], step["wd"]], atol=1e-12)
        if "momentum" in step:
            parity.check(f"{name}: train step, schedules", schedule.momentum_at(steps), step["momentum"], atol=1e-12)
        for part, module in (("enc", model.encoder), ("pred", model.predictor)):
            norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
            wanted = step[f"gradnorm_{part}"]
            most = schedule.clip_at(steps)
            wanted = wanted if most is None else wanted.clamp(max=most)
            parity.check(f"{name}: train step, gradients", norm, wanted, **GRADIENT)
            for key, reference in below(case, f"step{steps}/{gradients}/{part}/").items():
                gradient = module.get_parameter(key).grad
                assert gradient is not None
                parity.check(f"{name}: train step, gradients", gradient, reference, **GRADIENT)
        if "grad_is_none_mask_tokens" in step:
            ours = [token.grad is None for token in model.predictor.mask_tokens]
            assert ours == step["grad_is_none_mask_tokens"].tolist()
        steps += 1
    assert steps > 1
    for part, module in (("enc", model.encoder), ("pred", model.predictor), ("target", model.target_encoder)):
        compare_weights(name, module, below(case, f"final/{part}/"), 2.1 * lr * steps, parity)


def compare_weights(name: str, module: nn.Module, reference: dict[str, Tensor], most: float, parity: Parity) -> None:
    """All but the key part of the attention's bias, whose gradient is rounding noise; see golden/README.md."""
    state = module.state_dict()
    assert state.keys() == reference.keys()
    for key, value in reference.items():
        ours = state[key]
        if key.endswith("qkv.bias"):
            width = value.numel() // 3
            assert (ours - value).abs().max() <= most
            ours, value = (torch.cat([t[:width], t[2 * width :]]) for t in (ours, value))
        parity.check(f"{name}: train step, final weights", ours, value, atol=2e-5)


def test_targets_are_normalised_twice() -> None:
    case = load(GOLDEN / "v1_encoder_predictor.npz")
    encoder, clips = encoder_of(below(case, "enc/")), torch.from_numpy(case["video"])
    found = targets(encoder, clips)
    assert not found.requires_grad
    assert found.mean(-1).abs().max() < 1e-6
    chosen = select(found, pairs(case))
    assert torch.equal(chosen[0][1, 3], found[1, case["tgt0"][1, 3]])


def test_rates_are_set_for_what_decays_and_what_does_not() -> None:
    case = load(GOLDEN / "v1_train_step.npz")
    model = JEPA(encoder_of(below(case, "init/enc/")), predictor_of(below(case, "init/pred/")))
    optimizer = new_optimizer(model)
    set_schedule(optimizer, 0.1, 0.2)
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.predictor.named_parameters():
        assert (id(parameter) in decaying) == (parameter.ndim > 1), name
    assert id(model.predictor.mask_tokens[0]) in decaying

"""Numbers of the authors' modules against the shipped functions, at the tolerances of golden/README.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.golden import Parity, load
from vjepa.ac import pose
from vjepa.ac.losses import ac_losses, energy, predictions
from vjepa.ac.planner import RobotSettings, plan_robot
from vjepa.ac.predictor import ACPredictor, block_causal_mask
from vjepa.jepa import normalise

GOLDEN = Path(__file__).parent / "golden"
FORWARD = {"atol": 2e-5, "rtol": 1e-4}
GRADIENT = {"atol": 1e-5, "rtol": 1e-3}


def tensors(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(a) for key, a in load(GOLDEN / f"{name}.npz").items() if a.dtype.kind in "fib"}


def predictor_of(case: dict[str, Tensor], grid: tuple[int, int], heads: int, has_camera: bool = False) -> ACPredictor:
    weights = {name.removeprefix("acpred/"): a for name, a in case.items() if name.startswith("acpred/")}
    own, width = weights["predictor_embed.weight"].shape
    depth = len({name.split(".")[1] for name in weights if name.startswith("predictor_blocks")})
    sizes = weights["action_encoder.weight"].shape[1], weights["state_encoder.weight"].shape[1]
    model = ACPredictor(grid, width, own, depth, heads, *sizes, has_camera)
    model.load_state_dict(weights, strict=True)
    return model


def test_block_causal_mask(parity: Parity) -> None:
    for name, mask in load(GOLDEN / "ac_block_causal_mask.npz").items():
        frames, rows, columns, more = (int(part.lstrip("THWad")) for part in name.split("_"))
        parity.check("AC block-causal mask", block_causal_mask(frames, more + rows * columns), mask, atol=0)


@pytest.mark.parametrize(("name", "has_camera"), [("ac_predictor_forward", False), ("ac_predictor_extrinsics", True)])
def test_predictor(parity: Parity, name: str, has_camera: bool) -> None:
    case = tensors(name)
    rows, columns = case["grid_h_w"].tolist()
    model = predictor_of(case, (rows, columns), int(case["num_heads"]), has_camera)
    z, actions, states = case["z"], case["actions"], case["states"]
    cameras = case["extrinsics"] if has_camera else None
    word = "AC predictor with cameras" if has_camera else "AC predictor"
    parity.check(word, model(z, actions, states, cameras), case["out"], **FORWARD)
    first = slice(0, rows * columns), slice(0, 1)
    alone = model(
        z[:, first[0]], actions[:, first[1]], states[:, first[1]], cameras if cameras is None else cameras[:, :1]
    )
    parity.check(word, alone, case["out_first_frame_only"], **FORWARD)
    other = actions.clone()
    other[:, -1] += 1
    parity.check(word, model(z, other, states, cameras), case["out_last_action_perturbed"], **FORWARD)


def test_losses(parity: Parity) -> None:
    case = tensors("ac_losses")
    model = predictor_of(case, (2, 2), 2)
    z = normalise(case["encoder_features_raw"])
    parity.check("AC targets", z, case["targets_layernormed"], **FORWARD)
    steps = int(case["auto_steps"])
    found = predictions(model, z, case["actions"], case["states"], steps)
    parity.check("AC teacher forcing", found.teacher_forced, case["z_tf"], **FORWARD)
    parity.check("AC rollout", found.rollout, case["z_ar"], **FORWARD)
    losses = ac_losses(model, z, case["actions"], case["states"], steps)
    parity.check("AC losses", losses["loss_teacher_forcing"], case["loss_teacher_forcing"], **FORWARD)
    parity.check("AC losses", losses["loss_rollout"], case["loss_rollout"], **FORWARD)
    total = torch.stack(list(losses.values())).sum()
    parity.check("AC losses", total, case["loss_total"], **FORWARD)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(dict(model.named_parameters())) - set(gradients) == set(
        load(GOLDEN / "ac_losses.npz")["params_without_grad"].tolist()
    )
    for name, gradient in gradients.items():
        parity.check("AC gradients", gradient, case[f"grad/{name}"], **GRADIENT)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    parity.check("AC gradients", norm, case["gradnorm"], **GRADIENT)


def test_pose_arithmetic(parity: Parity) -> None:
    case = tensors("ac_pose_arithmetic")
    poses, diffs = case["poses"], case["diffs"]
    found = {
        "diffs": pose.difference(poses[:-1], poses[1:]),
        "poses_to_diff_0_1": pose.difference(poses[0], poses[1]),
        "camera_frame_poses": pose.in_camera(poses, case["extrinsics"]),
        "new_pose_from_diffs": pose.advance(poses, torch.cat([diffs, diffs[:1]]))[:, None],
        "new_pose_constant_action_0p6": pose.advance(poses, torch.full((7,), 0.6, dtype=torch.float64))[:, None],
    }
    for name, ours in found.items():
        parity.check("AC pose arithmetic", ours, case[name], atol=1e-12)


@pytest.mark.parametrize("name", ["ac_cem_planner", "ac_cem_planner_rollout2"])
def test_planner(parity: Parity, name: str) -> None:
    case = tensors(name)
    samples, elites, iterations, horizon, most, mm, ms, mmg, msg, close = case[
        "cfg_samples_topk_steps_rollout_maxnorm_mm_ms_mmg_msg_closegripper"
    ].tolist()
    fixed = tuple((int(axis), float(value)) for axis, value in case["axis_fixed"].tolist())
    settings = RobotSettings(
        int(samples), int(iterations), int(elites), int(horizon), most, mm, ms, mmg, msg, int(close), fixed
    )

    def cost(actions: Tensor) -> Tensor:
        """The toy dynamics of the case."""
        features = case["context"][0, 0].expand(actions.shape[1], -1, -1)
        state = case["pose"][0, 0].expand(actions.shape[1], -1)
        for step in range(actions.shape[2]):
            action = actions[0, :, step]
            moved = (action @ case["dyn_Ba"] + state @ case["dyn_Bs"]).view_as(features)
            features = torch.tanh(features @ case["dyn_W"] + moved)
            state = pose.advance(state, action)
        return energy(features, case["goal"][0, 0])[None]

    def noise(iteration: int) -> Tensor:
        return case["noise"][iteration].transpose(0, 1)[None]

    for count in range(1, int(iterations) + 1):
        plan = plan_robot(cost, noise, 1, replace(settings, iterations=count), torch.device("cpu"))
        parity.check("AC planner (CEM)", plan.actions[0], case["action_after_k_iterations"][count - 1], **FORWARD)
    parity.check("AC planner (CEM)", plan.costs[:, 0], case["energies_per_iteration"], **FORWARD)
    parity.check("AC planner (CEM)", plan.actions, case["final_action"].view_as(plan.actions), **FORWARD)


def test_golden_files_are_all_used() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(path.stem in text for path in GOLDEN.glob("*.npz"))
    assert len(np.unique([path.stem for path in GOLDEN.glob("*.npz")])) == 7

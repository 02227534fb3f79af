"""Poses of an arm and the differences between them.

pose [..., 7]: x, y, z in metres, extrinsic xyz Euler angles in radians, gripper in [0, 1] (1: closed). Rotations are
worked out in float64, whatever the poses are, since near a steep pitch angles lose half of their digits.
Source: V-JEPA 2, section 3.1; reference code: app/vjepa_droid/droid.py, notebooks/utils/mpc_utils.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEEP = 1e-7  # cosine of a pitch at which roll and yaw turn about the same axis


def to_matrix(angles: Tensor) -> Tensor:
    """Extrinsic xyz angles [..., 3] -> rotations [..., 3, 3] = Rz Ry Rx."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def to_angles(rotation: Tensor) -> Tensor:
    """The inverse: rotations [..., 3, 3] -> angles [..., 3], pitch in [-pi/2, pi/2]; straight up or down, yaw is 0."""
    pitch_cosine = torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    pitch = torch.atan2(-rotation[..., 2, 0], pitch_cosine)
    is_steep = pitch_cosine < STEEP
    roll = torch.where(
        is_steep,
        torch.atan2(-rotation[..., 1, 2], rotation[..., 1, 1]),
        torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2]),
    )
    yaw = torch.where(is_steep, 0.0, torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]))
    return torch.stack([roll, pitch, yaw], -1)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """The action [..., 7] that leads from one pose to another: the rotation is that from the left, R' R^T."""
    turn = to_angles(_matrix_of(after) @ _matrix_of(before).mT).to(after.dtype)
    return torch.cat([after[..., :3] - before[..., :3], turn, after[..., 6:] - before[..., 6:]], -1)


def advance(pose: Tensor, action: Tensor) -> Tensor:
    """The pose [..., 7] after an action [..., 7]; the gripper stays in [0, 1]."""
    turned = to_angles(_matrix_of(action) @ _matrix_of(pose)).to(pose.dtype)
    return torch.cat([pose[..., :3] + action[..., :3], turned, (pose[..., 6:] + action[..., 6:]).clamp(0, 1)], -1)


def in_camera(pose: Tensor, camera: Tensor) -> Tensor:
    """Poses [..., 7] seen from cameras [..., 6] (place and angles in the robot's frame); the gripper stays as it is."""
    turn = _matrix_of(camera).mT
    place = (turn @ (pose[..., :3] - camera[..., :3]).double()[..., None])[..., 0].to(pose.dtype)
    return torch.cat([place, to_angles(turn @ _matrix_of(pose)).to(pose.dtype), pose[..., 6:]], -1)


def _matrix_of(pose: Tensor) -> Tensor:
    """The rotation [..., 3, 3] of a pose, an action or a camera, float64."""
    return to_matrix(pose[..., 3:6].double())

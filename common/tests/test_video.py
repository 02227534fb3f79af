"""Clips come back with their frames, and mistakes are named."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from common.video import label, side_by_side, write_video


def test_a_clip_comes_back(tmp_path, capfd):
    frames = np.zeros((12, 32, 48, 3), np.uint8)
    frames[..., 0] = 200  # red
    frames[6:, :, :, 0], frames[6:, :, :, 2] = 0, 200  # blue
    write_video(tmp_path / "new" / "clip.webm", frames, fps=10)
    assert capfd.readouterr().err == ""
    assert os.listdir(tmp_path / "new") == ["clip.webm"]
    reader = cv2.VideoCapture(str(tmp_path / "new" / "clip.webm"))
    assert reader.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    read = []
    while (answer := reader.read())[0]:
        read.append(answer[1][..., ::-1])
    assert len(read) == 12
    assert read[0].shape == (32, 48, 3)
    assert read[0][16, 24, 0] > 150
    assert read[0][16, 24, 2] < 60
    assert read[11][16, 24, 2] > 150


def test_real_errors_of_the_encoder_are_heard(tmp_path):
    target = tmp_path / ".clip.tmp.webm"
    target.mkdir()  # stands where the encoder wants to write
    with pytest.raises(RuntimeError, match="cannot write VP9"):
        write_video(tmp_path / "clip.webm", np.zeros((2, 32, 32, 3), np.uint8), fps=10)


@pytest.mark.parametrize(
    ("shape", "dtype", "name", "fps"),
    [
        ((2, 32, 32), np.uint8, "a.webm", 10),
        ((2, 32, 32, 4), np.uint8, "a.webm", 10),
        ((0, 32, 32, 3), np.uint8, "a.webm", 10),
        ((2, 31, 32, 3), np.uint8, "a.webm", 10),
        ((2, 32, 32, 3), np.float32, "a.webm", 10),
        ((2, 32, 32, 3), np.uint8, "a.mp4", 10),
        ((2, 32, 32, 3), np.uint8, "a.webm", 0),
    ],
)
def test_bad_input_is_named(tmp_path, shape, dtype, name, fps):
    with pytest.raises(ValueError, match="expected|even"):
        write_video(tmp_path / name, np.zeros(shape, dtype), fps)
    assert os.listdir(tmp_path) == []


def test_side_by_side_holds_the_last_frame_and_label_copies():
    a, b = (
        np.full((2, 8, 4, 3), 1, np.uint8),
        np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 6, 3), np.uint8),
    )
    both = side_by_side([a, b])
    assert both.shape == (3, 8, 10, 3)
    assert (both[2, :, :4] == 1).all()
    assert (both[2, :, 4:] == 2).all()
    assert (side_by_side([b[:2], b])[2, 0, :, 0] == [1] * 6 + [2] * 6).all()
    with pytest.raises(ValueError, match="one height"):
        side_by_side([a, a[:, :4]])
    with pytest.raises(ValueError, match="one height"):
        side_by_side([])
    frame = np.full((64, 64, 3), 128, np.uint8)
    assert label(frame, "dream").max() > 250
    assert (frame == 128).all()

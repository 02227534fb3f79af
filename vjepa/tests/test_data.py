"""Generated worlds and their states, arrays, video files, and those that cannot be read."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from common import dist
from common.faults import Faults
from vjepa import crops, data, digits, videos
from vjepa.config import Config
from vjepa.data import Arrays, MicroBatches, micro_batches
from vjepa.digits import Digits
from vjepa.shapes import Shapes, bounced
from vjepa.statistics import IMAGENET
from vjepa.tests.calculation import CONFIG
from vjepa.videos import DamagedVideoError, VideoFiles


def write(path: Path, frames: int, side: int = 32) -> Path:
    """A video whose frames get brighter one after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (side, side))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((side, side, 3), 4 * number, np.uint8))
    writer.release()
    return path


def shades(clip):
    return [round(float(frame.mean()) / 4) for frame in clip]


def test_shapes_stand_where_the_state_says(monkeypatch):
    clips = Shapes(64, 8, 20, 0)
    assert clips.read(3).shape == (8, 64, 64, 3)
    assert (clips.read(3) == clips.read(3)).all()
    for index in range(20):
        ground = np.median(clips.read(index)[-1].reshape(-1, 3), 0)
        for x, y in clips.states[index, :4].reshape(2, 2):
            spot = clips.read(index)[-1, int(y * 64), int(x * 64)]
            assert np.abs(spot - ground).max() > 40
    before, after = Shapes(64, 7, 20, 0).states, clips.states  # a frame less of the same motion
    torch.testing.assert_close(before[:, :4] + before[:, 4:] / 100, after[:, :4], rtol=0, atol=1e-6)


def test_things_bounce_and_stay_inside():
    paths = bounced(np.linspace(-3, 3, 601)[:, None], np.array([1.0]))
    assert paths.min() >= 0
    assert paths.max() <= 1
    assert np.abs(np.diff(paths, axis=0)).max() == pytest.approx(0.01)


def test_digits_of_the_test_are_others_and_their_map_is_true():
    train, test = (Digits(64, 10, 8, 0, is_test) for is_test in (False, True))
    assert len(train.images) == 4000
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    clip = test.read(0)
    assert clip.shape == (10, 64, 64, 1)
    for frame, cells in zip(clip, test.maps[0], strict=True):
        found = set(np.flatnonzero(cells))
        assert 1 <= len(found) <= 2
        for cell in found:  # the middle of a digit lies in the cell: its box is not empty
            row, column = cell // digits.MAP * 8, cell % digits.MAP * 8
            assert frame[max(0, row - 8) : row + 16, max(0, column - 8) : column + 16].max() > 100
    classes = np.stack([test.digit_classes[test._drawn(index)[0]] for index in range(8)])
    assert (classes[:, 0] <= classes[:, 1]).all()


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"1,2\n3\n"), gzip.compress(b"1,2\n" * 400)[:-9]],
    ids=["text", "ragged", "cut"],
)
def test_a_damaged_file_of_digits_is_one_line(tmp_path, monkeypatch, content):
    path = tmp_path / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setattr(digits, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(ValueError, match=r"task digits: .*mnist_5k\.csv\.gz cannot be read") as found:
        digits.mnist.__wrapped__()
    assert "\n" not in str(found.value)


def test_arrays_are_checked(tmp_path):
    clips = np.zeros((4, 8, 16, 16), np.uint8)
    found = Arrays(clips, np.arange(4), 4)
    assert found.channels == 1
    assert found.read(0).shape == (4, 16, 16, 1)
    assert found.clips(0, 3).shape == (3, 4, 16, 16, 1)
    for bad, labels, words in (
        (clips.astype(np.float32), None, "uint8"),
        (clips[:, :2], None, "clips of 2 frames are shorter than frames=4"),
        (clips, np.arange(3), "labels must be"),
    ):
        with pytest.raises(ValueError, match=words):
            Arrays(bad, labels, 4)
    path = tmp_path / "clips.npz"
    np.savez(path, clips=clips)
    config = Config(task="videos", data=str(path), frames=4)
    assert len(data.load_splits(config).pretrain) == 4
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no readable .npz file"):
        data.load_splits(config)


def test_arrays_give_probes_what_videos_give_them():
    content = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None, None], (1, 20, 4, 4))
    found = Arrays(content, np.zeros(1, np.int64), 4)
    assert found.clips(0, 3)[:, 0, 0, 0, 0].tolist() == [0, 8, 16]
    assert found.clips(0, 1)[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]
    rng = np.random.default_rng(0)
    assert {int(found.clips(0, 1, rng)[0, 0, 0, 0, 0]) for _ in range(300)} == set(range(17))
    for _ in range(50):
        starts = found.clips(0, 2, rng)[:, 0, 0, 0, 0]
        assert 0 <= starts[0] <= 8 <= starts[1] <= 16
    before = rng.bit_generator.state
    Arrays(content, None, 20).clips(0, 3, rng)
    assert rng.bit_generator.state == before


def test_videos_of_class_folders_and_of_lists(tmp_path):
    for name in ("b/1.avi", "a/2.avi", "a/3.avi"):
        write(tmp_path / "videos" / name, 12)
    found = VideoFiles(tmp_path / "videos", 4, 2, None)
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [0, 0, 1])
    assert shades(found.read(0)) == [0, 2, 5, 7]
    assert found.clips(0, 2).shape == (2, 4, 32, 32, 3)
    listed = tmp_path / "list.csv"
    listed.write_text("videos/b/1.avi 7\n\nvideos/a/2.avi 0\n")
    found = VideoFiles(listed, 4, None, 5)
    assert found.labels.tolist() == [7, 0]
    assert shades(found.read(1)) == [0, 2, 5, 7]  # 10 frames a second, 5 asked for
    listed.write_text("videos/b/1.avi\n")
    assert len(VideoFiles(listed, 4, 2, None).labels) == 0
    for text, words in (("videos/b/1.avi 7\nvideos/a/2.avi\n", "labels for 1 of 2"), ("hello\n", "'hello' is no path")):
        listed.write_text(text)
        with pytest.raises(ValueError, match=words):
            VideoFiles(listed, 4, 2, None)
    with pytest.raises(ValueError, match="unknown classes, the first is b"):
        VideoFiles(tmp_path / "videos", 4, 2, None, classes=("a",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos in"):
        VideoFiles(tmp_path / "empty", 4, 2, None)


def test_a_random_clip_begins_anywhere_and_ends_inside(tmp_path):
    write(tmp_path / "long.avi", 40)
    found = VideoFiles(tmp_path, 4, 2, None)
    seen = [shades(found.read(0, np.random.default_rng(seed))) for seed in range(20)]
    assert len({row[0] for row in seen}) > 5
    assert all(row == sorted(row) and row[-1] - row[0] == 7 for row in seen)


def test_videos_that_cannot_be_read_are_named(tmp_path):
    good = write(tmp_path / "good.avi", 30)
    write(tmp_path / "short.avi", 3)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.avi").write_bytes(good.read_bytes()[:-8000])
    found = VideoFiles(tmp_path, 8, 3, None)
    reasons = {}
    for index, path in enumerate(found.paths):
        try:
            found.read(index)
        except DamagedVideoError as error:
            reasons[Path(path.decode()).name] = str(error)
    assert "is missing or no video" in reasons["text.mp4"]
    assert set(reasons) == {"text.mp4", "cut.avi"}


@pytest.mark.parametrize("length", [1, 3, 43])
def test_a_video_shorter_than_a_clip_is_filled_up_with_its_last_frame(tmp_path, length):
    write(tmp_path / "short.avi", length)
    found = VideoFiles(tmp_path, 64, None, 4)  # 2 frames apart, at 10 a second
    clip = shades(found.read(0, np.random.default_rng(0)))
    assert len(clip) == 64
    assert clip == sorted(clip)
    assert clip[length // 2 :] == [length - 1] * (64 - length // 2)
    assert found.clips(0, 2).shape == (2, 64, 32, 32, 3)


def test_damaged_videos_are_counted_and_too_many_stop_the_run(capsys):
    faults = Faults(200, "videos")
    faults.note(["a.mp4 is no video", "a.mp4 is no video", "b.mp4 is no video"])
    assert capsys.readouterr().err.count("\n") == 2
    with pytest.raises(SystemExit) as end:
        faults.note(["c.mp4 is no video"])
    assert end.value.code == 2
    assert "3 of 200 videos cannot be read, more than 1%" in capsys.readouterr().err


def test_micro_batches_are_a_function_of_the_seed_and_their_number():
    clips = Shapes(32, 4, 40, 0)
    config = replace(CONFIG, updates=6)
    whole = list(micro_batches(MicroBatches(clips, config, (2, 4, 4)), dist.setup(), 0))
    later = list(micro_batches(MicroBatches(clips, config, (2, 4, 4)), dist.setup(), 4))
    for one, two in zip(whole[4:], later, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.clips, b.clips)
            assert all(torch.equal(x, y) for x, y in zip(a.masks.context, b.masks.context, strict=True))
    first_pass = torch.cat([part.clips for parts in whole[:5] for part in parts])
    assert len({clip.numpy().tobytes() for clip in first_pass}) == 40  # each clip once a pass


def test_crops_cut_all_frames_alike(monkeypatch):
    rng = np.random.default_rng(0)
    clip = np.broadcast_to(rng.integers(0, 256, (1, 40, 60, 3), np.uint8), (4, 40, 60, 3))
    config = replace(CONFIG, augment=True, flip=True, size=(16, 16))
    for _ in range(5):
        found = crops.augmented(clip, config, rng)
        assert found.shape == (4, 16, 16, 3)
        assert (found == found[:1]).all()
    for _ in range(200):
        top, left, h, w = crops.random_crop(40, 60, (0.3, 1.0), (0.75, 1.35), rng)
        assert 0 <= top <= 40 - h
        assert 0 <= left <= 60 - w
        assert 0.28 <= h * w / 2400 <= 1.0
        assert 0.7 <= w / h <= 1.42


def test_crops_that_never_fit_fall_back_to_the_middle():
    assert crops.random_crop(180, 320, (1.777, 1.777), (0.75, 1.35), np.random.default_rng(0)) == (0, 38, 180, 243)


def test_views_are_spread_along_the_longer_side():
    clip = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None], (2, 30, 60, 1))
    config = replace(CONFIG, augment=True, size=(30, 30))
    found = crops.views(clip, config, 3)
    assert [int(view[0, 0, 0, 0]) for view in found] == [0, 15, 30]
    assert len(crops.views(clip, replace(config, augment=False), 3)) == 1


def test_input_is_normalised_and_has_channels_first():
    clip = np.full((1, 2, 4, 4, 3), 255, np.uint8)
    found = crops.to_input(torch.from_numpy(clip), IMAGENET[3], torch.device("cpu"))
    assert found.shape == (1, 3, 2, 4, 4)
    torch.testing.assert_close(
        found[0, :, 0, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_short_parts_give_what_they_have():
    assert videos.frame_indices(10, 4, 4).tolist() == [[0, 9, 9, 9]]
    with pytest.raises(ValueError, match="1 frames are too few for 2 clips"):
        videos.frame_indices(1, 4, 4, 2)


def test_more_clips_than_frames_all_begin_at_the_first_if_they_may_overlap():
    assert videos.frame_indices(3, 4, 2, 5, allow_overlap=True).tolist() == [[0, 1, 1, 1]] * 5
    with pytest.raises(ValueError, match="0 frames are too few"):
        videos.frame_indices(0, 4, 2, 5, allow_overlap=True)

"""Images from folders, arrays and a pen; crops; and micro-batches that depend on the seed and their number alone."""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from common import dist, testing
from common.faults import Faults
from common.program import RunError
from ijepa import crops, data, fashion, features
from ijepa.build import mask_config
from ijepa.config import Config
from ijepa.data import Arrays, MicroBatches, micro_batches
from ijepa.images import COMPLAINT, DamagedImageError, ImageFolder
from ijepa.shapes import Shapes
from ijepa.statistics import IMAGENET

CONFIG = Config(
    task="shapes", size=(32, 32), patch=8, batch_size=12, micro_batch_size=4, images=100, min_keep=1,
    target_scale=(0.2, 0.3), workers=0, epochs=2, encoder="nano",
)  # fmt: skip


def loaded(config: Config) -> data.Splits:
    splits = data.load_splits(config)
    assert splits is not None
    return splits


@pytest.fixture
def folder(tmp_path):
    """Two classes of 30 images each, of different sizes."""
    rng = np.random.default_rng(0)
    for k in range(60):
        place = tmp_path / "images" / f"class{k % 2}"
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{k:02d}.jpg"), rng.integers(0, 256, (40 + k, 50, 3), np.uint8))
    return tmp_path / "images"


def test_a_folder_of_classes_is_read_as_rgb(folder):
    images = ImageFolder(folder)
    assert len(images) == 60
    assert images.labels[:, 0].tolist() == [0] * 30 + [1] * 30
    cv2.imwrite(str(folder / "class0" / "00.png"), np.full((9, 7, 3), (255, 0, 0), np.uint8))  # blue
    assert ImageFolder(folder).read(1)[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="no images in class folders"):
        ImageFolder(folder / "class0")


def test_classes_of_two_folders_are_matched_by_name(tmp_path):
    for split, names in (("train", "abc"), ("val", "bc")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / split / name / "0.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "train" / "0 no images").mkdir()
    config = dataclasses.replace(CONFIG, task="imagenet", data=str(tmp_path))
    train, test = data.labelled(loaded(config))
    assert train.labels[:, 0].tolist() == [0, 1, 2]
    assert test.labels[:, 0].tolist() == [1, 2]
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "bb")
    with pytest.raises(ValueError, match="val has images of 1 unknown classes, the first is bb"):
        data.load_splits(config)


@pytest.mark.parametrize("layout", ["flat", "classes", "train", "train of classes", "deep"])
def test_a_folder_without_val_is_pretrained_on_and_not_probed(layout, folder, tmp_path):
    """Also where a link leads back up."""
    if layout == "flat":
        for path in sorted(folder.glob("*/*")):
            path.rename(folder / path.name)
    elif layout == "train":
        (folder / "class0").rename(folder / "train")
        (folder / "val" / "no class").mkdir(parents=True)
    elif layout == "train of classes":
        folder.rename(tmp_path / "train")
        folder = tmp_path
    elif layout == "deep":
        (tmp_path / "a").mkdir()
        folder.rename(tmp_path / "a" / "b")
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
        folder = tmp_path
    splits = loaded(dataclasses.replace(CONFIG, task="imagenet", data=str(folder)))
    assert len(splits.pretrain) == (30 if layout == "train" else 60)
    assert splits.pretrain.read(0).shape == (40, 50, 3)
    assert splits.shown is splits.pretrain
    with pytest.raises(ValueError, match="probes need labels"):
        data.labelled(splits)


def test_damaged_and_missing_images_are_named_counted_and_replaced(folder, capsys):
    images = ImageFolder(folder)
    (folder / "class0" / "02.jpg").write_bytes(b"no image")
    (folder / "class1" / "59.jpg").unlink()
    for row in (1, 59):
        with pytest.raises(DamagedImageError, match=r"02\.jpg|59\.jpg"):
            images.read(row)
    config = dataclasses.replace(CONFIG, task="imagenet", batch_size=60, micro_batch_size=60)
    found = next(micro_batches(MicroBatches(images, config, mask_config(config, (4, 4))), dist.setup(), 0))[0]
    assert found.images.shape == (60, 32, 32, 3)
    assert sorted(name[-6:] for name in found.faults) == ["02.jpg", "59.jpg"]
    counted = Faults(200, "images", complaint=COMPLAINT)
    counted.note(found.faults)
    counted.note(found.faults)
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "02.jpg is missing, cut short or no image; skipped" in error
    with pytest.raises(SystemExit) as end:
        Faults(60, "images").note(found.faults)
    assert end.value.code == 2
    assert "2 of 60 images cannot be read, more than 1%" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_that_are_cut_short_are_named(suffix, tmp_path, capfd):
    """A decoder shows what is left of them, with rows of one colour below, and says nothing that a program hears."""
    (tmp_path / "class").mkdir()
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), (160, 120))
    whole = cv2.imencode(suffix, image)[1].tobytes()
    # Like the thumbnail of a camera, a whole image stands in the head of the last one.
    inner = whole[:2] + b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole + whole[2:]
    cuts = [whole[: len(whole) // 3], whole[:700], whole[:-2], b"", inner[: len(whole) + len(whole) // 2], inner]
    for k, content in enumerate(cuts if suffix == ".jpg" else cuts[:4]):
        (tmp_path / "class" / f"{k}{suffix}").write_bytes(content)
    images = ImageFolder(tmp_path)
    for row in range(min(5, len(images))):
        with pytest.raises(DamagedImageError, match=rf"{row}\{suffix}"):
            images.read(row)
    assert capfd.readouterr().err == "" or suffix == ".png"
    (tmp_path / "class" / f"0{suffix}").write_bytes(whole + b"something behind the end")
    assert images.read(0).shape == (120, 160, 3)
    if suffix == ".jpg":
        np.testing.assert_array_equal(images.read(5), images.read(0))


def test_no_image_is_turned_by_what_its_camera_wrote(tmp_path):
    """As in the authors' loader."""
    content = cv2.imencode(".jpg", np.zeros((10, 30, 3), np.uint8))[1].tobytes()
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"  # orientation: a quarter turn
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    (tmp_path / "class").mkdir()
    path = tmp_path / "class" / "0.jpg"
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:])
    turned = cv2.imread(str(path))
    assert turned is not None
    assert turned.shape == (30, 10, 3)
    assert ImageFolder(tmp_path).read(0).shape == (10, 30, 3)


def test_workers_leave_the_threads_of_opencv_alone():
    class Threads(Arrays):
        def read(self, index):
            return np.full((32, 32, 3), cv2.getNumThreads(), np.uint8)

    images = Threads(np.zeros((24, 32, 32, 3), np.uint8), np.zeros(24, int))
    config = dataclasses.replace(CONFIG, workers=1, augment=False)
    found = next(micro_batches(MicroBatches(images, config, mask_config(config, (4, 4))), dist.setup(), 0))[0]
    assert found.images.unique().tolist() == [1]
    means, _ = features.encode(lambda x: x.mean((2, 3)), images, config, torch.device("cpu"), "")
    ours = crops.to_input(torch.ones(1, 1, 1, 3, dtype=torch.uint8), images.statistics, torch.device("cpu"))
    torch.testing.assert_close(means, ours.mean((2, 3)).expand(24, 3))


def test_probes_leave_damaged_images_out_with_their_labels(folder):
    for k in range(2, 12):
        shutil.copytree(folder / "class0", folder / f"class{k}")
    (folder / "class0" / "02.jpg").write_bytes(b"no image")
    images = ImageFolder(folder)
    means, rows = features.encode(lambda x: x.mean((2, 3)), images, CONFIG, torch.device("cpu"), "")
    assert len(means) == len(rows) == len(images) - 1
    assert 1 not in rows


def test_features_of_a_cpu_are_float32_whatever_was_trained_in():
    def encode_batch(x):
        assert not torch.is_autocast_enabled("cpu")
        return x.mean((2, 3))

    config = dataclasses.replace(CONFIG, precision="bfloat16")
    found, _ = features.encode(encode_batch, Shapes(32, 10, 0), config, torch.device("cpu"), "")
    assert found.dtype == torch.float32


def test_arrays_are_checked():
    pictures, labels = np.zeros((5, 8, 8), np.uint8), np.arange(5)
    arrays = Arrays(pictures, labels)
    assert (arrays.channels, arrays.read(0).shape, arrays.labels.shape) == (1, (8, 8, 1), (5, 1))
    for wrong in ((pictures.astype(float), labels), (pictures[..., None, None], labels), (pictures, labels[:4])):
        with pytest.raises(ValueError, match="data: "):
            Arrays(*wrong)


@pytest.mark.parametrize(
    ("path", "words"),
    [("", "needs data"), ("nowhere", "no images"), ("none.npz", "no readable"), ("lacks.npz", "lacks an array")]
    + [("one.npz", "without names"), ("text.npz", "no readable"), ("cut.npz", "no readable"), ("pipe.npz", "no such")]
    + [("bits.npz", "no readable"), ("objects.npz", "no readable"), ("method.npz", "no readable")],
)
def test_data_that_is_not_there_is_named(path, words, tmp_path):
    """Whatever the file may be, and however it is damaged; a pipe that nobody writes to would be read for ever."""
    np.savez(tmp_path / "lacks.npz", images=np.zeros((2, 8, 8), np.uint8))
    names = ("images", "labels", "test_images", "test_labels")
    numbers: dict[str, Any] = {name: np.arange(3000) for name in names}
    np.savez_compressed(tmp_path / "whole.npz", **numbers)
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    place = whole.index(b"images.npy") + 60
    (tmp_path / "bits.npz").write_bytes(
        whole[:place] + bytes(k ^ 255 for k in whole[place : place + 40]) + whole[place + 40 :]
    )
    (tmp_path / "method.npz").write_bytes(whole.replace(b"\x08\x00", b"\x63\x00"))
    objects: dict[str, Any] = {name: np.array([{}], object) for name in names}
    np.savez(tmp_path / "objects.npz", **objects)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    os.mkfifo(tmp_path / "pipe.npz")
    config = dataclasses.replace(CONFIG, task="imagenet", data=str(tmp_path / path) if path else "")
    with pytest.raises(ValueError, match=words) as error:
        data.load_splits(config)
    assert "\n" not in str(error.value)


def test_digits_are_whole_and_those_of_the_test_are_others():
    train, test = data.labelled(loaded(Config(task="digits", images=4000)))
    assert (len(train), len(test), train.channels) == (4000, 1000, 1)
    assert len({part.read(k).tobytes() for part in (train, test) for k in range(len(part))}) == 5000
    assert np.bincount(np.concatenate([train.labels, test.labels])[:, 0]).tolist() == [500] * 10
    zeros, ones = (
        np.mean([train.read(int(k)) for k in np.flatnonzero(train.labels[:, 0] == digit)], axis=0) for digit in (0, 1)
    )
    assert zeros[14, 14] < 30
    assert ones[14, 14] > 200  # a stroke through the middle
    some = loaded(Config(task="digits", images=200))
    assert [len(part) for part in (some.pretrain, *data.labelled(some))] == [200, 200, 50]
    np.testing.assert_array_equal(some.pretrain.read(199), train.read(199))


def write_fashion(folder: Path, packed: str = "") -> None:
    """Four files of 300 and 80 images in MNIST's format, of which one may be packed."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 80)):
        for name, array in (
            (f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8)),
            (f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10),
        ):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            content = head + array.tobytes()
            if name == packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)


@pytest.mark.parametrize("task", ["digits", "fashion"])
def test_grey_images_have_their_own_mean_and_deviation_and_the_asked_scale(task, tmp_path):
    write_fashion(tmp_path)
    for scale in (1.0, 5.0):
        images = loaded(Config(task=task, data=str(tmp_path), input_scale=scale)).pretrain
        pixels = torch.from_numpy(np.stack([images.read(k) for k in range(len(images))]))
        seen = crops.to_input(pixels, images.statistics, torch.device("cpu"))
        assert abs(float(seen.mean())) < 0.02 * scale
        assert float(seen.std()) == pytest.approx(scale, rel=0.02)


def test_fashion_is_read_from_four_files_packed_or_not(tmp_path, monkeypatch):
    write_fashion(tmp_path, "train-images-idx3-ubyte")
    splits = loaded(Config(task="fashion", data=str(tmp_path), images=240))
    train, test = data.labelled(splits)
    assert [len(part) for part in (splits.pretrain, train, test)] == [240, 240, 60]
    assert train.labels[:12, 0].tolist() == [*range(10), 0, 1]
    written = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    np.testing.assert_array_equal(train.read(7)[..., 0], written[7])
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    assert len(loaded(Config(task="fashion", images=60_000)).pretrain) == 300


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "t10k-labels-idx1-ubyte",
            None,
            "idx1-ubyte is missing; on Debian and Ubuntu, apt install dataset-fashion",
        ),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x02\1\2", "80 images in t10k-images-idx3-ubyte, 2 labels"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x50\1\2", "is no whole file of 1-dimensional bytes"),
        ("train-images-idx3-ubyte", b"<html>", "is no whole file of 3-dimensional bytes"),
        ("train-images-idx3-ubyte.gz", b"\x1f\x8b\x08\0", "cannot be read"),
    ],
)
def test_files_of_fashion_that_are_not_there_or_damaged_are_named(name, content, words, tmp_path):
    write_fashion(tmp_path, name.removesuffix(".gz") if name.endswith(".gz") else "")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        data.load_splits(Config(task="fashion", data=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_shapes_are_a_function_of_seed_and_number():
    first, again, other = Shapes(64, 20, 3), Shapes(64, 40, 3), Shapes(64, 20, 4)
    np.testing.assert_array_equal(first.labels, again.labels[:20])
    np.testing.assert_array_equal(first.read(7), again.read(7))
    assert (first.read(7) != other.read(7)).any()
    labels = Shapes(64, 2000, 0).labels
    assert labels.min() == 0
    assert labels.max(0).tolist() == [4, 4, 5, 3]


def test_more_shapes_are_more_colour():
    """The factor on the label is the one in the picture: bright red pixels rise with the number."""
    shapes = Shapes(64, 3000, 0)
    red = np.flatnonzero(shapes.labels[:, 2] == 0)[:200]
    area = [int((shapes.read(k)[..., 0].astype(int) - shapes.read(k)[..., 1] > 80).sum()) for k in red]
    assert np.corrcoef(area, shapes.labels[red, 1])[0, 1] > 0.6


def test_crops_lie_inside_and_have_the_asked_share():
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(2000):
        top, left, h, w = crops.random_crop(300, 400, (0.3, 1.0), rng)
        assert 0 <= top <= 300 - h
        assert 0 <= left <= 400 - w
        shares.append(h * w / 300 / 400)
        ratios.append(w / h)
    assert 0.29 < min(shares) < 0.32
    assert max(shares) > 0.9
    assert 0.74 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.35
    top, left, h, w = crops.random_crop(10, 400, (1.0, 1.0), rng)  # no crop fits: the middle
    assert (top, left, h, w) == (0, 193, 10, 13)


def test_the_whole_image_is_seen_without_crops_and_its_middle_with_them():
    image = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
    whole = dataclasses.replace(CONFIG, augment=False)
    np.testing.assert_array_equal(crops.centred(image, whole), crops.resize(image, 32, 32))
    np.testing.assert_array_equal(crops.augmented(image, whole, np.random.default_rng(0)), crops.resize(image, 32, 32))
    assert crops.centred(image, CONFIG).shape == (32, 32, 3)
    square = image[:32, :32]
    np.testing.assert_array_equal(crops.centred(square, CONFIG), crops.resize(square, 37, 37)[2:34, 2:34])
    np.testing.assert_array_equal(crops.centred(square, dataclasses.replace(CONFIG, centre_share=1.0)), square)
    assert crops.resize(image[..., :1], 20, 30).shape == (20, 30, 1)
    mirrored = crops.augmented(image, dataclasses.replace(whole, flip=True), np.random.default_rng(1))
    assert (mirrored == crops.resize(image, 32, 32)[:, ::-1]).all() or (mirrored == crops.resize(image, 32, 32)).all()


def test_frames_are_padded_below():
    plays = [type("Play", (), {"frames": np.full((3, 210, 160), k, np.uint8)})() for k in (7, 9)]
    frames = data.Frames(plays, IMAGENET[1])
    assert len(frames) == 6
    assert [int(frames.read(k)[0, 0, 0]) for k in range(6)] == [7, 7, 7, 9, 9, 9]
    assert frames.read(0).shape == (224, 160, 1)
    assert not frames.read(0)[210:].any()


def numbers(batches):
    return [
        (batch.images.numpy().tobytes(), [mask.tolist() for mask in (*batch.masks.context, *batch.masks.target)])
        for part in batches
        for batch in part
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_number_alone(workers):
    images = Shapes(32, 50, 0)
    whole = MicroBatches(images, CONFIG, mask_config(CONFIG, (4, 4)))
    assert whole.updates == 2 * (50 // 12)
    every = numbers(micro_batches(whole, dist.setup(), 0))
    assert len(every) == 8 * 3
    again = MicroBatches(images, dataclasses.replace(CONFIG, workers=workers), mask_config(CONFIG, (4, 4)))
    assert numbers(micro_batches(again, dist.setup(), 5)) == every[15:]
    parts = [list(micro_batches(again, dist.Ranks(rank, 3, 0, torch.device("cpu")), 6)) for rank in range(3)]
    assert [numbers([part[k]])[0] for k in range(2) for part in parts] == every[18:]


def test_an_epoch_meets_each_image_at_most_once():
    images = Arrays(np.arange(50, dtype=np.uint8)[:, None, None] * np.ones((50, 32, 32), np.uint8), np.zeros(50, int))
    batches = MicroBatches(images, dataclasses.replace(CONFIG, augment=False), mask_config(CONFIG, (4, 4)))
    seen = [int(row[0, 0, 0]) for part in micro_batches(batches, dist.setup(), 0) for b in part for row in b.images]
    first, second = seen[:48], seen[48:]
    assert len(set(first)) == len(set(second)) == 48
    assert first != second


def test_micro_batches_of_an_update_share_block_sizes():
    batches = MicroBatches(Shapes(32, 50, 0), CONFIG, mask_config(CONFIG, (4, 4)))
    for part in micro_batches(batches, dist.setup(), 0):
        assert len({batch.masks.target[0].shape for batch in part}) == 1


def test_too_few_images_for_a_batch_are_named():
    with pytest.raises(ValueError, match="a batch of 12 images needs more than the 11 there are"):
        MicroBatches(Shapes(32, 11, 0), CONFIG, mask_config(CONFIG, (4, 4)))


def test_a_pipe_with_the_name_of_an_image_is_left_alone(folder):
    os.mkfifo(folder / "class0" / "0.png")
    (folder / "class0" / "link.jpg").symlink_to(folder / "class1" / "01.jpg")
    images = ImageFolder(folder)
    assert len(images) == 61
    assert not any(b"0.png" in path for path in images.paths)


def test_images_are_normalised_by_the_numbers_of_the_config(tmp_path):
    grey, colours = np.full((9, 8, 8), 255, np.uint8), np.full((9, 8, 8, 3), 255, np.uint8)
    for name, images in (("grey", grey), ("colours", colours)):
        labels = np.zeros(9, int)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, test_images=images, test_labels=labels)
    config = dataclasses.replace(CONFIG, task="imagenet", data=str(tmp_path / "grey.npz"))
    config = dataclasses.replace(config, pixel_mean=(0.5,), pixel_std=(0.25,))
    splits = loaded(config)
    for part in (splits.pretrain, splits.shown):
        one = torch.from_numpy(part.read(0))[None]
        assert crops.to_input(one, part.statistics, torch.device("cpu")).unique().tolist() == [2.0]
    with pytest.raises(ValueError, match="1 numbers for images of 3 channels"):
        data.load_splits(dataclasses.replace(config, data=str(tmp_path / "colours.npz")))
    with pytest.raises(ValueError, match="a game is normalised by its mean frame"):
        data.load_splits(dataclasses.replace(config, task="pong"))
    with pytest.raises(ValueError, match="go together"):
        dataclasses.replace(CONFIG, pixel_mean=(0.5, 0.5, 0.5))


def test_workers_end_when_their_program_is_killed(tmp_path):
    """By SIGKILL, of which the program hears nothing. Its workers are in the middle of a batch that takes long."""
    code = """
import multiprocessing, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from common.workers import begin_worker
class Slow(Dataset):
    def __len__(self):
        return 10**6
    def __getitem__(self, k):
        time.sleep(30 if k > 1 else 0)
        return torch.zeros(1)
batches = iter(DataLoader(Slow(), batch_size=None, num_workers=2, worker_init_fn=begin_worker))
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=testing.ROOT)
    assert program.stdout is not None
    workers = [int(word) for word in program.stdout.readline().split()]
    assert len(workers) == 2
    program.kill()
    program.wait()  # and not for the end of its streams, which its workers hold too
    deadline = time.monotonic() + 2
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_dies_is_named():
    """As by a machine that is out of memory."""

    class Deadly(Shapes):
        def read(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    config = dataclasses.replace(CONFIG, workers=1)
    batches = MicroBatches(Deadly(32, 50, 0), config, mask_config(config, (4, 4)))
    with pytest.raises(RunError, match="a process that reads images died"):
        next(micro_batches(batches, dist.setup(), 0))

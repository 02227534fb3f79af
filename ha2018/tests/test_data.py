"""Frames on disk and the batches made of them, with a game of random pictures."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from common.run import Run
from common.seeding import derive_seed
from ha2018 import data
from ha2018.config import Config
from ha2018.data import Frames, Latents, MemoryEpoch, memory_batches_per_epoch, shard_path, vision_batches
from ha2018.env import TakeCover, random_episode
from ha2018.processes import Worlds
from ha2018.shards import SHARD_EPISODES
from ha2018.vision import VAE

CPU = torch.device("cpu")
EPISODES, MIN_FRAMES = 20, 5


class FakeGame(TakeCover):
    """Episodes of 3 to 11 pictures that are a function of the seed."""

    def __init__(self):
        pass

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)
        self.left = int(self.rng.integers(3, 12))

    def step(self, button):
        self.left -= 1
        return 1.0, self.left == 0

    def observe(self):
        return self.rng.integers(0, 256, (64, 64, 3), np.uint8)

    def close(self):
        pass


class FakeWorlds(Worlds):
    """All games one after another."""

    def __init__(self, parallel):
        super().__init__(FakeGame, parallel, parallel)

    def each(self, jobs):
        return (job(FakeGame()) for job in jobs)


@pytest.fixture
def run(tmp_path):
    return Run.open("ha2018", Config(), "smoke", tmp_path / "run")


@pytest.fixture
def collect(run):
    def collect(folder, workers=2, png_level=1):
        play = partial(random_episode, longest_hold=10)
        data.collect(run, folder, FakeWorlds(workers), play, EPISODES, MIN_FRAMES, 4, png_level)
        return folder

    return collect


@pytest.fixture
def folder(collect, tmp_path):
    return collect(tmp_path / "frames")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_frames_survive_the_disk_exactly(folder):
    """In the order of play, dropped episodes left out."""
    expected, actions = [], []
    for k in range(len(contents(folder)) * SHARD_EPISODES):
        seed = derive_seed(4, "collect", k) % 2**31
        episode, moves = random_episode(FakeGame(), seed, 10)
        if len(episode) > MIN_FRAMES:
            expected.append(episode)
            actions.append(moves)
    frames = Frames(folder, EPISODES)
    assert frames.lengths == [len(episode) for episode in expected[:EPISODES]]
    assert min(frames.lengths) > MIN_FRAMES
    assert len(expected) < len(contents(folder)) * SHARD_EPISODES  # some were dropped
    np.testing.assert_array_equal(frames.read(np.arange(len(frames))), np.concatenate(expected[:EPISODES]))
    np.testing.assert_array_equal(frames.actions, np.concatenate(actions[:EPISODES]))


def test_pictures_become_images_and_frames_again():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    images = data.to_images(frames, CPU)
    assert images.shape == (2, 3, 64, 64)
    torch.testing.assert_close(images[1, 2, 3, 4].item(), frames[1, 3, 4, 2] / 255, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(data.to_frames(images), frames)


def test_the_number_of_workers_changes_nothing(collect, tmp_path):
    folders = [collect(tmp_path / str(workers), workers) for workers in (1, 2, 3)]
    few, *others = [contents(folder) for folder in folders]
    for other in others:
        assert few.items() <= other.items()
    reference = Frames(folders[0], EPISODES)
    for folder in folders[1:]:
        frames = Frames(folder, EPISODES)
        np.testing.assert_array_equal(frames.read(np.arange(len(frames))), reference.read(np.arange(len(frames))))


def test_the_compression_changes_no_pixel(collect, folder, tmp_path):
    frames, plain = Frames(folder, EPISODES), Frames(collect(tmp_path / "plain", png_level=0), EPISODES)
    np.testing.assert_array_equal(frames.read(np.arange(len(frames))), plain.read(np.arange(len(plain))))


def test_interrupted_collection_is_completed_to_the_same_bytes(collect, folder):
    before = contents(folder)
    shard_path(folder, 1).unlink()
    (folder / ".shard-00001.safetensors.tmp").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    collect(folder)
    assert contents(folder) == before
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time


def test_a_damaged_picture_is_named(folder):
    frames = Frames(folder, EPISODES)
    png, offset = frames.shards[0]
    damaged = png.copy()
    damaged[offset[3] : offset[4]] = 0
    frames.shards[0] = damaged, offset
    with pytest.raises(RuntimeError, match="frame 3 of shard 0 is damaged"):
        frames.read(np.array([3]))


def test_held_out_episodes_are_others(folder):
    every, train, holdout = Frames(folder, 20), Frames(folder, 15), Frames(folder, 5, skip=15)
    assert train.lengths + holdout.lengths == every.lengths
    assert torch.equal(torch.cat([train.actions, holdout.actions]), every.actions)
    rows = np.arange(len(holdout))
    np.testing.assert_array_equal(holdout.read(rows), every.read(rows + len(train)))


def test_each_epoch_of_v_is_a_permutation(folder):
    frames = Frames(folder, EPISODES)
    per_epoch = len(frames) // 7
    batches = vision_batches(frames, 7, 0, 0)
    epochs = [np.concatenate([next(batches) for _ in range(per_epoch)]) for _ in range(2)]
    every = [picture.tobytes() for picture in frames.read(np.arange(len(frames)))]
    for epoch in epochs:
        seen = [picture.tobytes() for picture in epoch]
        assert len(set(seen)) == len(seen) == per_epoch * 7
        assert set(seen) <= set(every)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("first", [3, 100])
def test_batches_of_v_go_on_where_they_stopped(folder, first):
    frames = Frames(folder, EPISODES)
    whole, rest = vision_batches(frames, 20, 0, 0), vision_batches(frames, 20, 0, first)
    for _ in range(first):
        next(whole)
    for _ in range(9):
        np.testing.assert_array_equal(next(rest), next(whole))


def test_too_few_frames_for_v_are_named(folder):
    frames = Frames(folder, 1)
    with pytest.raises(ValueError, match=f"batch of 100 frames needs more than the {len(frames)} collected"):
        vision_batches(frames, 100, 0, 0)


def test_latents_are_written_once_and_belong_to_their_frames(folder, run, tmp_path):
    class Mean(VAE):
        def encode(self, images):
            mu = images.mean((2, 3))
            return mu, -mu

    frames, path = Frames(folder, EPISODES), tmp_path / "latents.safetensors"
    data.encode(run, Mean(1), frames, path, CPU)
    latents = data.load_latents(frames, path)
    pictures = torch.from_numpy(frames.read(np.arange(len(frames)))).float() / 255
    torch.testing.assert_close(latents.mu.float(), pictures.mean((1, 2)), rtol=0, atol=1e-3)
    assert torch.equal(latents.logvar, -latents.mu)
    assert latents.mu.dtype == torch.float16
    assert torch.equal(latents.action[:, 0], frames.actions)
    before = path.stat().st_mtime_ns
    shutil.rmtree(folder)
    data.encode(run, Mean(1), frames, path, CPU)
    assert path.stat().st_mtime_ns == before


LENGTHS = [4, 9, 6, 11, 5, 7]


@pytest.fixture
def latents():
    """The action of a frame is its number, its mu too, and the noise hardly matters."""
    n = sum(LENGTHS)
    number = torch.arange(n).float()
    return Latents(number[:, None].half().expand(n, 2), torch.full((n, 2), -20.0).half(), number[:, None], LENGTHS)


def numbers(epoch, count):
    """[B, count * length]: which frame is where."""
    return torch.cat([epoch.batch(k).action[..., 0] for k in range(count)], 1).long()


def test_the_stream_of_m_holds_every_frame_at_most_once(latents):
    count = memory_batches_per_epoch(len(latents.mu), 3, 4)
    assert count == 42 // 12
    epoch = MemoryEpoch(latents, 3, 4, 0, 0, CPU)
    frames = numbers(epoch, count)
    assert frames.shape == (3, count * 4)
    assert len(frames.unique()) == frames.numel()
    batch = epoch.batch(1)
    assert batch.z.shape == (3, 4, 2)
    torch.testing.assert_close(batch.z[..., 0], batch.action[..., 0], rtol=0, atol=0.01)


def test_chunks_go_on_where_the_last_one_ended_and_restarts_mark_first_frames(latents):
    count = memory_batches_per_epoch(len(latents.mu), 3, 4)
    epoch = MemoryEpoch(latents, 3, 4, 0, 0, CPU)
    frames = numbers(epoch, count)
    restart = torch.cat([epoch.batch(k).restart for k in range(count)], 1)
    first = set(latents.first.tolist())
    assert {int(f) for f in frames[restart == 1]} == first & {int(f) for f in frames.flatten()}
    follows = frames[:, 1:] == frames[:, :-1] + 1
    assert (follows | (restart[:, 1:] == 1)).all()  # a frame follows the one before, or begins an episode
    flat = frames.flatten()
    assert ((flat[1:] == flat[:-1] + 1) | (restart.flatten()[1:] == 1)).all()  # a row goes on with the next row


def test_epochs_of_m_differ_in_order_and_noise(latents):
    one = dataclasses.replace(latents, logvar=torch.zeros_like(latents.logvar))
    noise, order = [], []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        batch = MemoryEpoch(one, 3, 4, seed, epoch, CPU).batch(0)
        noise.append(batch.z[..., 0] - batch.action[..., 0])
        order.append(batch.action)
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(order[0], order[1])
    for k in (2, 3):
        assert not torch.isclose(noise[0], noise[k], atol=1e-3).all()
        assert not torch.equal(order[0], order[k])
    stream = MemoryEpoch(one, 3, 4, 0, 0, CPU)
    first, second = (stream.batch(k).z[..., 0] - stream.batch(k).action[..., 0] for k in (0, 1))
    assert not torch.isclose(first, second, atol=1e-3).all()


def test_the_part_of_a_rank_is_a_slice_of_the_batch(latents):
    epoch = MemoryEpoch(latents, 3, 4, 0, 0, CPU)
    whole, part = epoch.batch(2), epoch.batch(2, slice(1, 3))
    for name in ("z", "action", "restart"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:3])


def test_too_little_data_for_m_is_named(latents):
    with pytest.raises(ValueError, match="batch of 100 x 500 frames needs more than the 42 collected"):
        MemoryEpoch(latents, 100, 500, 0, 0, CPU)

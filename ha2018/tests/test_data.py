"""Frames on disk and the batches made of them, with a game of random pictures."""

import dataclasses
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from common.run import Run
from common.seeding import derive_seed
from ha2018 import data, encoding
from ha2018.config import Config
from ha2018.data import Frames, shard_path, vision_batches
from ha2018.encoding import Latents, MemoryEpoch, memory_batches_per_epoch
from ha2018.env import TakeCover
from ha2018.processes import Games
from ha2018.random_play import doom_episode
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


class FakeGames(Games):
    """All games one after another."""

    def __init__(self, parallel):
        super().__init__(FakeGame, parallel, parallel)

    def each(self, jobs):
        return (job(FakeGame()) for job in jobs)


@pytest.fixture
def collect(tmp_path):
    """collect(name, workers, png_level): the run of that name, with its frames."""

    def collect(name="run", workers=2, png_level=1):
        config = Config(seed=4, episodes=EPISODES - 5, holdout_episodes=5, min_frames=MIN_FRAMES, png_level=png_level)
        run = Run.open("ha2018", config, "smoke", tmp_path / name)
        data.collect(run, FakeGames(workers), partial(doom_episode, longest_hold=10), config)
        return run

    return collect


@pytest.fixture
def run(collect):
    return collect()


def contents(run):
    return {path.name: path.read_bytes() for path in sorted((run.folder / "frames").iterdir())}


def ends_in_one_line(capsys, *words):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert str(word) in error


def test_frames_survive_the_disk_exactly(run):
    """In the order of play, dropped episodes left out."""
    expected, actions = [], []
    for k in range(len(contents(run)) * SHARD_EPISODES):
        seed = derive_seed(4, "collect", k) % 2**31
        episode, moves = doom_episode(FakeGame(), seed, 10)
        if len(episode) > MIN_FRAMES:
            expected.append(episode)
            actions.append(moves)
    frames = Frames(run, EPISODES)
    assert frames.lengths == [len(episode) for episode in expected[:EPISODES]]
    assert min(frames.lengths) > MIN_FRAMES
    assert len(expected) < len(contents(run)) * SHARD_EPISODES  # some were dropped
    np.testing.assert_array_equal(frames.read(np.arange(len(frames))), np.concatenate(expected[:EPISODES]))
    np.testing.assert_array_equal(frames.actions, np.concatenate(actions[:EPISODES]))


def test_pictures_become_images_and_frames_again():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    images = data.to_images(frames, CPU)
    assert images.shape == (2, 3, 64, 64)
    torch.testing.assert_close(images[1, 2, 3, 4].item(), frames[1, 3, 4, 2] / 255, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(data.to_frames(images), frames)


def test_the_number_of_workers_changes_nothing(collect):
    reference, *others = (Frames(collect(f"run{workers}", workers), EPISODES) for workers in (1, 2, 3))
    for frames in others:
        assert frames.lengths == reference.lengths
        np.testing.assert_array_equal(frames.read(np.arange(len(frames))), reference.read(np.arange(len(frames))))


def test_the_compression_changes_no_pixel(collect, run):
    frames, plain = Frames(run, EPISODES), Frames(collect("plain", png_level=0), EPISODES)
    np.testing.assert_array_equal(frames.read(np.arange(len(frames))), plain.read(np.arange(len(plain))))


def test_interrupted_collection_is_completed_to_the_same_bytes(collect, run):
    before = contents(run)
    folder = run.folder / "frames"
    shard_path(folder, 1).unlink()
    (folder / ".shard-00001.safetensors.tmp").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    collect()
    assert contents(run) == before
    for path, time in times.items():
        assert path.stat().st_mtime_ns == time


def test_a_flipped_byte_anywhere_in_a_shard_is_named(run, capsys):
    path = shard_path(run.folder / "frames", 1)
    whole = path.read_bytes()
    for at in (3, len(whole) // 2, len(whole) - 100, len(whole) - 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SystemExit) as end:
            Frames(run, EPISODES)
        assert end.value.code == 2
        ends_in_one_line(capsys, path, "remove it")


def test_two_swapped_shards_are_noticed(run, capsys):
    one, two = (shard_path(run.folder / "frames", number) for number in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(SystemExit):
        Frames(run, EPISODES)
    ends_in_one_line(capsys, one, "checksum differs")


def test_a_shard_of_another_run_is_noticed(run, collect, capsys):
    other = collect("other", png_level=0)
    shutil.copy(shard_path(other.folder / "frames", 1), shard_path(run.folder / "frames", 1))
    with pytest.raises(SystemExit):
        Frames(run, EPISODES)
    ends_in_one_line(capsys, "shard-00001")


def test_a_shard_cut_short_or_missing_is_named(run, capsys):
    path = shard_path(run.folder / "frames", 0)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(SystemExit):
            Frames(run, EPISODES)
        ends_in_one_line(capsys, path)
    path.unlink()
    with pytest.raises(SystemExit):
        Frames(run, EPISODES)
    ends_in_one_line(capsys, path, "missing")


def test_shards_of_an_earlier_version_are_read_as_they_are_and_it_is_said_once(run, capsys):
    """Runs of that version have no identity, and their shards no checksum: the last 73 bytes."""
    before = Frames(run, EPISODES)
    old = dataclasses.replace(run, identity="", lock=None)
    for path in (run.folder / "frames").iterdir():
        path.write_bytes(path.read_bytes()[:-73])
    frames = Frames(old, EPISODES)
    ends_in_one_line(capsys, "earlier version")
    np.testing.assert_array_equal(frames.read(np.arange(len(frames))), before.read(np.arange(len(before))))
    path = shard_path(run.folder / "frames", 1)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SystemExit):
        Frames(old, EPISODES)
    assert str(path) in capsys.readouterr().err


def test_held_out_episodes_are_others(run):
    every, train, holdout = Frames(run, 20), Frames(run, 15), Frames(run, 5, skip=15)
    assert train.lengths + holdout.lengths == every.lengths
    assert torch.equal(torch.cat([train.actions, holdout.actions]), every.actions)
    rows = np.arange(len(holdout))
    np.testing.assert_array_equal(holdout.read(rows), every.read(rows + len(train)))


def test_each_epoch_of_v_is_a_permutation(run):
    frames = Frames(run, EPISODES)
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
def test_batches_of_v_go_on_where_they_stopped(run, first):
    frames = Frames(run, EPISODES)
    whole, rest = vision_batches(frames, 20, 0, 0), vision_batches(frames, 20, 0, first)
    for _ in range(first):
        next(whole)
    for _ in range(9):
        np.testing.assert_array_equal(next(rest), next(whole))


def test_too_few_frames_for_v_are_named():
    with pytest.raises(ValueError, match="batch of 100 frames needs more than the 99 collected"):
        data.vision_updates(Config(), 99)
    assert data.vision_updates(Config(), 3_080_900) == 30_809  # the published run
    assert encoding.memory_updates(Config(), 3_080_900) == 20 * 61


class Mean(VAE):
    """A V whose mu is the mean colour; it counts the frames that it encodes."""

    encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        mu = images.mean((2, 3))
        return mu, -mu


def test_latents_hold_all_that_m_needs_of_the_frames(run, monkeypatch):
    """mu and logvar, actions and lengths, in files of a few episodes."""
    monkeypatch.setattr(encoding, "LATENT_EPISODES", 4)
    frames, vae = Frames(run, EPISODES - 5), Mean(1)
    pictures = torch.from_numpy(frames.read(np.arange(len(frames)))).float() / 255
    assert not encoding.has_latents(run.folder, "train", EPISODES - 5)
    encoding.encode(run, vae, frames, "train", CPU)
    assert encoding.has_latents(run.folder, "train", EPISODES - 5)
    assert len(list((run.folder / "latents").iterdir())) == 4
    shutil.rmtree(run.folder / "frames")
    latents = encoding.load_latents(run, "train", EPISODES - 5)
    torch.testing.assert_close(latents.mu.float(), pictures.mean((1, 2)), rtol=0, atol=1e-3)
    assert torch.equal(latents.logvar, -latents.mu)
    assert latents.mu.dtype == torch.float16
    assert torch.equal(latents.action[:, 0], frames.actions)
    assert latents.lengths == frames.lengths
    assert run.stage_seconds["encode"] > 0


def test_encoding_goes_on_where_it_was_killed(run, monkeypatch):
    monkeypatch.setattr(encoding, "LATENT_EPISODES", 4)
    frames, vae = Frames(run, EPISODES - 5), Mean(1)
    encoding.encode(run, vae, frames, "train", CPU)
    folder = run.folder / "latents"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    lost = encoding.latents_path(run.folder, "train", 2)
    lost.unlink()
    (folder / f".{lost.name}.tmp").write_bytes(b"half")
    again = Mean(1)
    encoding.encode(run, again, frames, "train", CPU)
    assert again.encoded == sum(frames.lengths[8:12])
    for path, content in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == times[path]) is (path != lost)


def test_damaged_or_swapped_latents_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "LATENT_EPISODES", 4)
    encoding.encode(run, Mean(1), Frames(run, 8), "train", CPU)
    one, two = (encoding.latents_path(run.folder, "train", number) for number in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    flipped = second[:500] + bytes([second[500] ^ 4]) + second[501:]
    for left, right, named in ((second, first, one), (first, flipped, two), (first, second[:-80], two)):
        one.write_bytes(left)
        two.write_bytes(right)
        with pytest.raises(SystemExit) as end:
            encoding.load_latents(run, "train", 8)
        assert end.value.code == 2
        ends_in_one_line(capsys, named, "remove it")


def test_first_frames_are_those_of_the_first_episodes(run, capsys):
    encoding.encode(run, Mean(1), Frames(run, 8), "train", CPU)
    latents = encoding.load_latents(run, "train", 8)
    encoding.save_first_frames(run, latents, 5)
    bank, frames = encoding.load_first_frames(run.folder, run.identity, CPU)
    assert frames == len(latents.mu)
    torch.testing.assert_close(bank.mu, latents.mu[latents.first[:5]].float(), rtol=0, atol=1e-4)
    assert bank.logvar.shape == (5, 3)
    path = run.folder / encoding.FIRST_FRAMES
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    with pytest.raises(SystemExit):
        encoding.load_first_frames(run.folder, run.identity, CPU)
    ends_in_one_line(capsys, path)


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

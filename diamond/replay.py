"""What was played, on disk as bytes that are never encoded again, and the segments that are drawn from it.

A row is a step: the frame before it [3, H, W] uint8, action, raw reward, end, trunc. An episode is one life. The frame
behind the last step of an episode lies in a file of its own. Rows are only ever appended, so a run that goes on
forgets those behind its checkpoint and nothing else.
Source: paper, Appendix; reference code: data/dataset.py, batch_sampler.py, segment.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.files import reserve
from common.program import RunError
from diamond.denoiser import Segments
from diamond.frames import to_float
from diamond.reward_end import Play

FINALS = 256  # last frames that the file grows by
FACTS = np.dtype(
    [("action", "<i4"), ("reward", "<f4"), ("end", "u1"), ("trunc", "u1"), ("begins", "u1"), ("check", "<u4")]
)


@dataclass(frozen=True)
class Step:
    """One step of play: the frame before it [3, H, W], what was done, what came; `final` is the frame behind it if it
    was the last of its episode."""

    frame: NDArray[np.uint8]
    action: int
    reward: float
    end: bool
    trunc: bool
    final: NDArray[np.uint8] | None = None


def episode_probabilities(lengths: Sequence[int], weights: Sequence[float] | None) -> NDArray[np.float64]:
    """The chance of each episode, oldest first, to be drawn.

    `weights` are those of groups of equal count by age, the rest goes to the newest group, all episodes of a group
    alike. With fewer episodes than groups, or without weights, by length. Source: reference code: batch_sampler.py.
    """
    count = len(lengths)
    if weights is None or count < len(weights):
        by_length = np.asarray(lengths, np.float64)
        return by_length / by_length.sum()
    sizes = [count // len(weights)] * (len(weights) - 1)
    sizes.append(count - sum(sizes))
    return np.concatenate([np.full(size, weight / size) for size, weight in zip(sizes, weights, strict=True)])


def choose(
    lengths: Sequence[int],
    weights: Sequence[float] | None,
    batch_size: int,
    sequence_length: int,
    random: np.random.RandomState,
    *,
    beyond_end: bool = False,
) -> NDArray[np.int64]:
    """Segments [batch_size, 3]: episode, start, stop. A negative start is padding, as is a stop behind the episode.

    A step is drawn uniformly, then where it lies in the segment; without `beyond_end` no segment ends behind its
    episode. Source: reference code: batch_sampler.py.
    """
    probabilities = episode_probabilities(lengths, weights)
    episode = random.choice(len(lengths), size=batch_size, replace=True, p=probabilities)
    of_length = np.asarray(lengths)[episode]
    step = random.randint(0, of_length)
    shift = random.randint(0, sequence_length, size=batch_size)
    latest = step - shift + sequence_length
    stop = latest if beyond_end else np.minimum(of_length, step + 1 + shift)
    start = stop - sequence_length
    return np.stack([episode, start, start + sequence_length], axis=1)


def padded(rows: NDArray[Any], start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows start to stop of an episode, zeros where it has none, and which of them are real."""
    inside = slice(max(start, 0), min(stop, len(rows)))
    found = np.zeros((stop - start, *rows.shape[1:]), rows.dtype)
    is_real = np.zeros(stop - start, bool)
    place = slice(inside.start - start, inside.stop - start)
    found[place], is_real[place] = rows[inside], True
    return found, is_real


class Replay:
    """All steps of a run in files below `folder`, room for `capacity` of them; `count` are there."""

    def __init__(self, folder: Path, capacity: int, image_size: int) -> None:
        self.folder, self.capacity = folder, capacity
        self.shape = (3, image_size, image_size)
        folder.mkdir(parents=True, exist_ok=True)
        self.frames: NDArray[np.uint8] = _mapped(folder / "frames.bin", np.dtype(np.uint8), (capacity, *self.shape))
        self.finals: NDArray[np.uint8] = self._finals(0)
        self.facts: NDArray[Any] = _mapped(folder / "facts.bin", FACTS, (capacity,))
        self.count = 0
        self.starts: list[int] = []

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode, oldest first; the last one may still go on."""
        return np.diff([*self.starts, self.count]).tolist()

    @property
    def has_open_episode(self) -> bool:
        """Whether the last step ended nothing."""
        return self.count > 0 and not (self.facts["end"][self.count - 1] or self.facts["trunc"][self.count - 1])

    def add(self, step: Step) -> None:
        """Append a step."""
        row, begins = self.count, not self.has_open_episode
        # Deviation D2: the reference code stores frames that went through the truncating quantiser.
        self.frames[row] = step.frame
        if begins:
            self.starts.append(row)
            # Room before the end: `plays` indexes the last frame of an open episode too, although nothing reads it.
            if len(self.starts) > len(self.finals):
                self.finals = self._finals(len(self.starts))
        if step.final is not None:
            self.finals[len(self.starts) - 1] = step.final
        facts = (step.action, step.reward, step.end, step.trunc, begins)
        self.facts[row] = (*facts, 0)
        self.facts["check"][row] = self._check(row, len(self.starts) - 1)
        self.count += 1

    def flush(self) -> None:
        """Make the rows durable: a checkpoint must not know more of them than the disk."""
        for array in (self.frames, self.finals, self.facts):
            assert isinstance(array, np.memmap)
            array.flush()

    def restore(self, count: int) -> None:
        """Go on with the first `count` rows. Raises RunError naming the first one that is damaged."""
        self.count = count
        self.starts = np.flatnonzero(self.facts["begins"][:count]).tolist()
        self.finals = self._finals(len(self.starts))
        episodes = np.cumsum(self.facts["begins"][:count]) - 1
        for row, episode in enumerate(episodes.tolist()):
            if episode < 0 or self.facts["check"][row] != self._check(row, episode):
                raise RunError(f"{self.folder}: step {row} of the replay is damaged; remove {self.folder.parent}")

    def _finals(self, episodes: int) -> NDArray[np.uint8]:
        """Room for the last frames of at least so many episodes."""
        rooms = -(-max(episodes, 1) // FINALS) * FINALS
        path = self.folder / "finals.bin"
        there = path.stat().st_size // int(np.prod(self.shape)) if path.exists() else 0
        return _mapped(path, np.dtype(np.uint8), (max(rooms, there), *self.shape))

    def _check(self, row: int, episode: int) -> int:
        facts = self.facts[row : row + 1].copy()
        facts["check"] = 0
        found = zlib.crc32(self.frames[row].tobytes(), zlib.crc32(facts.tobytes()))
        is_last = facts["end"][0] or facts["trunc"][0]
        return zlib.crc32(self.finals[episode].tobytes(), found) if is_last else found

    def segments(self, picks: NDArray[np.int64], device: torch.device, share: slice) -> Segments:
        """Those of `picks` [B, 3] that are in `share`; counts are of all of them."""
        parts = self._parts(picks[share])
        return Segments(*self._tensors(parts, device), self._count(picks, share, device))

    def plays(self, picks: NDArray[np.int64], device: torch.device, share: slice) -> Play:
        """The same with what R learns from."""
        mine = picks[share]
        parts = self._parts(mine)
        rewards, ends, truncs = (
            torch.from_numpy(np.stack([self._facts(name, pick) for pick in mine])).to(device)
            for name in ("reward", "end", "trunc")
        )
        last = np.array([self.starts[episode] + self.lengths_of(episode) - 1 for episode, _, _ in mine])
        return Play(
            *self._tensors(parts, device),
            self._count(picks, share, device),
            reward=rewards,
            end=ends,
            trunc=truncs,
            final_obs=to_float(torch.from_numpy(self.finals[mine[:, 0]]).to(device)),
            has_final=torch.from_numpy(self.facts["end"][last] == 1).to(device),
        )

    def lengths_of(self, episode: int) -> int:
        """Steps of one episode."""
        stop = self.starts[episode + 1] if episode + 1 < len(self.starts) else self.count
        return stop - self.starts[episode]

    def rows_of(self, episode: int) -> slice:
        """Where an episode lies."""
        start = self.starts[episode]
        return slice(start, start + self.lengths_of(episode))

    def _facts(self, name: str, pick: NDArray[np.int64]) -> NDArray[Any]:
        return padded(self.facts[name][self.rows_of(pick[0])], pick[1], pick[2])[0]

    def _parts(self, picks: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        frames, real, action = [], [], []
        for pick in picks:
            frame, is_real = padded(self.frames[self.rows_of(pick[0])], pick[1], pick[2])
            frames.append(frame)
            real.append(is_real)
            action.append(self._facts("action", pick))
        return np.stack(frames), np.stack(action), np.stack(real)

    @staticmethod
    def _tensors(
        parts: tuple[NDArray[Any], ...], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Padding becomes 0, the middle grey, only after the conversion."""
        frames, action, real = (torch.from_numpy(part).to(device, non_blocking=True) for part in parts)
        return to_float(frames) * real[:, :, None, None, None], action.long(), real

    def _count(self, picks: NDArray[np.int64], share: slice, device: torch.device) -> torch.Tensor:
        """Real frames at each index in the whole batch, divided by the processes that share it."""
        time = np.arange(picks[0, 2] - picks[0, 1])
        at = picks[:, 1:2] + time
        lengths = np.array([self.lengths_of(episode) for episode in picks[:, 0]])[:, None]
        count = ((at >= 0) & (at < lengths)).sum(0)
        processes = len(picks) / (share.stop - share.start)
        return torch.from_numpy(count / processes).float().to(device)


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array in a file, which is sparse until it is written."""
    size = dtype.itemsize * int(np.prod(shape))
    if not path.exists() or path.stat().st_size != size:
        reserve(path, size)
    return np.memmap(path, dtype, "r+", shape=shape)

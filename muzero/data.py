"""The replay: rows of self-play in a ring, drawn in proportion to their priority, turned into training batches.

W lanes (worlds of this process), L rows of the ring, H frames of history, K unroll steps. Row t holds what all worlds
did at step t: frame, action, reward, value and policy of the search. Written once, kept in files of many rows.
Source: paper, Appendix G, and pseudocode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from common.files import atomic_write
from muzero import targets
from muzero.env import Space, stacked
from muzero.unroll import Batch

Array = NDArray[Any]
UNKNOWN = np.iinfo(np.int64).max // 2  # the end of an episode that has not ended
BLOCK = 256  # priorities are summed by blocks, so that a draw need not add up all of them


@dataclass(frozen=True)
class Picks:
    """Positions drawn: step [B], lane [B], probability [B]."""

    step: Array
    lane: Array
    probability: Array

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Rules:
    """How targets are made: signed discount, n (None: to the end), K, exponents of priority and its correction; whether
    a finished game keeps its outcome (`targets.value_targets`)."""

    discount: float
    td_steps: int | None
    unroll_steps: int
    priority_exponent: float
    priority_correction: float
    keeps_outcome: bool


def columns(space: Space) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of what a row holds of each world."""
    actions = (space.actions,)
    return {
        "frame": (space.frame_shape, space.dtype),
        "action": ((), "int32"),
        "reward": ((), "float32"),
        "value": ((), "float32"),
        "policy": (actions, "float32"),
        "legal": (actions, "bool"),
        "start": ((), "int64"),
        "is_over": ((), "bool"),
    }


def bytes_of(space: Space, lanes: int, rows: int) -> int:
    """Memory of a replay of that size."""
    kinds = [*columns(space).values(), ((), "int64"), ((), "bool"), ((), "float64")]  # and `end`, `is_cut`, `priority`
    return rows * lanes * sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in kinds)


class Replay:
    """Rows [L, W, ...] of the last L steps."""

    def __init__(self, space: Space, lanes: int, rows: int, rules: Rules) -> None:
        self.space, self.lanes, self.rows, self.rules = space, lanes, rows, rules
        self.count = 0  # steps written so far
        shape = (rows, lanes)
        self.arrays: dict[str, Array] = {
            name: np.zeros((*shape, *part), kind) for name, (part, kind) in columns(space).items()
        }
        self.end = np.full(shape, UNKNOWN, np.int64)
        self.is_cut = np.zeros(shape, np.bool_)
        self.priority = np.zeros((-(-rows * lanes // BLOCK), BLOCK), np.float64)
        self.sums = np.zeros(len(self.priority))
        self.dirty: set[int] = set()
        self.start = np.zeros(lanes, np.int64)  # of the episode under way
        self.admitted = np.zeros(lanes, np.int64)  # steps of each lane that have been looked at for their priority

    def begin(self, frames: Array, legal: Array, is_over: Array) -> None:
        """Write what the worlds show [W, ...] at the next step; `finish` completes the row."""
        row = self.count % self.rows
        self._set_priority(np.full(self.lanes, row), np.arange(self.lanes), 0.0)
        values = {"frame": frames, "legal": legal, "is_over": is_over, "start": self.start}
        for name, value in values.items():
            self.arrays[name][row] = value
        self.end[row], self.is_cut[row] = UNKNOWN, False

    def finish(self, action: Array, value: Array, policy: Array, reward: Array, ends: tuple[Array, Array]) -> None:
        """Complete the row with the search and its consequence, [W, ...]; ends: terminated and truncated."""
        row = self.count % self.rows
        for name, part in {"action": action, "value": value, "policy": policy, "reward": reward}.items():
            self.arrays[name][row] = part
        was_over = self.arrays["is_over"][row]
        self.count += 1
        for lane in np.flatnonzero(ends[0]):
            self._close(int(lane), self.count, is_cut=False)
            self.start[lane] = self.count
        for lane in np.flatnonzero(was_over):
            self._close(int(lane), self.count - 1, is_cut=True)
            self.start[lane] = self.count
        self._admit()

    def observe(self, step: Array, lane: Array) -> Array:
        """What h is given at these positions [B], float32 [B, *obs_shape]."""
        history = self.space.history
        steps = step[:, None] - np.arange(history - 1, -1, -1)
        start = self.arrays["start"][step % self.rows, lane][:, None]
        oldest = self.count - self.rows + (1 if step.max(initial=0) == self.count else 0)
        is_there = (steps >= start) & (steps >= oldest)
        rows, lanes = steps % self.rows, lane[:, None]
        frames = self.arrays["frame"][rows, lanes]
        frames[~is_there] = 0
        had_action = (steps - 1 >= start) & (steps - 1 >= oldest)
        actions = np.where(had_action, self.arrays["action"][(steps - 1) % self.rows, lanes], -1)
        return stacked(frames, actions, self.space)

    @property
    def size(self) -> int:
        """Positions that can be drawn."""
        return int(np.count_nonzero(self.priority))

    def choose(self, count: int, rng: np.random.Generator) -> Picks:
        """`count` positions with replacement, each with probability priority / sum."""
        for block in self.dirty:
            self.sums[block] = self.priority[block].sum()
        self.dirty.clear()
        edges = np.cumsum(self.sums)
        drawn = rng.random(count) * edges[-1]
        block = np.minimum(np.searchsorted(edges, drawn, "right"), len(edges) - 1)
        inside = np.cumsum(self.priority[block], 1)
        place = (inside <= (drawn - (edges - self.sums)[block])[:, None]).sum(1)
        # Rounding may step over the last position that counts.
        last = BLOCK - 1 - np.argmax(self.priority[block][:, ::-1] > 0, 1)
        place = np.minimum(place, last)
        row, lane = np.divmod(block * BLOCK + place, self.lanes)
        newest = (self.count - 1) % self.rows
        step = self.count - 1 - (newest - row) % self.rows
        return Picks(step, lane, self.priority[block, place] / edges[-1])

    def window(self, picks: Picks, length: int) -> dict[str, Array]:
        """rewards and values [B, length] from each position on, left [B], is_cut [B]."""
        steps = picks.step[:, None] + np.arange(length)
        rows, lanes = np.minimum(steps, self.count - 1) % self.rows, picks.lane[:, None]
        row = picks.step % self.rows
        return {
            "rewards": self.arrays["reward"][rows, lanes].astype(np.float64),
            "values": self.arrays["value"][rows, lanes].astype(np.float64),
            "left": self.end[row, picks.lane] - picks.step,
            "is_cut": self.is_cut[row, picks.lane],
        }

    def length(self, picks: Picks) -> int:
        """Columns that the targets of these positions need."""
        rules = self.rules
        if rules.td_steps is not None:
            return rules.unroll_steps + rules.td_steps + 1
        return int((self.end[picks.step % self.rows, picks.lane] - picks.step).max()) + 1

    def value_targets(self, picks: Picks, values: Array | None = None) -> Array:
        """z [B, K + 1]; values [B, length]: of another network, in place of the stored ones."""
        window = self.window(picks, self.length(picks))
        if values is not None:
            window["values"] = values
        rules = self.rules
        return targets.value_targets(
            **window,
            discount=rules.discount,
            td_steps=rules.td_steps,
            unroll_steps=rules.unroll_steps,
            keeps_outcome=rules.keeps_outcome,
        )

    def batch(self, picks: Picks, rng: np.random.Generator, device: torch.device) -> Batch:
        """The training batch at these positions; actions behind an end are random."""
        unroll = self.rules.unroll_steps
        row = picks.step % self.rows
        left, is_cut = self.end[row, picks.lane] - picks.step, self.is_cut[row, picks.lane]
        steps = picks.step[:, None] + np.arange(unroll + 1)
        rows, lanes = np.minimum(steps, self.count - 1) % self.rows, picks.lane[:, None]
        acted = np.arange(unroll) < left[:, None]
        random = rng.integers(self.space.actions, size=(len(picks), unroll))
        before = self.arrays["reward"][(steps - 1) % self.rows, lanes]
        before[:, 0] = 0  # not learnt
        mask = targets.policy_mask(left, is_cut, unroll)
        probability = importance = np.ones(len(picks))
        if self.rules.priority_exponent:
            probability = picks.probability
            importance = targets.importance_weights(probability, self.size, self.rules.priority_correction)
        parts: dict[str, tuple[Array, type]] = {
            "obs": (self.observe(picks.step, picks.lane), np.float32),
            "actions": (np.where(acted, self.arrays["action"][rows[:, :-1], lanes], random), np.int64),
            "value": (self.value_targets(picks), np.float32),
            "reward": (targets.reward_targets(before, left), np.float32),
            "policy": (self.arrays["policy"][rows, lanes] * mask[..., None], np.float32),
            "policy_mask": (mask, np.float32),
            "mask": (targets.known_mask(left, is_cut, unroll), np.float32),
            "weights": (importance, np.float32),
        }
        return Batch(
            **{name: torch.from_numpy(np.ascontiguousarray(x, kind)).to(device) for name, (x, kind) in parts.items()}
        )

    # --- on disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, files: Sequence[list[int]]) -> list[list[int]]:
        """Write the rows since the last file into one of their own. Returns [first, behind last] of every file needed.

        Rows never change, so each is written once; files whose rows have all left the ring are no longer listed.
        """
        known = files[-1][1] if files else max(0, self.count - self.rows)
        kept = [list(file) for file in files if file[1] > self.count - self.rows]
        if known < self.count:
            first = max(known, self.count - self.rows)
            steps = np.arange(first, self.count) % self.rows
            content = {name: np.ascontiguousarray(array[steps]) for name, array in self.arrays.items()}
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / _name(first, self.count), safetensors.numpy.save(content))
            kept.append([first, self.count])
        return kept

    def load(self, folder: Path, count: int, files: Sequence[Sequence[int]], state: Mapping[str, Array]) -> None:
        """The inverse of `save` and `small`. Raises ValueError for a file that is missing or does not fit."""
        for first, last in files:
            path = folder / _name(first, last)
            try:
                content = safetensors.numpy.load_file(path)
                for name, array in self.arrays.items():
                    array[np.arange(first, last) % self.rows] = content[name]
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is missing or of another size or world ({reason})") from None
        self.count = count
        self.start[:], self.admitted[:] = state["lane_start"], state["admitted"]
        rows = self._known_rows()
        self.end[rows], self.is_cut[rows] = state["end"].T, state["is_cut"].T
        self._flat_priority()[rows] = state["priority"].T
        self.dirty = set(range(len(self.priority)))

    def small(self) -> dict[str, Array]:
        """What changes after a row has been written, lanes first: [W] and [W, rows]; belongs into the checkpoint."""
        rows = self._known_rows()
        return {
            "lane_start": self.start.copy(),
            "admitted": self.admitted.copy(),
            "end": self.end[rows].T,
            "is_cut": self.is_cut[rows].T,
            "priority": self._flat_priority()[rows].T,
        }

    def _known_rows(self) -> Array:
        return np.arange(max(0, self.count - self.rows), self.count) % self.rows

    def _flat_priority(self) -> Array:
        return self.priority.reshape(-1)[: self.rows * self.lanes].reshape(self.rows, self.lanes)

    def _close(self, lane: int, end: int, *, is_cut: bool) -> None:
        """The episode of a lane that began at `start` has its end, counted in actions."""
        last = end + 1 if is_cut else end  # the last observation before a cut has a row too
        rows = np.arange(max(int(self.start[lane]), self.count - self.rows), last) % self.rows
        self.end[rows, lane], self.is_cut[rows, lane] = end, is_cut

    def _admit(self) -> None:
        """Give positions their priority once their targets are known: at the end, or K + n steps later."""
        rules = self.rules
        ahead = UNKNOWN if rules.td_steps is None else rules.unroll_steps + rules.td_steps
        # The last observation before a cut closes the episode; until then its actions wait.
        ready = np.maximum(self.start, max(0, self.count - ahead))
        steps, lanes = [], []
        for lane in np.flatnonzero(ready > self.admitted):
            new = np.arange(max(self.admitted[lane], self.count - self.rows), ready[lane])
            new = new[~self.arrays["is_over"][new % self.rows, lane]]
            steps.append(new)
            lanes.append(np.full(len(new), lane))
            self.admitted[lane] = ready[lane]
        if not steps:
            return
        picks = Picks(np.concatenate(steps), np.concatenate(lanes), np.empty(0))
        if not len(picks):
            return
        row, priority = picks.step % self.rows, np.ones(len(picks))
        if rules.priority_exponent:
            z = self.value_targets(picks)[:, 0]
            # Not 0, which would mean that it can never be drawn.
            priority = targets.priorities(self.arrays["value"][row, picks.lane], z, rules.priority_exponent) + 1e-6
        self._set_priority(row, picks.lane, priority)

    def _set_priority(self, row: Array, lane: Array, value: Array | float) -> None:
        place = row * self.lanes + lane
        self.priority.reshape(-1)[place] = value
        self.dirty.update(np.unique(place // BLOCK).tolist())


def _name(first: int, last: int) -> str:
    return f"rows-{first:012d}-{last:012d}.safetensors"


def forget(folder: Path, files: Sequence[Sequence[int]]) -> None:
    """Remove files of rows that no kept checkpoint lists."""
    names = {_name(first, last) for first, last in files}
    for path in folder.glob("rows-*.safetensors"):
        if path.name not in names:
            path.unlink()

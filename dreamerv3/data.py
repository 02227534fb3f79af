"""The replay: every step of every environment in files of the run folder, windows drawn from it, latents refreshed.

Shapes: W environments, B windows, L = T + 1 rows of a window, D deter, S stoch. Row t: step t of all W.

What was observed is written once. The stored latents are overwritten again and again: the old value of a row goes into
a journal before its first change after a checkpoint, so that a killed run finds the latents of its checkpoint.
Source: paper, "Replay buffer"; reference code: replay.py, selectors.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import user_error
from common.files import disk_is_full
from dreamerv3.spaces import ActionSpace, ObsSpaces, Sizes

Rows = dict[str, NDArray[Any]]
Picks = NDArray[np.int64]

# Rows beyond the capacity, which may be written between the older of two kept checkpoints and a kill.
MARGIN = 4096
RESERVED_ROWS = 256
_DTYPES = {"image": np.uint8, "float": np.float32, "discrete": np.int32}


@dataclass(frozen=True)
class Batch:
    """Rows 1 to T of B windows, [B, T, ...] each, and what row 0 supplies.

    obs by name; prev_action [B, T] int or [B, T, A]: the action before each observation; reward: received on arriving
    at it; is_first, is_last, is_terminal bool. start_h [B, D], start_z [B, S] (classes): the stored latents of row 0.
    """

    obs: Mapping[str, Tensor]
    prev_action: Tensor
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    start_h: Tensor
    start_z: Tensor


class Ratio:
    """How many updates are due at an agent step: `per_step` on average, one at the first call; never any if it is 0.

    Source: reference code, when.py. `previous` is its state, a step number or None.
    """

    def __init__(self, per_step: float) -> None:
        self.per_step = per_step
        self.previous: float | None = None

    def __call__(self, step: int) -> int:
        """Updates due now; `step` counts agent steps and only grows."""
        if not self.per_step:
            return 0
        if self.previous is None:
            self.previous = step
            return 1
        due = int((step - self.previous) * self.per_step)
        self.previous += due / self.per_step if due else 0
        return due


class Replay:
    """Uniform windows with an online queue in front.

    A window of L rows may begin at any row of any environment, also across episodes. Every L-th window of each
    environment is queued as well and served once, before uniform ones, so that new data is seen soon.
    """

    def __init__(
        self,
        folder: Path,
        spaces: ObsSpaces,
        actions: ActionSpace,
        sizes: Sizes,
        envs: int,
        capacity: int,
        length: int,
        *,
        is_known: bool = False,
    ) -> None:
        """`capacity` in windows over all `envs`; `length` T: trained rows of a window. Opens or makes the files.

        is_known: a checkpoint relies on the files; one line and exit code 2 if they are not those of these settings.
        """
        self.envs, self.capacity, self.length = envs, capacity, length + 1
        self.count = 0  # rows
        self.windows = 0  # that have been admitted, evicted ones included
        self.served = 0  # of the queue
        self.slots = -(-capacity // envs) + self.length + MARGIN
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        layout: dict[str, tuple[tuple[int, ...], type[Any]]] = {
            f"obs/{name}": (space.shape, _DTYPES[space.kind]) for name, space in spaces.items()
        }
        layout["action"] = ((), np.int32) if actions.is_discrete else ((actions.size,), np.float32)
        layout |= {"reward": ((), np.float32)}
        layout |= dict.fromkeys(("is_first", "is_last", "is_terminal"), ((), np.bool_))
        layout |= {"h": ((sizes.deter,), np.float32), "z": ((sizes.stoch,), np.uint8)}
        self.arrays = {name: self._file(name, shape, kind, is_known) for name, (shape, kind) in layout.items()}
        self.latents = {name: self.arrays[name].reshape(self.slots * envs, -1) for name in ("h", "z")}
        self._record = np.dtype([("row", np.int64), ("h", np.float32, sizes.deter), ("z", np.uint8, sizes.stoch)])
        self._journal: Path | None = None
        self._touched = np.ones(self.slots * envs, np.bool_)
        self._saved_count = 0

    def _file(self, name: str, shape: tuple[int, ...], kind: type[Any], is_known: bool) -> NDArray[Any]:
        """A sparse file of [slots, W, ...]; only rows that were written take space."""
        path, full = self._path(name), (self.slots, self.envs, *shape)
        size = int(np.prod(full)) * np.dtype(kind).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            if is_known:
                user_error(f"{path}: the replay is of another size or world: {found} bytes, expected {size}")
            with open(path, "wb") as file:
                file.truncate(size)
        return np.memmap(path, kind, "r+", shape=full)

    def _reserve(self, slot: int) -> None:
        """Give the files room for the next rows. A write into a mapped file on a full disk would be a bus error."""
        rows = min(RESERVED_ROWS, self.slots - slot)
        for name, array in self.arrays.items():
            try:
                with open(self._path(name), "r+b") as file:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), slot * array[0].nbytes, rows * array[0].nbytes)
            except OSError as error:
                self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        """One line and exit code 2 if there is no room on the disk."""
        if not disk_is_full(error):
            raise error
        user_error(f"{self.folder}: disk full, no room for the replay; free some and start again")

    def _path(self, name: str) -> Path:
        return self.folder / f"{'-'.join(quote(part, safe='') for part in name.split('/', 1))}.bin"

    # --- what goes in -------------------------------------------------------------------------------------------------

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """One step of all environments: [W, ...] for every array; its windows still have to be admitted."""
        if rows.keys() != self.arrays.keys():
            raise ValueError(f"replay: expected {sorted(self.arrays)}, got {sorted(rows)}")
        slot = self.count % self.slots
        if slot % RESERVED_ROWS == 0:
            self._reserve(slot)
        for name, array in self.arrays.items():
            array[slot] = rows[name]
        self._touched[slot * self.envs : (slot + 1) * self.envs] = True  # newer than the checkpoint
        self.count += 1

    def admit(self) -> None:
        """Let the next environment's window that ends with the last row into the pool, if there are L rows."""
        if self.count >= self.length:
            self.windows += 1

    # --- what comes out -----------------------------------------------------------------------------------------------

    def window(self, number: int) -> tuple[int, int]:
        """(environment, first row) of the window admitted as `number`."""
        return number % self.envs, number // self.envs

    def queued(self) -> list[tuple[int, int]]:
        """(environment, first row) of the windows that wait in the online queue, the oldest first."""
        full, part = divmod(self.windows, self.envs)
        # First rows 1, 1 + L, 1 + 2L, ...: reference code.
        total = (full + self.length - 2) // self.length * self.envs + (part if full % self.length == 1 else 0)
        waiting = (divmod(k, self.envs) for k in range(self.served, total))
        return [(env, 1 + turn * self.length) for turn, env in waiting]

    def choose(self, count: int, rng: np.random.Generator) -> Picks:
        """[count, 2] windows as (environment, first row): the queue's first, then uniform ones by `rng`."""
        oldest = max(0, self.windows - self.capacity)
        waiting = self.queued()
        picks: list[tuple[int, int]] = []
        for pick in waiting[:count]:
            self.served += 1
            if pick[1] * self.envs + pick[0] >= oldest:
                picks.append(pick)
        numbers = rng.integers(oldest, self.windows, count - len(picks))
        picks += [self.window(int(number)) for number in numbers]
        return np.array(picks, np.int64).reshape(count, 2)

    def read(self, picks: Picks) -> Rows:
        """The rows of the windows, [B, L, ...] each, with the flags that the trained sequence has.

        is_first is set on row 0, and is_last wherever the next row begins an episode.
        """
        env, slot = picks[:, :1], (picks[:, 1:] + np.arange(self.length)) % self.slots
        found: Rows = {name: array[slot, env] for name, array in self.arrays.items() if name not in self.latents}
        for name, array in self.arrays.items():
            if name in self.latents:
                found[name] = array[slot[:, 0], env[:, 0]]
        found["is_last"][:, :-1] |= found["is_first"][:, 1:]
        found["is_first"][:, 0] = True
        return found

    def batch(self, picks: Picks, device: torch.device) -> Batch:
        """The windows as the learner takes them."""
        rows = self.read(picks)

        def put(array: NDArray[Any]) -> Tensor:
            found = torch.from_numpy(array)
            # Out of pageable memory a copy would wait for what the GPU still has to do.
            return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)

        obs = {name.removeprefix("obs/"): put(rows[name][:, 1:]) for name in rows if name.startswith("obs/")}
        flags = (put(rows[name][:, 1:]) for name in ("reward", "is_first", "is_last", "is_terminal"))
        latents = (put(rows[name]) for name in ("h", "z"))
        return Batch(obs, put(rows["action"][:, :-1]), *flags, *latents)

    # --- stored latents -----------------------------------------------------------------------------------------------

    def refresh(self, picks: Picks, h: NDArray[np.float32], z: NDArray[np.uint8]) -> None:
        """Store fresh latents of rows 1 to T of the windows: h [B, T, D], z [B, T, S] classes; not of evicted rows."""
        row = picks[:, 1:] + np.arange(1, self.length)
        alive = (row >= self.count - self.slots).reshape(-1)
        ids = ((row % self.slots) * self.envs + picks[:, :1]).reshape(-1)[alive]
        self._remember(ids)
        self.latents["h"][ids] = h.reshape(-1, h.shape[-1])[alive]
        self.latents["z"][ids] = z.reshape(-1, z.shape[-1])[alive]

    def _remember(self, ids: NDArray[np.int64]) -> None:
        """Write the latents that the checkpoint knows into the journal before their first change."""
        new = np.unique(ids[~self._touched[ids]])
        if self._journal is None or not len(new):
            return
        records = np.empty(len(new), self._record)
        records["row"], records["h"], records["z"] = new, self.latents["h"][new], self.latents["z"][new]
        rest = memoryview(records.tobytes())
        try:
            with open(self._journal, "ab", buffering=0) as file:
                while rest:  # a nearly full disk takes a part
                    rest = rest[file.write(rest) :]
        except OSError as error:
            self._end(error)
        self._touched[new] = True

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @property
    def must_save(self) -> bool:
        """Whether a checkpoint is due, or else rows that it needs could be overwritten."""
        return self.count - self._saved_count >= MARGIN // 2 - 1 and self.count > self.slots - MARGIN

    def state(self) -> dict[str, int]:
        """What a checkpoint holds besides the files."""
        return {"count": self.count, "windows": self.windows, "served": self.served}

    def flush(self) -> None:
        """Put all rows on the disk; a checkpoint must not know more of them than the disk."""
        for array in self.arrays.values():
            assert isinstance(array, np.memmap)
            array.flush()

    def saved(self, step: int, kept: Sequence[int]) -> None:
        """A checkpoint of `step` has been written; those of the steps `kept` exist. Starts its journal."""
        self._journal = self._journal_path(step)
        self._journal.write_bytes(b"")
        self._touched[:] = False
        self._saved_count = self.count
        for path in self.folder.glob("undo-*.bin"):
            if int(path.stem[5:]) < min(kept, default=step):
                path.unlink()

    def restore(self, step: int, state: Mapping[str, int]) -> None:
        """Go back to the checkpoint of `step`: its counts, and its latents by the journals written since."""
        self.count, self.windows, self.served = (state[name] for name in ("count", "windows", "served"))
        journals = [path for path in self.folder.glob("undo-*.bin") if int(path.stem[5:]) >= step]
        for path in sorted(journals, reverse=True):
            content = path.read_bytes()
            whole = len(content) // self._record.itemsize * self._record.itemsize  # a kill may have cut the last one
            records = np.frombuffer(content[:whole], self._record)
            self.latents["h"][records["row"]] = records["h"]
            self.latents["z"][records["row"]] = records["z"]
        for path in journals:
            if path != self._journal_path(step):
                path.unlink()
        self.flush()
        self.saved(step, [0])

    def _journal_path(self, step: int) -> Path:
        return self.folder / f"undo-{step:09d}.bin"

    def episode(self, env: int) -> list[NDArray[Any]]:
        """The actions of the current episode of one environment so far, the first first.

        Raises ValueError if the episode is longer than the rows that are kept.
        """
        found: list[NDArray[Any]] = []
        for row in range(self.count - 1, max(-1, self.count - 1 - self.slots), -1):
            found.append(self.arrays["action"][row % self.slots, env])
            if self.arrays["is_first"][row % self.slots, env]:
                return found[::-1]
        raise ValueError(
            f"{self.folder}: the {len(found)} rows kept of environment {env} hold no beginning of an episode"
        )

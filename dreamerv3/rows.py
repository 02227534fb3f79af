"""The rows of the replay in files of the run folder: room reserved, content checked, latents brought back after a kill.

Shapes: W environments. Row t is step t of all W and lies in slot t mod `slots`. Place: slot * W + environment.

What was observed is written once. Latents are overwritten again and again: the old value goes into a journal before
its first change after a checkpoint, so that a killed run finds the latents of its checkpoint. Both carry checksums,
which a resumed run compares before it trains on them.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from common.config import user_error
from common.files import disk_is_full
from common.program import RunError

Array = NDArray[Any]
Layout = Mapping[str, tuple[tuple[int, ...], type[Any]]]  # shape of one environment's part of a row, and its type

# Slots beyond the rows kept, which may be written between the older of two kept checkpoints and a kill.
MARGIN = 4096
RESERVED_ROWS = 256


class Rows:
    """The newest `kept` rows of W environments, in memory-mapped files."""

    def __init__(
        self,
        folder: Path,
        observed: Layout,
        latents: Layout,
        envs: int,
        kept: int,
        *,
        identity: str = "",
        is_known: bool = False,
    ) -> None:
        """`identity`: words for the run; rows of another run do not pass for its own.

        is_known: a checkpoint relies on the files; one line and exit code 2 if they are not those of these settings.
        Without a checkpoint they are made anew.
        """
        self.folder, self.envs, self.kept, self.slots = folder, envs, kept, kept + MARGIN
        self.count = 0  # rows ever added
        if folder.exists() and not is_known:
            shutil.rmtree(folder)  # of an earlier life of the run, whose journals would be taken for ours
        folder.mkdir(parents=True, exist_ok=True)
        self._is_known = is_known
        self._maps: dict[str, np.memmap[Any, Any]] = {}
        self._observed = {name: self._open(name, (envs, *shape), dtype) for name, (shape, dtype) in observed.items()}
        self.latents = {name: self._open(name, (envs, *shape), dtype) for name, (shape, dtype) in latents.items()}
        self.arrays = self._observed | self.latents  # by name, [slots, W, ...]
        self._checks = self._open("checks", (), np.uint32)
        self._latent_checks = self._open("latent-checks", (envs,), np.uint32).reshape(-1)
        self._salt = zlib.crc32(identity.encode())
        self._by_place = {name: array.reshape(self.slots * envs, -1) for name, array in self.latents.items()}
        parts = [(name, array.dtype, array.shape[1]) for name, array in self._by_place.items()]
        self._record = np.dtype([("place", np.int64), ("check", np.uint32), *parts])
        self._reserved = 0  # slots
        self._journal: Path | None = None
        # Places whose latents have changed since the checkpoint, or are newer than it.
        self._touched = np.ones(self.slots * envs, np.bool_)
        self._saved_count = 0

    @property
    def oldest(self) -> int:
        """The oldest row that is certainly there, also after a kill."""
        return max(0, self.count - self.kept)

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, row: Mapping[str, Array]) -> None:
        """The next row: [W, ...] for every array. Raises ValueError for other names, RunError if the disk is full."""
        if row.keys() != self.arrays.keys():
            raise ValueError(f"replay: expected {sorted(self.arrays)}, got {sorted(row)}")
        slot = self.count % self.slots
        if slot >= self._reserved:
            self._reserve(slot + RESERVED_ROWS)
        for name, array in self.arrays.items():
            array[slot] = row[name]
        self._checks[slot] = self._check_of_row(self.count)
        self._touched[slot * self.envs : (slot + 1) * self.envs] = True
        self.count += 1

    def overwrite(self, rows: NDArray[np.int64], envs: NDArray[np.int64], latents: Mapping[str, Array]) -> None:
        """New latents [N, ...] of rows [N] of environments [N]; those of rows that are gone are left out."""
        alive = rows >= self.oldest
        places = ((rows % self.slots) * self.envs + envs)[alive]
        self._remember(places)
        for name, values in latents.items():
            self._by_place[name][places] = values.reshape(len(rows), -1)[alive]

    def _remember(self, places: NDArray[np.int64]) -> None:
        """Write the latents that the checkpoint knows into the journal before their first change."""
        new = np.unique(places[~self._touched[places]])
        if self._journal is None or not len(new):
            return
        records = np.empty(len(new), self._record)
        records["place"], records["check"] = new, self._latent_checks[new]
        for name, array in self._by_place.items():
            records[name] = array[new]
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
        return self.count - self._saved_count >= MARGIN // 2 - 1 and self.count > self.kept

    def flush(self) -> None:
        """Put all rows on the disk; a checkpoint must not know more of them than the disk."""
        for place in np.flatnonzero(self._touched[: min(self.count, self.slots) * self.envs]):
            self._latent_checks[place] = self._check_of_latents(place)
        for array in self._maps.values():
            array.flush()

    def saved(self, step: int, steps: Sequence[int]) -> None:
        """A checkpoint of `step` has been written; those of `steps` exist. Starts the journal of the new one."""
        self._journal = self._journal_path(step)
        try:
            self._journal.write_bytes(b"")
        except OSError as error:
            self._end(error)
        self._touched[:] = False
        self._saved_count = self.count
        for number, path in self._journals():
            if number < min(steps, default=step):
                path.unlink()

    def restore(self, step: int, count: int) -> None:
        """Go back to the checkpoint of `step` with `count` rows: their latents by the journals written since.

        One line and exit code 2 if a row is not what it was.
        """
        self.count = count
        self._reserve(min(count, self.slots))  # a copy of the folder may have holes
        journals = [(number, path) for number, path in self._journals() if number >= step]
        for _, path in reversed(journals):
            content = path.read_bytes()
            whole = len(content) // self._record.itemsize * self._record.itemsize  # a kill may have cut the last one
            records = np.frombuffer(content[:whole], self._record)
            records = records[(records["place"] >= 0) & (records["place"] < len(self._touched))]
            self._latent_checks[records["place"]] = records["check"]
            for name, array in self._by_place.items():
                array[records["place"]] = records[name]
        self._verify()
        for array in self._maps.values():
            array.flush()
        for number, path in journals:
            if number != step:
                path.unlink()
        self.saved(step, [0])

    def _journals(self) -> list[tuple[int, Path]]:
        """The journals by the number of their checkpoint, the oldest first."""
        return sorted((int(path.stem[5:]), path) for path in self.folder.glob("undo-*.bin"))

    def _journal_path(self, step: int) -> Path:
        return self.folder / f"undo-{step:09d}.bin"

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_of_row(self, row: int) -> int:
        """CRC-32 of what was observed, of the number of the row and of the run."""
        check = zlib.crc32(row.to_bytes(8, "little"), self._salt)
        for array in self._observed.values():
            check = zlib.crc32(array[row % self.slots], check)
        return check

    def _check_of_latents(self, place: int | np.integer[Any]) -> int:
        check = self._salt
        for array in self._by_place.values():
            check = zlib.crc32(array[place], check)
        return check

    def _verify(self) -> None:
        for row in range(self.oldest, self.count):
            slot = row % self.slots
            places = range(slot * self.envs, (slot + 1) * self.envs)
            is_right = self._checks[slot] == self._check_of_row(row)
            if not is_right or any(self._latent_checks[place] != self._check_of_latents(place) for place in places):
                user_error(
                    f"{self.folder}: row {row} of the replay is damaged or of another run; "
                    f"remove {self.folder.parent} to start again"
                )

    # --- files --------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self.folder / f"{'-'.join(quote(part, safe='') for part in name.split('/', 1))}.bin"

    def _open(self, name: str, shape: tuple[int, ...], dtype: type[Any]) -> Array:
        """A sparse file of [slots, ...] as an array; only slots that were reserved take space."""
        path, full = self._path(name), (self.slots, *shape)
        size = int(np.prod(full)) * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            if self._is_known:
                user_error(f"{path}: the replay is of another size or world: {found} bytes, expected {size}")
            with open(path, "wb") as file:
                file.truncate(size)
        self._maps[name] = np.memmap(path, dtype, "r+", shape=full)
        return np.asarray(self._maps[name])

    def _reserve(self, stop: int) -> None:
        """Give the files room for the slots before `stop`. A write into a mapped file on a full disk is a bus error."""
        start, stop = self._reserved, min(stop, self.slots)
        for name, array in self._maps.items():
            size = array[0].nbytes
            try:
                with open(self._path(name), "r+b") as file:
                    if hasattr(os, "posix_fallocate") and stop > start:
                        os.posix_fallocate(file.fileno(), start * size, (stop - start) * size)
            except OSError as error:
                self._end(error)
        self._reserved = stop

    def _end(self, error: OSError) -> NoReturn:
        """A full disk ends the run; its last checkpoint stays good."""
        if not disk_is_full(error):
            raise error
        raise RunError(f"{self.folder}: disk full, no room for the replay; free some and start again") from error

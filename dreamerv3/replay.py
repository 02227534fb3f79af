"""The replay: windows of the rows of every environment, drawn uniformly behind an online queue, and the train ratio.

Shapes: W environments, B windows, L = T + 1 rows of a window, D deter, S stoch. Row t: step t of all W.
Source: paper, "Replay buffer"; reference code: replay.py, selectors.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.program import RunError
from dreamerv3.rows import Layout, Rows
from dreamerv3.spaces import ActionSpace, ObsSpaces, Sizes

Arrays = dict[str, NDArray[Any]]
Picks = NDArray[np.int64]

_DTYPES: dict[str, type[Any]] = {"image": np.uint8, "float": np.float32, "discrete": np.int32}


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
        identity: str = "",
        is_known: bool = False,
    ) -> None:
        """`capacity` in windows over all `envs`; `length` T: trained rows of a window. The rest as in `Rows`."""
        self.envs, self.capacity, self.length = envs, capacity, length + 1
        self.windows = 0  # that have been admitted, evicted ones included
        self.served = 0  # of the queue
        observed: Layout = {
            **{f"obs/{name}": (space.shape, _DTYPES[space.kind]) for name, space in spaces.items()},
            "action": ((), np.int32) if actions.is_discrete else ((actions.size,), np.float32),
            "reward": ((), np.float32),
            **dict.fromkeys(("is_first", "is_last", "is_terminal"), ((), np.bool_)),
        }
        latents: Layout = {"h": ((sizes.deter,), np.float32), "z": ((sizes.stoch,), np.uint8)}
        kept = -(-capacity // envs) + self.length
        self.rows = Rows(folder, observed, latents, envs, kept, identity=identity, is_known=is_known)

    # --- what goes in -------------------------------------------------------------------------------------------------

    def add(self, row: Mapping[str, NDArray[Any]]) -> None:
        """One step of all environments: [W, ...] for every array; its windows still have to be admitted."""
        self.rows.add(row)

    def admit(self) -> None:
        """Let the next environment's window that ends with the last row into the pool, if there are L rows."""
        if self.rows.count >= self.length:
            self.windows += 1

    # --- what comes out -----------------------------------------------------------------------------------------------

    def window(self, number: int) -> tuple[int, int]:
        """(environment, first row) of the window admitted as `number`."""
        return number % self.envs, number // self.envs

    def queued(self) -> list[tuple[int, int]]:
        """(environment, first row) of the windows that wait in the online queue, the oldest first.

        The reference code queues the windows with first rows 1, 1 + L, 1 + 2L, ... of each environment. Nothing but
        `windows` and `served` has to be kept for that. Window n begins at row n // W of environment n mod W, so of n
        admitted ones each environment has those of first rows 0 to f - 1, with f = n // W, and the first n mod W
        environments also that of row f. The rows 1 + kL among 0 to f - 1 are those with k <= (f - 2) / L, which are
        (f - 2) // L + 1 = (f + L - 2) // L; row f itself is one more if f = 1 (mod L). They come turn by turn: queued
        window i is the (i // W)-th of environment i mod W.
        """
        full, part = divmod(self.windows, self.envs)
        total = (full + self.length - 2) // self.length * self.envs + (part if full % self.length == 1 else 0)
        waiting = (divmod(k, self.envs) for k in range(self.served, total))
        return [(env, 1 + turn * self.length) for turn, env in waiting]

    def choose(self, count: int, rng: np.random.Generator) -> Picks:
        """[count, 2] windows as (environment, first row): the queue's first, then uniform ones by `rng`.

        A queued window is served as long as its rows are there, also if it is too old to be drawn.
        """
        waiting = self.queued()[:count]
        self.served += len(waiting)
        picks = [(env, first) for env, first in waiting if first >= self.rows.oldest]
        numbers = rng.integers(max(0, self.windows - self.capacity), self.windows, count - len(picks))
        picks += [self.window(int(number)) for number in numbers]
        return np.array(picks, np.int64).reshape(count, 2)

    def read(self, picks: Picks) -> Arrays:
        """The rows of the windows, [B, L, ...] each, with the flags that the trained sequence has.

        is_first is set on row 0, and is_last wherever the next row begins an episode. Latents are those of row 0.
        """
        env, slot = picks[:, :1], (picks[:, 1:] + np.arange(self.length)) % self.rows.slots
        found: Arrays = {}
        for name, array in self.rows.arrays.items():
            is_latent = name in self.rows.latents
            found[name] = array[slot[:, 0], env[:, 0]] if is_latent else array[slot, env]
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
        # Deviation D13: the first previous action is that of row 0; for some weeks of 2024 the reference code took
        # that of the batch before.
        return Batch(obs, put(rows["action"][:, :-1]), *flags, *latents)

    def refresh(self, picks: Picks, h: NDArray[np.float32], z: NDArray[np.uint8]) -> None:
        """Store fresh latents of rows 1 to T of the windows: h [B, T, D], z [B, T, S] classes."""
        row = picks[:, 1:] + np.arange(1, self.length)
        env = np.broadcast_to(picks[:, :1], row.shape)
        latents: Arrays = {"h": h.reshape(row.size, -1), "z": z.reshape(row.size, -1)}
        self.rows.overwrite(row.reshape(-1), env.reshape(-1), latents)

    def episode(self, env: int) -> list[NDArray[Any]]:
        """The actions of the current episode of one environment so far, the first first.

        Raises RunError if the episode is longer than the rows that are kept.
        """
        rows, found = self.rows, list[NDArray[Any]]()
        for row in range(rows.count - 1, rows.oldest - 1, -1):
            found.append(rows.arrays["action"][row % rows.slots, env])
            if rows.arrays["is_first"][row % rows.slots, env]:
                return found[::-1]
        raise RunError(
            f"{rows.folder}: the {len(found)} rows kept of environment {env} hold no beginning of an episode"
        )

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, int]:
        """What a checkpoint holds besides the files."""
        return {"count": self.rows.count, "windows": self.windows, "served": self.served}

    def restore(self, step: int, state: Mapping[str, int]) -> None:
        """Go back to the checkpoint of `step`, whose `state` this is."""
        self.windows, self.served = state["windows"], state["served"]
        self.rows.restore(step, state["count"])

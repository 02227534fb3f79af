"""The real frames that imagined games begin with: many are drawn at once, with R's state behind them, and used up.

Source: reference code: envs/world_model_env.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.seeding import derive_seed
from diamond.config import Config
from diamond.imagination import Beginnings
from diamond.replay import Replay, choose
from diamond.reward_end import RewardEndModel


class Pool:
    """`initial_batches` batches of segments; where they are used up, as many are drawn from what is there by then."""

    def __init__(self, replay: Replay, model: RewardEndModel, config: Config, ranks: dist.Ranks) -> None:
        self.replay, self.model, self.config, self.ranks = replay, model, config, ranks
        self.share = dist.share(config.batch_size, ranks)
        self.size = config.initial_batches * (self.share.stop - self.share.start)
        self.number, self.used = 0, self.size
        self.picks = np.zeros((self.size, 3), np.int64)
        self.h = self.c = torch.zeros(self.size, config.reward_lstm, device=ranks.device)

    def take(self, count: int) -> Beginnings:
        """The next `count` beginnings."""
        parts = []
        while count:
            if self.used == self.size:
                self._fill()
            now = slice(self.used, min(self.used + count, self.size))
            self.used, count = now.stop, count - (now.stop - now.start)
            picks = self.picks[now]
            found = self.replay.segments(picks, self.ranks.device, slice(0, len(picks)))
            parts.append(Beginnings(found.obs, found.action, self.h[now], self.c[now]))
        names = ("obs", "action", "h", "c")
        return Beginnings(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @torch.no_grad()
    def _fill(self) -> None:
        """Draw the whole pool, and let R see the known transitions of each beginning."""
        config, device = self.config, self.ranks.device
        size = config.initial_batches * config.batch_size
        random = np.random.RandomState(derive_seed(config.seed, "beginnings", self.ranks.rank, self.number) % 2**32)
        length, history = self.replay.lengths, config.history
        self.picks = choose(length, config.age_weights, size, history, random)[: self.size]
        state = []
        for part in np.array_split(self.picks, config.initial_batches):
            found = self.replay.segments(part, device, slice(0, len(part)))
            if history > 1:
                state.append(self.model(found.obs[:, :-1], found.action[:, :-1], found.obs[:, 1:])[2])
            else:
                state.append((self.h.new_zeros(1, len(part), config.reward_lstm),) * 2)
        self.h, self.c = (torch.cat([pair[k][0] for pair in state]) for k in range(2))
        self.number, self.used = self.number + 1, 0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs, of all processes."""
        ranks, total = self.ranks, self.size * self.ranks.world_size
        place = torch.tensor([[self.number, self.used]], device=ranks.device)
        parts = {"picks": torch.from_numpy(self.picks).to(ranks.device), "pool_h": self.h, "pool_c": self.c}
        found = {name: dist.gather_rows(part, total, ranks) for name, part in parts.items()}
        return found | {"place": dist.gather_rows(place, ranks.world_size, ranks)}

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        mine = dist.share(self.size * self.ranks.world_size, self.ranks)
        self.picks = extra["picks"][mine].cpu().numpy()
        self.h, self.c = extra["pool_h"][mine], extra["pool_c"][mine]
        self.number, self.used = extra["place"][self.ranks.rank].tolist()

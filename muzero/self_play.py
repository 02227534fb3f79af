"""Acting by search: the learned model as the search sees it, true rules in its place, and self-play in many worlds.

B positions, W worlds, A actions. Source: paper, Algorithm of Appendix B to D and pseudocode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import dist
from common.run import check_finite
from common.seeding import derive_seed
from muzero import search, search_cuda, search_fast
from muzero.agent import STAGE
from muzero.boards import LineGame
from muzero.config import Config
from muzero.data import Replay
from muzero.env import Space, Worlds
from muzero.judges import Mover
from muzero.networks import Network, for_inference, refresh
from muzero.search import Model, Outcome, Result, Root, Settings
from muzero.targets import temperature_by_move, temperature_by_update, visit_policy
from muzero.transform import decode

Array = NDArray[Any]


class LearnedModel:
    """g and f of a network; every step has the same discount, and nothing ends: absorbing states are learnt."""

    def __init__(self, network: Network, discount: float) -> None:
        self.network, self.discount = network, discount

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome:
        state, reward = self.network.dynamics(embedding, action)
        logits, value = self.network.predict(state)
        discount = torch.full_like(logits[:, 0], self.discount)
        return Outcome(decode(reward), discount, logits, decode(value), state)

    def root(self, obs: Tensor, legal: Tensor | None) -> Root:
        """obs [B, ...]; legal [B, A] bool."""
        state = self.network.represent(obs)
        logits, value = self.network.predict(state)
        return Root(logits, decode(value), state, None if legal is None else ~legal)


class TrueRules:
    """The rules of a board in the place of g, with h and f at every position: AlphaZero's search, for comparison.

    An embedding is [stones, turn, is over]. After the end nothing changes, nothing is won and the value is 0. Boards
    and trees are on the host, wherever the network is.
    """

    def __init__(self, network: Network, game: LineGame) -> None:
        self.network, self.game = network, game
        self.device = next(network.parameters()).device

    def __call__(self, embedding: Tensor, action: Tensor) -> Outcome:
        state = embedding.numpy()
        stones, turn, was_over = state[:, :-2], state[:, -2], state[:, -1] > 0
        is_legal = self.game.legal(stones)[np.arange(len(stones)), action.numpy()]
        plays = ~was_over & is_legal
        after = stones.copy()
        after[plays] = self.game.place(stones[plays], turn[plays], action.numpy()[plays])
        won = plays & self.game.has_line(after, turn)
        is_over = was_over | won | self.game.is_full(after)
        reached = np.concatenate([after, -turn[:, None], is_over[:, None].astype(np.int8)], 1)
        logits, value = self._evaluate(after, -turn)
        ends = torch.from_numpy(is_over)
        return Outcome(
            torch.from_numpy(won.astype(np.float32)),
            torch.where(ends, 0.0, -1.0),
            logits,
            value.masked_fill(ends, 0.0),
            torch.from_numpy(reached),
        )

    def root(self, stones: Array, turn: Array) -> Root:
        """stones [B, R * C], turn [B]; no position may be over."""
        logits, value = self._evaluate(stones, turn)
        embedding = np.concatenate([stones, turn[:, None], np.zeros((len(stones), 1), np.int8)], 1)
        return Root(logits, value, torch.from_numpy(embedding), torch.from_numpy(~self.game.legal(stones)))

    def _evaluate(self, stones: Array, turn: Array) -> tuple[Tensor, Tensor]:
        obs = torch.from_numpy(self.game.observe(stones, turn)).to(self.device)
        logits, value = self.network.predict(self.network.represent(obs))
        logits, value = logits.cpu(), decode(value).cpu()
        # Deviation D9: here, and here alone, the rules are known below the root too.
        illegal = torch.from_numpy(~self.game.legal(stones))
        return logits.masked_fill(illegal, torch.finfo(logits.dtype).min / 2), value


def signed_discount(config: Config, space: Space) -> float:
    """The discount of a step, negative if it passes the turn."""
    return -config.discount if space.players == 2 else config.discount


def search_settings(config: Config, space: Space, simulations: int | None = None) -> Settings:
    """How this run searches; simulations in place of the run's own, for a test."""
    return Settings(
        simulations=config.simulations if simulations is None else simulations,
        policy=config.policy,
        normalisation=config.normalisation,
        counts_root=config.counts_root,
        discount=signed_discount(config, space),
        bounds=(-1.0, 1.0) if space.players == 2 else None,
        noise_fraction=config.noise_fraction,
        max_considered=config.max_considered,
        c_scale=config.c_scale,
    )


def run_search(root: Root, model: Model, settings: Settings, noise: Tensor | None, *, use_fast: bool) -> Result:
    """The search in the form that fits the device, or the readable one."""
    if not use_fast:
        return search.search(root, model, settings, noise)
    form = search_fast if root.value.device.type == "cpu" else search_cuda
    return form.search(root, model, settings, noise)


def root_noise(legal: Array, config: Config, rng: np.random.Generator) -> Array:
    """[W, A] float32: Dirichlet over the allowed actions of each root, or Gumbel.

    Gamma draws divided by their sum over the allowed actions are Dirichlet of that many dimensions.
    """
    if config.policy == "gumbel":
        return rng.gumbel(size=legal.shape).astype(np.float32)
    # The smallest number keeps a row of tiny draws from being 0 / 0.
    drawn = np.maximum(rng.standard_gamma(config.noise_alpha, legal.shape), 1e-30) * legal
    return (drawn / drawn.sum(1, keepdims=True)).astype(np.float32)


def sample(policy: Array, uniform: Array) -> Array:
    """One action of each row of probabilities [W, A] by a number in [0, 1)."""
    edges = np.cumsum(policy, 1)
    action = (edges <= (uniform * edges[:, -1])[:, None]).sum(1)
    return np.minimum(action, policy.shape[1] - 1)


class Player:
    """Self-play: one search for all worlds of this process at every step, its outcome written into the replay.

    checkpoints: the folder that an error names the last good one of.
    """

    def __init__(
        self,
        network: Network,
        worlds: Worlds,
        replay: Replay,
        config: Config,
        ranks: dist.Ranks,
        checkpoints: Path = Path("."),
    ) -> None:
        self.worlds, self.replay, self.config, self.ranks = worlds, replay, config, ranks
        self.checkpoints = checkpoints
        self.settings = search_settings(config, worlds.space)
        self.network = network
        self.model = LearnedModel(for_inference(network), self.settings.discount)
        self.updates = 0  # of the network in `model`
        is_captured = config.use_fast and ranks.device.type == "cuda"
        self.captured = search_cuda.Captured(self.model, self.settings) if is_captured else None
        self.mine = dist.share(config.envs, ranks)
        self.totals = np.zeros(worlds.count)  # reward of each episode under way; of its first player, on a board
        self.finished: list[tuple[float, int]] = []  # totals and lengths of episodes that no line of the log tells yet

    @torch.no_grad()
    def step(self, number: int, updates: int) -> None:
        """Step `number` of every world, with a network that has had `updates` updates.

        Raises NonFiniteError if its searches give no numbers.
        """
        worlds, replay, config = self.worlds, self.replay, self.config
        legal, is_over = worlds.legal(), worlds.is_over.copy()
        replay.begin(worlds.observe(), legal, is_over)
        obs = replay.observe(np.full(worlds.count, number), np.arange(worlds.count))
        # The numbers of all worlds are drawn and this rank's taken: a run does not depend on how it is divided.
        rng = np.random.default_rng(derive_seed(config.seed, "act", number))
        everywhere = np.ones((config.envs, worlds.space.actions), np.bool_)
        everywhere[self.mine] = legal
        noise, uniform = root_noise(everywhere, config, rng)[self.mine], rng.random(config.envs)[self.mine]
        device = self.ranks.device
        if self.updates != updates:  # into the same memory, which a captured search reads
            refresh(self.model.network, self.network)
            self.updates = updates
        root = self.model.root(torch.from_numpy(obs).to(device), torch.from_numpy(legal).to(device))
        drawn = torch.from_numpy(noise).to(device)
        if self.captured is not None:
            found = self.captured(root, drawn)
        else:
            found = run_search(root, self.model, self.settings, drawn, use_fast=config.use_fast)
        # Read when the search is waited for anyway. A move that follows from NaN may be an illegal one.
        logits, values = torch.stack([root.logits.abs().amax(), found.value.abs().amax()]).cpu().tolist()
        found_numbers = {"policy of a search": logits, "value of a search": values}
        check_finite(STAGE, number + 1, found_numbers, self.checkpoints)
        action = self._choose(found, number, updates, uniform)
        outcome = worlds.step(action)
        start = replay.start.copy()
        ends = (outcome.terminated, outcome.truncated)
        value, policy = found.value.cpu().numpy(), found.policy.cpu().numpy()
        replay.finish(action, value, policy, outcome.reward, ends)
        self._count(number, start, outcome.reward, outcome.terminated | outcome.truncated)

    def _choose(self, found: Result, number: int, updates: int, uniform: Array) -> Array:
        """Actions [W]: by visits and temperature, the search's own choice at 0; with Gumbel after the opening moves."""
        config, visits, best = self.config, found.visits.cpu().numpy(), found.action.cpu().numpy()
        if config.policy == "gumbel" and config.temperature_moves is None:
            return best
        temperature = temperature_by_update(config.temperatures, updates, config.updates)
        drawn = sample(visit_policy(visits, temperature), uniform)
        is_warm = temperature_by_move(number - self.replay.start, temperature, config.temperature_moves) > 0
        return np.where(is_warm, drawn, best)

    def _count(self, number: int, start: Array, reward: Array, ended: Array) -> None:
        is_second = (number - start) % self.worlds.space.players == 1
        self.totals += np.where(is_second, -reward, reward)
        self.finished += [(float(self.totals[k]), int(number + 1 - start[k])) for k in np.flatnonzero(ended)]
        self.totals[ended] = 0

    def summary(self) -> dict[str, float]:
        """Means over the episodes of this process that ended since the last call; nothing if none did."""
        if not self.finished:
            return {}
        total, length = np.mean(self.finished, 0)
        self.finished.clear()
        return {"return": float(total), "length": float(length)}


@torch.no_grad()
def search_position(
    network: Network,
    game: LineGame,
    config: Config,
    simulations: int,
    stones: Array,
    turn: Array,
    *,
    has_rules: bool = False,
) -> Result:
    """The search without noise of positions that are not over: stones [B, R * C], turn [B].

    has_rules: with the true rules in place of the dynamics.
    """
    space = Space(game.obs_shape, "float32", 1, game.actions, 2, game.encoding)
    settings = search_settings(config, space, simulations)
    network = for_inference(network)
    if has_rules:
        rules = TrueRules(network, game)
        return run_search(rules.root(stones, turn), rules, settings, None, use_fast=config.use_fast)
    model, device = LearnedModel(network, settings.discount), next(network.parameters()).device
    obs, legal = torch.from_numpy(game.observe(stones, turn)), torch.from_numpy(game.legal(stones))
    return run_search(model.root(obs.to(device), legal.to(device)), model, settings, None, use_fast=config.use_fast)


def board_mover(
    network: Network, game: LineGame, config: Config, simulations: int, *, has_rules: bool = False
) -> Mover:
    """The agent without noise and at temperature 0, as the judges ask it."""

    def move(stones: Array, turn: Array) -> Array:
        found = search_position(network, game, config, simulations, stones, turn, has_rules=has_rules)
        return found.action.cpu().numpy()

    return move

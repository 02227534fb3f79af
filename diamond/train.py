"""Train DIAMOND: play, then train the denoiser, the reward and end model, and the policy in the dream of both.

`train_step` is the update, `Trainer.update` says what each of the three learns from, `train` is the loop.

    python -m diamond.train --preset cpu --seed 0

The same command continues an interrupted run.
Source: paper, Algorithm 1 and Table 3; reference code: trainer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint, dist
from common.config import parse, user_error
from common.program import program
from common.run import Run, check_finite, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import Stage
from diamond import data, imagination_fast, official
from diamond.actor_critic import Steps, losses, rollout
from diamond.agent import PARTS, STAGE, Agent, check_sizes, new_agent, refuse
from diamond.beginnings import Pool
from diamond.collect import Player, Reader, RealSteps
from diamond.config import PRESETS, TASKS, Config
from diamond.denoiser import draw_normals
from diamond.env import new_game
from diamond.imagination import Draws, Imagination, pick
from diamond.optimizer import clip_gradients, learning_rate, new_optimizer
from diamond.replay import Replay, Step, choose


@dataclass(frozen=True)
class Schedule:
    """Which network the update number 0, 1, ... of a run trains.

    first and later: updates of each of PARTS in epoch 0 and in those behind it. An epoch trains one after the other.
    """

    first: tuple[int, ...]
    later: tuple[int, ...]
    epochs: int

    @property
    def total(self) -> int:
        """All updates of all networks."""
        return sum(self.first) + sum(self.later) * (self.epochs - 1)

    def at(self, number: int) -> tuple[int, str, int, bool]:
        """Epoch, network, how many updates this network has had, and whether an epoch begins here."""
        epoch, rest, sizes = 0, number, self.first
        if number >= sum(self.first):
            epoch, rest = divmod(number - sum(self.first), sum(self.later))
            epoch, sizes = epoch + 1, self.later
        for k, part in enumerate(PARTS):
            if rest < sizes[k]:
                done = 0 if epoch == 0 else self.first[k] + (epoch - 1) * self.later[k]
                return epoch, part, done + rest, rest == 0 and not any(sizes[:k])
            rest -= sizes[k]
        raise ValueError(f"update {number} of {self.total}")


def schedule_of(config: Config, collected: int) -> Schedule:
    """The plan of a run that begins with so many decisions: one epoch for each later collection, and the last ones."""
    epochs = max(0, config.env_steps - collected) // config.collect_steps + config.last_epochs
    return Schedule(config.first_updates, config.later_updates, max(1, epochs))


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, Tensor],
    update: int,
    clip: float,
    config: Config,
) -> dict[str, Tensor]:
    """Update number `update` of one network, in place, down the sum of `terms`. Returns its numbers for the log."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.lr, config.warmup, update)
    total = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    dist.average_gradients(module.parameters())
    norm = clip_gradients(module, clip)
    optimizer.step()
    return {"loss": total.detach(), "gradient_norm": norm, **{name: term.detach() for name, term in terms.items()}}


class Trainer:
    """Everything that learns, with what it learns from."""

    def __init__(self, agent: Agent, replay: Replay, config: Config, ranks: dist.Ranks) -> None:
        self.agent, self.replay, self.config, self.ranks = agent, replay, config, ranks
        self.share = dist.share(config.batch_size, ranks)
        decays = {"denoiser": config.weight_decay, "reward_end": config.weight_decay, "actor_critic": 0.0}
        self.optimizers = {part: new_optimizer(getattr(agent, part), config.lr, decays[part]) for part in PARTS}
        self.pool = Pool(replay, agent.reward_end, config, ranks)
        self.dream = Imagination(agent, config, self.pool.take)
        self.real = None if config.is_imagined else RealSteps(config, self.share, ranks.device)
        self.games = self.share.stop - self.share.start
        self.policy_state = agent.actor_critic.initial_state(self.games)
        is_fast = config.use_fast and config.is_imagined and ranks.device.type == "cuda"
        self.is_compiled = is_fast and imagination_fast.compile_networks(agent, config, self.games, ranks.device)
        can_run = is_fast and imagination_fast.can_run(agent, config)
        self.program = imagination_fast.Program(agent, config, ranks.device) if can_run else None

    def update(self, part: str, update: int) -> dict[str, Tensor]:
        """Update number `update` of one network."""
        terms, clip = {
            "denoiser": (self._denoiser_terms, self.config.denoiser_clip),
            "reward_end": (self._reward_end_terms, self.config.reward_clip),
            "actor_critic": (self._actor_critic_terms, self.config.policy_clip),
        }[part]
        module = getattr(self.agent, part)
        return train_step(module, self.optimizers[part], terms(update), update, clip, self.config)

    def _picks(self, part: str, update: int, length: int, *, beyond_end: bool) -> np.ndarray:
        """The segments of the whole batch, the same in every process."""
        random = np.random.RandomState(derive_seed(self.config.seed, part, update) % 2**32)
        config = self.config
        lengths = self.replay.lengths
        return choose(lengths, config.age_weights, config.batch_size, length, random, beyond_end=beyond_end)

    def _denoiser_terms(self, update: int) -> dict[str, Tensor]:
        config, device = self.config, self.ranks.device
        count = config.extra_terms + 1 if config.diffusion == "edm" else 1
        picks = self._picks("denoiser", update, config.history + count, beyond_end=False)
        batch = self.replay.segments(picks, device, self.share)
        generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "noise", update))
        shape = batch.obs.shape[2:]
        whole = draw_normals(config.batch_size, shape, count, generator)
        normals = [type(n)(n.level[self.share], n.offset[self.share], n.pixel[self.share]) for n in whole]
        return {"denoising": self.agent.denoiser.loss(batch, normals)}

    def _reward_end_terms(self, update: int) -> dict[str, Tensor]:
        config = self.config
        picks = self._picks("reward_end", update, config.horizon + config.history, beyond_end=True)
        return self.agent.reward_end.losses(self.replay.plays(picks, self.ranks.device, self.share))

    def _actor_critic_terms(self, update: int) -> dict[str, Tensor]:
        """One rollout of H steps; games and recurrent state go on where the last one stopped."""
        config, policy = self.config, self.agent.actor_critic
        draws = Draws(config.batch_size, self.share, self.ranks.device, config.seed, "rollout", update)
        self.dream.draws = draws
        world: Steps = self.dream if self.real is None else self.real
        if self.real is not None:
            obs = self.real.obs
        elif len(self.dream.length) == 0:
            obs = self.dream.reset(self.games)
        else:
            obs = self.dream.obs[:, -1]
        if self.program is not None:
            found = imagination_fast.rollout(self.program, self.dream, self.policy_state, config.horizon)
        else:
            found = rollout(
                policy, world, obs, self.policy_state, config.horizon, lambda logits: pick(logits, draws.uniform())
            )
        play, _, self.policy_state = found
        terms, _ = losses(play, config.gamma, config.lam, config.value_weight, config.entropy_weight)
        return terms

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides weights, optimisers and rows: games that go on, of all processes."""
        size, ranks = self.config.batch_size, self.ranks
        found = {f"policy_{k}": dist.gather_rows(state, size, ranks) for k, state in enumerate(self.policy_state)}
        if len(self.dream.length):
            for name in ("obs", "action", "h", "c", "length"):
                found[f"dream_{name}"] = dist.gather_rows(getattr(self.dream, name), size, ranks)
            found |= self.pool.state()
        return found

    def restore(self, extra: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.policy_state = extra["policy_0"][self.share], extra["policy_1"][self.share]
        if "dream_obs" in extra:
            for name in ("obs", "action", "h", "c", "length"):
                setattr(self.dream, name, extra[f"dream_{name}"][self.share])
            self.pool.restore(extra)


def shared_steps(steps: Sequence[Step] | None, count: int, config: Config, ranks: dist.Ranks) -> list[Step]:
    """The steps that the first process played, on every process."""
    if ranks.world_size == 1:
        return list(steps or [])
    frames = torch.zeros(2, count, 3, config.image_size, config.image_size, dtype=torch.uint8)
    facts = torch.zeros(count, 4)
    for k, step in enumerate(steps or []):
        frames[0, k] = torch.from_numpy(step.frame)
        if step.final is not None:
            frames[1, k] = torch.from_numpy(step.final)
        facts[k] = torch.tensor([step.action, step.reward, step.end, step.trunc])
    frames, facts = (dist.broadcast(part.to(ranks.device)).cpu() for part in (frames, facts))
    return [
        Step(
            frames[0, k].numpy(),
            int(action),
            reward,
            bool(end),
            bool(trunc),
            frames[1, k].numpy() if end or trunc else None,
        )
        for k, (action, reward, end, trunc) in enumerate(facts.tolist())
    ]


class Collector:
    """The replay of every process, filled by the player of the first one."""

    def __init__(self, run: Run, replay: Replay, player: Player | None, config: Config, ranks: dist.Ranks) -> None:
        self.run, self.replay, self.player, self.config, self.ranks = run, replay, player, config, ranks

    def collect(self, steps: int, update: int) -> None:
        """Play `steps` decisions; the scores of games that end are logged."""
        played = None if self.player is None else self.player.collect(steps, self.replay.count)
        for step in shared_steps(played, steps, self.config, self.ranks):
            self.replay.add(step)
        if self.player is not None:
            # Deviation D4: the reference code plays four test games every ten epochs.
            for score in self.player.finished:
                self.run.log(f"{STAGE} game", update, env_steps=self.replay.count, score=score)
            self.player.finished = []

    def begin(self) -> None:
        """The collection before the first epoch: more of it as long as rewards are rare.

        Rewards count by their signs: waited for is a number of steps that have not the most frequent one.
        """
        config = self.config
        self.collect(config.collect_first, 0)
        while self.replay.count < config.collect_most and self._rewards() < config.collect_rewards:
            self.collect(min(config.collect_steps, config.collect_most - self.replay.count), 0)

    def _rewards(self) -> int:
        signs = np.sign(self.replay.facts["reward"][: self.replay.count])
        return len(signs) - int(np.unique(signs, return_counts=True)[1].max())


def save(stage: Stage, update: int, trainer: Trainer, collector: Collector, first_steps: int) -> None:
    """A checkpoint after `update`: rows are on disk before it knows of them."""
    replay, player, tensors = trainer.replay, collector.player, trainer.tensors()
    replay.flush()
    dist.barrier()
    state: dict[str, Any] = {"count": replay.count, "first_steps": first_steps, "updates": update + 1}
    state["is_finished"] = update + 1 == stage.total
    for part, optimizer in trainer.optimizers.items():
        packed, rest = checkpoint.pack_optimizer(f"optimizer-{part}", optimizer)
        tensors |= packed
        state[f"optimizer-{part}"] = rest
    if player is not None:
        state |= {"games": player.games, "first": player.first}
        tensors |= {f"player_{k}": part for k, part in enumerate(player.state)}
    if trainer.real is not None:
        state |= {"numbers": trainer.real.numbers, "histories": trainer.real.histories}
    stage.save(update, tensors, state)


def restore(stage: Stage, trainer: Trainer, collector: Collector) -> None:
    """Go on from the stage's checkpoint."""
    state, extra = stage.state, stage.extra
    trainer.replay.restore(state["count"])
    trainer.restore(extra)
    for part, optimizer in trainer.optimizers.items():
        checkpoint.unpack_optimizer(f"optimizer-{part}", optimizer, extra, state[f"optimizer-{part}"])
    if collector.player is not None:
        place = extra["player_0"], extra["player_1"]
        collector.player.restore(trainer.replay, state["games"], state["first"], place)
    if trainer.real is not None:
        trainer.real.restore(state["numbers"], state["histories"])


def first_steps_of(run: Run) -> int | None:
    """The decisions before the first epoch, if a checkpoint knows them."""
    found = checkpoint.load_latest(run.folder / STAGE, identity=run.identity)
    return None if found is None else int(found.state["state"]["first_steps"])


def train(run: Run, config: Config, ranks: dist.Ranks) -> None:
    """The whole run, from where it stopped."""
    game = new_game(config)
    agent = new_agent(config, game.actions).to(ranks.device)
    game.close()
    if config.init_from is not None:
        official.load(Path(config.init_from), agent)
    for tensor in agent.state_dict().values():
        dist.broadcast(tensor)
    replay = Replay(run.folder / f"replay-{ranks.rank}", config.env_steps, config.image_size)
    new_player = Reader if config.is_recorded else Player
    player = new_player(agent.actor_critic, config, ranks.device) if dist.is_main(ranks) else None
    collector = Collector(run, replay, player, config, ranks)
    trainer = Trainer(agent, replay, config, ranks)
    first_steps = first_steps_of(run)
    is_new = first_steps is None
    if first_steps is None:
        run.forget(STAGE, after=-1)
        with run.timed("collect"):
            collector.begin()
        first_steps = replay.count
    schedule = schedule_of(config, first_steps)
    try:
        stage = Stage(run, STAGE, schedule.total, config.checkpoint_seconds, ranks, {"agent": agent})
    except ValueError as error:
        refuse(run.folder, error)
    if is_new:
        save(stage, -1, trainer, collector, first_steps)
    else:
        restore(stage, trainer, collector)
    newest: dict[str, Tensor] = {}
    for number in stage.updates():
        epoch, part, update, is_begin = schedule.at(number)
        if is_begin and replay.count + config.collect_steps <= config.env_steps:
            collector.collect(config.collect_steps, number + 1)
        numbers = {f"{part}/{name}": value for name, value in trainer.update(part, update).items()}
        newest |= numbers
        stage.log(number, {"epoch": epoch, "env_steps": replay.count, **numbers})
        if stage.due(number):
            # Of every network: the stage sees those of the one that was trained last.
            check_finite(STAGE, number + 1, newest, stage.folder)
            save(stage, number, trainer, collector, first_steps)


def check(config: Config) -> None:
    """What this machine cannot make, or no checkpoint, must end before there is a folder; one line and exit code 2."""
    game = new_game(config)
    game.close()
    try:
        check_sizes(config, game.actions)
        if config.init_from is not None:
            official.load(Path(config.init_from), new_agent(config, game.actions))
    except ValueError as error:
        user_error(str(error))


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m diamond.train", description=__doc__ or "")
    device = usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        if config.batch_size % ranks.world_size:
            user_error(f"batch_size {config.batch_size} does not divide over {ranks.world_size} processes")
        if ranks.world_size > 1 and not config.is_imagined:
            user_error("without imagination (is_imagined false) training runs in one process")
        if config.is_recorded:
            config = data.fitted(config, frozenset(options.changed))
        check(config)
        seed_everything(config.seed, str(device))
        if device.type == "cuda":  # the paper's precision
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        run = Run.open("diamond", config, options.preset, run_folder("diamond", config, options))
        dist.barrier()
        train(run, config, ranks)
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)

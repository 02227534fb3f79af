"""Train DreamerV3: act, remember, and replay; every update trains the world model, the actor and the critic at once.

`train_step` is the update, `train` the loop around it.

    python -m dreamerv3.train --preset cpu --seed 0

The same command continues an interrupted run.
Source: paper, Methods and Algorithm 1; reference code: run/train.py, agent.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common import dist
from common.config import parse, user_error
from common.graph import Graph
from common.precision import compute_dtype
from common.program import program
from common.run import Run, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import LOG_EVERY, Stage
from dreamerv3.agent import STAGE, Agent, Noise, new_agent, refuse, seen
from dreamerv3.config import PRESETS, SIZES, TASKS, Config
from dreamerv3.env import Worlds, make_world
from dreamerv3.interface import WorldError
from dreamerv3.learner import Numbers, Pending, keep_memory
from dreamerv3.optimizer import LaProp
from dreamerv3.replay import Batch, Ratio, Replay
from dreamerv3.rssm import State

if TYPE_CHECKING:
    from dreamerv3.pictures import Latest


def learning_rate(config: Config) -> float:
    """The config's, or with `lr_by_size` exp(-1.195 ln units - 0.529 ln ratio).

    That gives 4.0e-5 at size 200m and ratio 32, 4.9e-5 at 12m and 512, and 2.6e-4 at 1m and 512. Without updates there
    is no rule. Source: the authors' code of April 2024, where it is switched off.
    """
    if not config.lr_by_size or not config.plan.train_ratio:
        return config.lr
    units = SIZES[config.plan.size].units
    return math.exp(-1.195 * math.log(units) - 0.529 * math.log(config.plan.train_ratio))


def new_optimizer(agent: Agent, config: Config) -> LaProp:
    """One optimiser for all modules."""
    return LaProp(
        agent.trained_parameters(),
        lr=learning_rate(config),
        warmup=config.warmup,
        agc=config.agc,
        pmin=config.agc_floor,
        betas=(config.momentum, config.second_moment),
        eps=config.eps,
    )


def loss_weights(config: Config) -> dict[str, float]:
    """The weight of every loss; "rec" stands for the reconstruction of every observation."""
    ones = dict.fromkeys(("rec", "reward", "cont", "actor", "critic"), 1.0)
    return ones | {"dyn": config.dyn_scale, "rep": config.rep_scale, "replay_critic": config.replay_critic_scale}


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The scalar that is minimised: the sum of weight times mean. Raises ValueError if the names do not match."""
    names = {name.split("/")[0] for name in losses}
    if names != set(weights):
        raise ValueError(f"losses {sorted(names)} do not match weights {sorted(weights)}")
    return torch.stack([weights[name.split("/")[0]] * loss.mean() for name, loss in losses.items()]).sum()


def train_step(
    agent: Agent, optimizer: LaProp, batch: Batch, noise: Noise, config: Config, ranks: dist.Ranks
) -> tuple[dict[str, Tensor], State]:
    """One update in place. Returns its losses with numbers for the log, and the posterior states [B, T, ...].

    Source: paper, Algorithm 1.
    """
    device = batch.reward.device.type
    # Deviation D7: norms, mixtures and the recurrent state stay in float32.
    dtype = compute_dtype(config.precision, batch.reward.device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        outcome = agent.losses(batch, noise, ranks)
    total = weighted_sum(outcome.losses, loss_weights(config))
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    dist.average_gradients(agent.trained_parameters())
    optimizer.step()
    agent.after_update()
    losses = {f"loss_{name}": loss.detach().mean() for name, loss in outcome.losses.items()}
    return {"loss": total.detach(), **losses, **outcome.metrics}, outcome.states


Learner = Graph[tuple[dict[str, Tensor], State]]


def new_learner(agent: Agent, optimizer: LaProp, config: Config, ranks: dist.Ranks) -> Learner:
    """`train_step` for a run. Of several processes each has its graph, in which they average their gradients."""
    step = partial(train_step, agent, optimizer, config=config, ranks=ranks)
    keep_memory()
    return Graph("the update", step, ranks.device, captures=config.use_fast)


class Player:
    """The acting side of a run: worlds, the recurrent state, and the rows that go into the replay."""

    def __init__(self, agent: Agent, worlds: Worlds, config: Config, ranks: dist.Ranks) -> None:
        self.agent, self.worlds, self.config, self.ranks = agent, worlds, config, ranks
        self.act = Graph("acting", agent.act, ranks.device, captures=config.use_fast)
        self.mine = dist.share(config.plan.envs, ranks)
        count = self.mine.stop - self.mine.start
        self.state = agent.world.rssm.initial_state(count)
        shape = (count,) if worlds.actions.is_discrete else (count, worlds.actions.size)
        self.action = torch.zeros(shape, dtype=torch.int64 if worlds.actions.is_discrete else torch.float32)

    def step(self, number: int) -> dict[str, np.ndarray[Any, Any]]:
        """One agent step in every world. Returns the rows of the replay, [W, ...] each."""
        rows = self.worlds.step(self.action.cpu().numpy())
        device, envs = self.ranks.device, self.config.plan.envs
        obs, is_first = seen(rows, device)
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "act", number))
        uniform, noise = (part[self.mine] for part in self.agent.draw_act_noise(envs, generator))
        # Deviation D2: the reference code acts with parameters one update old.
        self.state, action = self.act(
            self.state, self.action.to(device), obs, is_first, uniform.to(device), noise.to(device)
        )
        # The action at the end of an episode is never taken.
        is_last = torch.from_numpy(rows["is_last"])
        self.action = action.cpu()
        self.action[is_last] = 0
        latents = {"h": self.state.h.float().cpu().numpy(), "z": self.state.z.argmax(-1).cpu().numpy()}
        return rows | {"action": self.action.numpy()} | latents


class Trainer:
    """The learning side of a run: replay, updates that are due, and refreshed latents."""

    def __init__(
        self, stage: Stage, agent: Agent, optimizer: LaProp, worlds: Worlds, config: Config, ranks: dist.Ranks
    ) -> None:
        self.config, self.ranks, self.agent = config, ranks, agent
        envs, plan = len(worlds.worlds), config.plan
        capacity = min(config.replay_capacity // ranks.world_size, plan.steps * envs)
        self.replay = Replay(
            stage.run.folder.resolve() / f"replay-{ranks.rank}",
            worlds.spaces,
            worlds.actions,
            agent.world.rssm.sizes,
            envs,
            capacity,
            config.sequence_length,
            identity=f"{stage.run.identity} rank {ranks.rank}",
            is_known=stage.first > 0,
        )
        self.learner = new_learner(agent, optimizer, config, ranks)
        self.ratio = Ratio(plan.train_ratio / (config.batch_size * config.sequence_length))
        self.first_windows = config.first_windows or agent.edition.first_windows
        self.updates = 0
        self.pending: Pending | None = None
        self.numbers: list[Numbers] = []  # of the last two updates

    def remember(self, rows: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take one step of all worlds in, and do the updates that are due at each of them."""
        self.replay.add(rows)
        size = self.ranks.world_size
        for env in range(self.replay.envs):
            self.replay.admit()
            if self.replay.windows * size >= self.first_windows:
                for _ in range(self.ratio(((self.replay.rows.count - 1) * self.replay.envs + env + 1) * size)):
                    self.update()

    def update(self) -> None:
        """One update. Its latents are stored after the next batch has been drawn, as in the reference code.

        On a GPU rows are read and stored while it works: nothing here waits for the update that has just begun.
        """
        config, ranks = self.config, self.ranks
        mine = dist.share(config.batch_size, ranks)
        rng = np.random.default_rng(derive_seed(config.seed, "batch", self.updates, ranks.rank))
        picks = self.replay.choose(mine.stop - mine.start, rng)
        batch = self.replay.batch(picks, ranks.device)
        metrics, states = self.learner(batch, self.noise())
        self.numbers = [*self.numbers[-1:], Numbers(metrics)]
        if self.pending is not None:
            self.pending.store(self.replay)
        self.pending = Pending(picks, states.h, states.z.argmax(-1))
        self.updates += 1

    def noise(self) -> Noise:
        """The random numbers of the next update: this rank's part of those of the whole batch."""
        config, ranks = self.config, self.ranks
        # Deviation D3: numbers by position instead of a long stream.
        generator = torch.Generator(ranks.device).manual_seed(derive_seed(config.seed, "update", self.updates))
        noise = self.agent.draw_noise(config.batch_size, config.sequence_length, generator)
        mine, starts = dist.share(config.batch_size, ranks), dist.share(noise.prior.shape[1], ranks)
        return Noise(noise.posterior[mine], noise.prior[:, starts], noise.action[:, starts])


def save(stage: Stage, number: int, player: Player, trainer: Trainer) -> None:
    """A checkpoint after step `number`: tensors and counts; the rows themselves are in the replay's files."""
    ranks, config = trainer.ranks, trainer.config
    trainer.replay.rows.flush()
    dist.barrier()
    per_env = {
        "h": player.state.h,
        "z": player.state.z,
        "episode": torch.tensor(player.worlds.episode, device=ranks.device),
    }
    extra = {name: dist.gather_rows(value, config.plan.envs, ranks) for name, value in per_env.items()}
    if trainer.pending is not None:
        last = trainer.pending
        pending = {"picks": torch.from_numpy(last.picks).to(ranks.device), "pending_h": last.h, "pending_z": last.z}
        extra |= {name: dist.gather_rows(value, config.batch_size, ranks) for name, value in pending.items()}
    state = {"replay": trainer.replay.state(), "updates": trainer.updates, "ratio": trainer.ratio.previous}
    state["metrics"] = [numbers.read() for numbers in trainer.numbers]  # the log is an update behind
    stage.save(number, extra, state)
    dist.barrier()
    kept = [int(path.stem[5:]) for path in stage.folder.glob("step-*.safetensors")]
    trainer.replay.rows.saved(number + 1, kept)


def restore(stage: Stage, player: Player, trainer: Trainer) -> None:
    """Go on from the stage's checkpoint: replay, latents, counters, and every world in the middle of its episode."""
    ranks, extra, config = trainer.ranks, stage.extra, trainer.config
    trainer.replay.restore(stage.first, stage.state["replay"])
    trainer.updates, trainer.ratio.previous = stage.state["updates"], stage.state["ratio"]
    metrics = stage.state["metrics"]
    if isinstance(metrics, dict):  # of an earlier version: those of one update
        metrics = [metrics] * 2 if metrics else []
    for numbers in metrics:
        trainer.numbers.append(Numbers({name: torch.tensor(value) for name, value in numbers.items()}))
    player.state = State(extra["h"][player.mine], extra["z"][player.mine])
    envs = range(trainer.replay.envs)
    rows = trainer.replay.rows
    player.action = torch.from_numpy(rows.arrays["action"][(rows.count - 1) % rows.slots].copy())
    if player.worlds.actions.is_discrete:
        player.action = player.action.long()
    if "picks" in extra:
        mine = dist.share(config.batch_size, ranks)
        trainer.pending = Pending(
            extra["picks"][mine].cpu().numpy(), extra["pending_h"][mine], extra["pending_z"][mine]
        )
    player.worlds.restore(extra["episode"][player.mine].tolist(), [trainer.replay.episode(env) for env in envs])


def train(run: Run, config: Config, ranks: dist.Ranks, worlds: Worlds) -> None:
    """The whole run, from where it stopped."""
    plan = config.plan
    agent = new_agent(worlds.spaces, worlds.actions, config).to(ranks.device)
    for parameter in agent.parameters():
        dist.broadcast(parameter.data)
    optimizer = new_optimizer(agent, config)
    try:  # before anything else of the run is opened
        stage = Stage(run, STAGE, plan.steps, config.checkpoint_seconds, ranks, {"agent": agent}, optimizer)
    except ValueError as error:
        refuse(run.folder, error)
    player, trainer = Player(agent, worlds, config, ranks), Trainer(stage, agent, optimizer, worlds, config, ranks)
    if stage.first:
        restore(stage, player, trainer)
    player.state = State(player.state.h.to(ranks.device), player.state.z.to(ranks.device))
    latest = new_latest(agent, trainer.replay, config, run.folder) if dist.is_main(ranks) else None
    logged = (trainer.updates - 1) // LOG_EVERY
    shown: dict[str, str] = {}
    for number in stage.updates():
        trainer.remember(player.step(number))
        env_frames = (number + 1) * plan.envs * plan.action_repeat
        # Deviation D5: what the log holds takes nothing out of the online queue.
        for episode in dist.gather_lists(worlds.finished, ranks):
            shown["return"] = f"{episode.total:.1f}"
            run.log(
                f"{STAGE} episode",
                number + 1,
                env_frames=env_frames,
                total=episode.total,
                length=episode.length,
                **episode.info,
            )
        # The update that has just begun is not waited for: a line is of the one before, but for the last line.
        is_end = number + 1 == plan.steps and trainer.updates > 0
        done = trainer.updates - (not is_end)
        if done // LOG_EVERY > logged or is_end:
            logged = done // LOG_EVERY
            metrics = trainer.numbers[-1 if is_end else 0].read()
            stage.log(number, {"env_frames": env_frames, "updates": done, **metrics}, every=1)
            stage.bar.set_postfix({**shown, "loss": f"{metrics['loss']:.4g}"}, refresh=False)
        if stage.due(number) or trainer.replay.rows.must_save:
            save(stage, number, player, trainer)
        if latest is not None:
            latest.draw_if_due()


def new_latest(agent: Agent, replay: Replay, config: Config, folder: Path) -> Latest | None:
    """The film of a run that is under way, if it is wanted; only then are its libraries."""
    if not config.film_seconds:
        return None
    from dreamerv3.pictures import Latest

    return Latest(agent, replay.rows, config, folder)


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m dreamerv3.train", description=__doc__ or "")
    device = usable_device(config.device)
    ranks = dist.setup(config.device)
    if device.type == "cuda" and compute_dtype(config.precision, device) == torch.bfloat16:
        torch.set_float32_matmul_precision("high")  # what stays in float32 may use the tensor cores of a GPU
    try:
        for name, count in (("batch_size", config.batch_size), ("envs", config.plan.envs)):
            if count % ranks.world_size:  # every rank must have the same share of the work
                user_error(f"{name} {count} does not divide over {ranks.world_size} processes")
        indices = range(config.plan.envs)[dist.share(config.plan.envs, ranks)]
        seed_everything(config.seed, str(device))
        with Worlds(lambda: make_world(config), indices, config.seed, "train") as worlds:
            new_agent(worlds.spaces, worlds.actions, config)  # what does not fit must end before there is a folder
            run = Run.open("dreamerv3", config, options.preset, run_folder("dreamerv3", config, options))
            dist.barrier()
            seed_everything(config.seed, str(device))
            train(run, config, ranks, worlds)
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    except WorldError as error:
        user_error(str(error))
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)

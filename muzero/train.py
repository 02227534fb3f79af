"""Train MuZero: play by search, remember, and unroll; after every move of all worlds, the updates that are due.

    python -m muzero.train --preset cpu --seed 0

The same command continues an interrupted run.
Source: paper, Appendices B to H, and its pseudocode. Deviation D2: self-play and updates take turns in one process and
at a fixed ratio; there they run side by side, and actors take a new network every 1,000 updates.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common import checkpoint, dist
from common.config import parse, user_error
from common.program import RunError, program
from common.run import Run, check_finite, run_folder, seed_everything, usable_device
from common.seeding import derive_seed
from common.stage import LOG_EVERY, Stage
from muzero.agent import SNAPSHOTS, STAGE, network_for
from muzero.config import PRESETS, TASKS, Config
from muzero.data import Replay, Rules, bytes_of, forget
from muzero.env import NO_ACTION, Space, WorldError, Worlds, make_worlds
from muzero.networks import Network
from muzero.reanalyze import refreshed
from muzero.self_play import LearnedModel, Player, search_settings, signed_discount
from muzero.targets import learning_rate, total_moves, updates_due
from muzero.unroll import Batch, step_losses, unroll, weight_penalty, weighted_loss

Array = NDArray[Any]


def new_optimizer(network: Network, config: Config) -> torch.optim.Optimizer:
    """With the gradient of the penalty on weights, which is part of the loss (`weight_penalty`), as weight_decay."""
    parameters, decay = network.parameters(), config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=True)


def train_step(
    network: Network, optimizer: torch.optim.Optimizer, batch: Batch, config: Config, update: int
) -> dict[str, Tensor]:
    """One update in place. Returns the losses, summed over the unrolled steps, for the log."""
    network.train()
    losses = step_losses(unroll(network, batch.obs, batch.actions), batch)
    loss = weighted_loss(losses, batch.weights, config.value_weight)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    dist.average_gradients(network.parameters())
    if config.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config.lr, update, config.lr_decay_updates)
    penalty = weight_penalty(network.parameters(), config.weight_decay)
    optimizer.step()
    sums = {f"loss_{name}": value.detach().sum(1).mean() for name, value in losses.items()}
    return {"loss": loss.detach(), **sums, "loss_penalty": penalty}


def on_ranks(number: int, ranks: dist.Ranks) -> list[int]:
    """That number of every rank."""
    if ranks.world_size == 1:
        return [number]  # a tensor would make each update wait for the device
    numbers: list[int] = dist.gather_rows(torch.tensor([number], device=ranks.device), ranks.world_size, ranks).tolist()
    return numbers


def average_norms(network: Network, ranks: dist.Ranks) -> None:
    """The running statistics of batch norms become their mean over the ranks: all play with, and keep, one network.

    One process has nothing to average.
    """
    kept = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if ranks.world_size == 1 or not kept:
        return
    mine = torch.cat([buffer.flatten() for buffer in kept])
    mean = dist.gather_rows(mine[None], ranks.world_size, ranks).mean(0)
    for buffer, part in zip(kept, mean.split([buffer.numel() for buffer in kept]), strict=True):
        buffer.copy_(part.view_as(buffer))


def of_all_worlds(values: Array, config: Config, ranks: dist.Ranks) -> Tensor:
    """[envs, ...] from every rank's rows; actions (`env.padded`), of which ranks have different numbers, as wide as the
    widest."""
    mine = torch.from_numpy(np.ascontiguousarray(values)).to(ranks.device)
    if mine.dim() > 1:
        missing = max(on_ranks(mine.shape[1], ranks)) - mine.shape[1]
        mine = F.pad(mine, (0, missing), value=NO_ACTION) if missing else mine
    return dist.gather_rows(mine, config.envs, ranks)


class Learner:
    """The learning side of a run: the updates that are due, with fresh targets if Reanalyze is on."""

    def __init__(self, network: Network, replay: Replay, space: Space, config: Config, ranks: dist.Ranks) -> None:
        self.network, self.replay, self.config, self.ranks = network, replay, config, ranks
        self.optimizer = new_optimizer(network, config)
        self.target = copy.deepcopy(network).eval() if config.reanalyze > 0 else None
        self.settings = search_settings(config, space)
        self.updates = 0
        self.metrics: dict[str, Tensor] = {}

    def update(self) -> None:
        """One update."""
        config, ranks = self.config, self.ranks
        mine = dist.share(config.batch_size, ranks)
        rng = np.random.default_rng(derive_seed(config.seed, "batch", self.updates, ranks.rank))
        picks = self.replay.choose(mine.stop - mine.start, rng)
        batch = self.replay.batch(picks, rng, ranks.device)
        if self.target is not None:
            if self.updates % config.target_updates == 0:
                self.target.load_state_dict(self.network.state_dict())
            model = LearnedModel(self.target, self.settings.discount)
            batch = refreshed(batch, picks, self.replay, model, self.settings, config, rng)
        self.metrics = train_step(self.network, self.optimizer, batch, config, self.updates)
        average_norms(self.network, ranks)
        self.updates += 1


def save(stage: Stage, number: int, player: Player, learner: Learner, files: list[list[int]]) -> list[list[int]]:
    """A checkpoint after move `number`. Returns the files of the replay that it needs.

    Raises NonFiniteError, with nothing written, if the losses of the newest update are not finite.
    """
    replay, ranks, config = player.replay, player.ranks, player.config
    metrics = {name: float(value) for name, value in learner.metrics.items()}
    check_finite(STAGE, number + 1, metrics, stage.folder)
    folder = stage.run.folder / f"replay-{ranks.rank}"
    needed = replay.save(folder, files)
    dist.barrier()
    per_world = {f"replay/{name}": value for name, value in replay.small().items()}
    per_world |= {f"worlds/{name}": value for name, value in player.worlds.state().items()}
    per_world["totals"] = player.totals
    extra = {name: of_all_worlds(value, config, ranks) for name, value in per_world.items()}
    state = {"updates": learner.updates, "files": needed, "metrics": metrics, "finished": player.finished}
    stage.save(number, extra, state)
    dist.barrier()
    forget(folder, [*files, *needed])  # those of the checkpoint before are kept too
    return needed


def restore(stage: Stage, player: Player, learner: Learner) -> list[list[int]]:
    """Go on from the stage's checkpoint. Returns the files of the replay."""
    mine = {name: value.cpu().numpy()[player.mine] for name, value in stage.extra.items()}
    replay, files = player.replay, stage.state["files"]
    small = {name.removeprefix("replay/"): value for name, value in mine.items() if name.startswith("replay/")}
    replay.load(stage.run.folder / f"replay-{player.ranks.rank}", stage.first, files, small)
    worlds = {name.removeprefix("worlds/"): value for name, value in mine.items() if name.startswith("worlds/")}
    if worlds.keys() != player.worlds.state().keys():
        raise ValueError(f"it keeps {', '.join(worlds) or 'nothing'} of the worlds")
    player.worlds.restore(worlds)
    player.totals = mine["totals"].copy()
    player.finished = [(total, length) for total, length in stage.state["finished"]]
    learner.updates = stage.state["updates"]
    learner.metrics = {name: torch.tensor(value) for name, value in stage.state["metrics"].items()}
    return files


def rows_of(config: Config) -> int:
    """Steps of each world that the replay holds: replay_steps of all, or those of a run that has fewer."""
    return max(1, min(config.replay_steps // config.envs, total_moves(config)))


def check_memory(config: Config, worlds: Worlds) -> None:
    """One line and exit code 2 if this process cannot hold its part of the replay."""
    needed = bytes_of(worlds.space, worlds.count, rows_of(config))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        user_error(
            f"replay_steps {config.replay_steps} of task {config.task} take {needed / 2**30:,.0f} GiB of memory in "
            f"each process, and this machine has {there / 2**30:,.0f}; choose fewer"
        )


def keep_snapshot(run: Run, network: Network, updates: int, config: Config, ranks: dist.Ranks) -> None:
    """The network after each of `snapshots` equal parts of the run, for matches against its earlier selves."""
    if dist.is_main(ranks) and updates * config.snapshots % config.updates < config.snapshots:
        place = run.folder / SNAPSHOTS / str(updates)
        checkpoint.save(place, updates, checkpoint.module_tensors("network", network), {}, identity=run.identity)


def train(run: Run, config: Config, ranks: dist.Ranks, worlds: Worlds) -> None:
    """The whole run, from where it stopped."""
    network = network_for(worlds.space, config).to(ranks.device)
    rules = Rules(
        signed_discount(config, worlds.space),
        config.td_steps,
        config.unroll_steps,
        config.priority_exponent,
        config.priority_correction,
        keeps_outcome=config.support is None,
    )
    replay = Replay(worlds.space, worlds.count, rows_of(config), rules)
    learner = Learner(network, replay, worlds.space, config, ranks)
    player = Player(network, worlds, replay, config, ranks, run.folder / STAGE)
    modules = {"network": network} | ({} if learner.target is None else {"target": learner.target})
    files: list[list[int]] = []
    try:
        stage = Stage(run, STAGE, total_moves(config), config.checkpoint_seconds, ranks, modules, learner.optimizer)
        if stage.first:
            files = restore(stage, player, learner)
    except ValueError as error:
        user_error(f"{run.folder}: the checkpoint is of another game or size: {error}")
    logged = learner.updates // LOG_EVERY
    shown: dict[str, str] = {}
    for number in stage.updates():
        # Before it is played with. On a GPU this waits for the updates, as the search behind it does.
        check_finite(STAGE, number, learner.metrics, stage.folder)
        player.step(number, learner.updates)
        due = updates_due((number + 1) * config.envs, config)
        # A rank that has nothing to draw yet cannot take part in an update.
        can_learn = learner.updates < due and all(on_ranks(replay.size, ranks))
        while can_learn and learner.updates < due:
            learner.update()
            keep_snapshot(run, network, learner.updates, config, ranks)
        if learner.updates // LOG_EVERY > logged or (number + 1 == stage.total and learner.updates):
            logged = learner.updates // LOG_EVERY
            counts = {"env_steps": (number + 1) * config.envs, "updates": learner.updates}
            found = player.summary()
            stage.log(number, {**counts, **found, **learner.metrics}, every=1)
            shown |= {name: f"{value:.4g}" for name, value in found.items()}
            stage.bar.set_postfix({**shown, "loss": f"{float(learner.metrics['loss']):.4g}"}, refresh=False)
        if stage.due(number):
            files = save(stage, number, player, learner, files)
    if learner.updates < config.updates:
        raise RunError(
            f"{run.folder}: {learner.updates} of {config.updates} updates were made, for no target was known in time "
            f"(td_steps none waits for the end of a game); choose more first_steps than {config.first_steps}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    config, options = parse(Config, TASKS, PRESETS, argv, prog="python -m muzero.train", description=__doc__ or "")
    preset = PRESETS[options.preset]
    if preset.by_task and config.task not in preset.by_task and "updates" not in preset.values:
        others = [name for name, other in PRESETS.items() if config.task in other.by_task or not other.by_task]
        user_error(f"preset {options.preset} has no sizes for task {config.task}; those that have: {', '.join(others)}")
    device = usable_device(config.device)
    ranks = dist.setup(config.device)
    try:
        for name, count in (("batch_size", config.batch_size), ("envs", config.envs)):
            if count % ranks.world_size:  # every rank must have the same share of the work
                user_error(f"{name} {count} does not divide over {ranks.world_size} processes")
        seed_everything(config.seed, str(device))
        try:
            worlds = make_worlds(config, range(config.envs)[dist.share(config.envs, ranks)])
            network_for(worlds.space, config)  # what does not fit must end before there is a folder
        except (WorldError, ValueError) as error:
            user_error(str(error))
        check_memory(config, worlds)
        run = Run.open("muzero", config, options.preset, run_folder("muzero", config, options))
        dist.barrier()
        train(run, config, ranks, worlds)
        worlds.close()
        if dist.is_main(ranks):
            print(f"trained: {run.folder}")
    finally:
        dist.close()


if __name__ == "__main__":
    program(main)

"""The imagination written for speed: it is the readable one, captured or not, and what happens where it cannot be."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from common import dist, eager, fake_cuda, tape
from common.testing import ROOT
from diamond import imagination_fast
from diamond.actor_critic import losses, rollout
from diamond.agent import PARTS, new_agent
from diamond.imagination import pick
from diamond.tests.test_imagination import CONFIG, draws, dream
from diamond.tests.test_replay import CPU, filled
from diamond.train import Trainer

STEPS = 7  # more than a horizon, so that games are cut at different times


def chooser(numbers):
    return lambda logits: pick(logits, numbers.uniform())


def plays(folder, program_of):
    """Two rollouts in a row, with another policy in the second; play, state, gradients of each."""
    world, _ = dream(folder)
    policy = world.agent.actor_critic
    program = program_of(world)
    state, found = policy.initial_state(3), []
    for update in range(2):
        world.draws = draws(update)
        if program is None:
            play, obs, state = rollout(policy, world, world.obs[:, -1], state, STEPS, chooser(world.draws))
        else:
            play, obs, state = imagination_fast.rollout(program, world, state, STEPS)
        policy.zero_grad()
        torch.stack(list(losses(play, 0.9, 0.9, 1.0, 0.01)[0].values())).sum().backward()
        gradients = [parameter.grad.clone() for parameter in policy.parameters()]
        found.append(([*vars(play).values(), obs, *state], gradients))
        with torch.no_grad():  # as an optimiser does, in place
            for parameter in world.agent.parameters():
                parameter.mul_(1.01)
    return found, program


@pytest.fixture(scope="module")
def readable(tmp_path_factory):
    """The same by the readable form. Tests must not change it."""
    return plays(tmp_path_factory.mktemp("readable"), lambda world: None)[0]


def program_of(world, *, captures, config=CONFIG):
    program = imagination_fast.Program(world.agent, config, CPU)
    program.captures = captures
    return program


@pytest.mark.parametrize("is_captured", [False, True])
def test_imagined_play_for_speed_is_the_readable_one(tmp_path, monkeypatch, readable, is_captured):
    """Every number of two rollouts and the policy's gradients, over games that are cut and begin anew."""
    tape.put_in_place(monkeypatch)
    fast, program = plays(tmp_path, lambda world: program_of(world, captures=is_captured))
    assert program.is_captured == is_captured
    if is_captured:
        assert program.graph.waits == []
    for (ours, our_gradients), (theirs, their_gradients) in zip(fast, readable, strict=True):
        assert min(theirs[5].sum(), theirs[6].sum()) > 0  # games ended, and games were cut
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        for mine, other in zip(our_gradients, their_gradients, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_half_the_digits_move_a_frame_by_little(tmp_path):
    """bfloat16 in the products of the world model, whose frames have 256 levels."""
    found = []
    for precision in ("float32", "bfloat16"):
        world, _ = dream(tmp_path / precision)
        world.draws = draws()
        numbers = world.numbers()
        given = imagination_fast.Inputs(
            obs=world.obs, action=world.action, h=world.h, c=world.c, policy_h=torch.zeros(3, 64),
            policy_c=torch.zeros(3, 64), act=numbers.end, start=numbers.start, reward=numbers.reward, end=numbers.end,
        )  # fmt: skip
        found.append(imagination_fast.act_and_predict(world.agent, replace(CONFIG, precision=precision), given))
    exact, half = found
    difference = (exact.frame - half.frame).abs() / 2 * 255
    assert 0 < difference.mean() < 2
    assert torch.equal(exact.action, half.action)
    assert {part.dtype for part in imagination_fast.parts_of(half)} == {torch.float32, torch.int64}


def test_a_capture_that_fails_is_one_line_and_the_steps_are_the_readable_ones(tmp_path, monkeypatch, readable, capsys):
    tape.break_captures(monkeypatch)
    monkeypatch.setattr(eager, "_marks", [])
    fast, program = plays(tmp_path, lambda world: program_of(world, captures=True))
    assert not program.is_captured
    assert capsys.readouterr().err.startswith("warning: the imagination not as a graph (RuntimeError: CUDA error: ")
    torch.testing.assert_close(fast[1][0], readable[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_broken", [False, True])
def test_networks_that_cannot_be_compiled_run_as_they_are_written(tmp_path, monkeypatch, capsys, is_broken):
    calls = []

    def compile_(function, **_):
        def compiled(*inputs):
            calls.append(function)
            if is_broken:
                raise RuntimeError("no compiler here")
            return function(*inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(eager, "_marks", [])
    world, _ = dream(tmp_path)
    world.draws = draws()
    before = [parameter.clone() for parameter in world.agent.parameters()]
    assert imagination_fast.compile_networks(world.agent, CONFIG, 3, CPU) != is_broken
    assert ("no compiler here" in capsys.readouterr().err) == is_broken
    world.step(torch.tensor([0, 1, 2]))
    assert len(calls) == (1 if is_broken else 3 + 2 * (CONFIG.sampler_steps + 1))
    for parameter, old in zip(world.agent.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


@pytest.mark.parametrize(("diffusion", "precision"), [("edm", "float32"), ("edm", "bfloat16"), ("ddpm", "float32")])
def test_all_that_training_calls_was_compiled_when_it_was_tried(tmp_path, monkeypatch, diffusion, precision):
    """Without a code generator: two networks, each with gradient and without, and hardly a form that comes later.

    torch.compile gives up on a function after eight. R sees the beginnings of games in float32 whatever the precision.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    monkeypatch.setattr(eager, "_marks", [])
    config = replace(
        CONFIG, diffusion=diffusion, precision=precision, denoiser_channels=(8,), denoiser_depths=(1,),
        reward_channels=(8,), reward_depths=(1,),
    )  # fmt: skip
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    agent, graphs = new_agent(config, 6), torch._dynamo.utils.counters["stats"]
    trainer = Trainer(agent, filled(tmp_path), config, dist.Ranks(0, 1, 0, CPU))
    assert imagination_fast.compile_networks(agent, config, trainer.games, CPU)
    assert graphs["unique_graphs"] == 4
    if imagination_fast.can_run(agent, config):
        trainer.program = imagination_fast.Program(agent, config, CPU)
    for update in range(2):
        for part in PARTS:
            trainer.update(part, update)
    assert graphs["unique_graphs"] == 4 + (precision == "bfloat16")
    assert eager.marks() == ()


def test_without_a_gpu_training_imagines_as_it_is_written(tmp_path):
    ranks = dist.Ranks(0, 1, 0, CPU)
    world, _ = dream(tmp_path / "a")
    trainer = Trainer(world.agent, filled(tmp_path / "b"), CONFIG, ranks)
    assert trainer.program is None
    assert not trainer.is_compiled


def test_updates_on_a_gpu_neither_wait_nor_mix_devices(tmp_path):
    """Traced on tensors that are nowhere, in a process of its own."""
    try:
        library = fake_cuda.library(tmp_path)
    except RuntimeError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-m", "diamond.tests.trace"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "LD_PRELOAD": str(library)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["denoiser: 0", "reward_end: 0", "actor_critic: 0", "imagination: 0"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_captured_imagination_on_a_gpu_is_the_readable_one(tmp_path):
    """Logits, values and actions of an update in float32."""
    found = []
    ranks = dist.setup("cuda")
    for use_fast in (True, False):
        config = replace(CONFIG, use_fast=use_fast, device="cuda")
        world, _ = dream(tmp_path / str(use_fast))
        trainer = Trainer(world.agent.to("cuda"), filled(tmp_path / f"{use_fast}-replay"), config, ranks)
        numbers = [trainer.update("actor_critic", update) for update in range(1, 6)]
        assert (trainer.program is not None and trainer.program.is_captured) == use_fast
        found.append(torch.stack([one["loss"] for one in numbers]))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)

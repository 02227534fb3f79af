"""Numbers of the authors' code against the shipped functions, in float32, at the tolerances of golden/README.md."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.golden import Parity, load
from diamond import blocks
from diamond.actor_critic import ActorCritic, Outcome, Rollout, lambda_returns, losses, rollout
from diamond.denoiser import Denoiser, InnerModel, NoiseLaw, Normals, Segments, precondition
from diamond.frames import quantise
from diamond.optimizer import clip_gradients, learning_rate, new_optimizer
from diamond.replay import choose, episode_probabilities, padded
from diamond.reward_end import Play, RewardEndModel
from diamond.sampler import SamplerSettings, karras_sigmas, trajectory
from diamond.unet import UNet

GOLDEN = Path(__file__).parent / "golden"
FORWARD = {"rtol": 1e-4, "atol": 1e-5}
GRADIENT = {"rtol": 1e-3, "atol": 1e-5}
Case = dict[str, np.ndarray]


def tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array))


def weights(case: Case, prefix: str = "w/") -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor(array) for name, array in case.items() if name.startswith(prefix)}


def filled(module: nn.Module, case: Case, prefix: str = "w/") -> Any:
    module.load_state_dict(weights(case, prefix), strict=True)
    return module


# --- pure functions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.3, 0.0])
def test_preconditioners(parity: Parity, offset: float) -> None:
    case = load(GOLDEN / "precond.npz")
    found = precondition(tensor(case["sigma"]), 0.5, offset)
    for name in ("c_in", "c_out", "c_skip", "c_noise"):
        reference = case[f"offset{offset}/{name}"]
        parity.check("preconditioners", getattr(found, name), reference, rtol=1e-12, atol=1e-15)


def test_karras_sigmas(parity: Parity) -> None:
    for name, sigmas in load(GOLDEN / "karras_sigmas.npz").items():
        steps, low, high, rho = (word.lstrip("stepminaxrho") for word in name.split("_"))
        ours = karras_sigmas(int(steps), float(low), float(high), float(rho))
        parity.check("noise levels of the sampler", ours, sigmas, rtol=1e-5, atol=1e-9)


def test_noise_levels_of_training(parity: Parity) -> None:
    case = load(GOLDEN / "sigma_sampling.npz")
    ours = NoiseLaw(*(float(case[name]) for name in ("loc", "scale", "sigma_min", "sigma_max"))).sigma(
        tensor(case["z"])
    )
    parity.check("noise levels of training", ours, case["sigma"], rtol=1e-5, atol=1e-9)


def test_quantiser(parity: Parity) -> None:
    case = load(GOLDEN / "denoise_sampler.npz")
    parity.check("quantiser", quantise(tensor(case["quantizer/in"])), case["quantizer/out"], atol=0)
    parity.check("quantiser", quantise(tensor(case["quantizer/levels_in"])), case["quantizer/levels_out"], atol=0)


# --- layers ---------------------------------------------------------------------------------------------------------


def test_fourier(parity: Parity) -> None:
    case = load(GOLDEN / "blocks.npz")
    layer = filled(blocks.Fourier(16), {"w/weight": case["fourier/weight"]})
    parity.check("Fourier features", layer(tensor(case["fourier/in"])), case["fourier/out"], **FORWARD)


def test_norms(parity: Parity) -> None:
    case = load(GOLDEN / "blocks.npz")
    x, cond = tensor(case["x"]).requires_grad_(), tensor(case["cond"]).requires_grad_()
    norm = blocks.GroupNorm(64)
    norm.norm.load_state_dict({name: tensor(case[f"groupnorm/{name}"]) for name in ("weight", "bias")})
    assert blocks.groups_of(64) == case["groupnorm/num_groups"] == case["adagn/num_groups"]
    parity.check("group norm", norm(x), case["groupnorm/out"], **FORWARD)
    out = filled(blocks.AdaptiveGroupNorm(64, 16), case, "adagn/w/")(x, cond)
    parity.check("adaptive group norm", out, case["adagn/out"], **FORWARD)
    out.backward(tensor(case["adagn/grad_out"]))
    parity.check("adaptive group norm, gradients", x.grad, case["adagn/grad_x"], **GRADIENT)
    parity.check("adaptive group norm, gradients", cond.grad, case["adagn/grad_cond"], **GRADIENT)


def test_attention(parity: Parity) -> None:
    case = load(GOLDEN / "blocks.npz")
    x = tensor(case["x"]).requires_grad_()
    layer = filled(blocks.Attention(64), case, "attn/w/")
    assert layer.heads == case["attn/n_head"]
    out = layer(x)
    parity.check("attention", out, case["attn/out"], **FORWARD)
    out.backward(tensor(case["adagn/grad_out"]))
    parity.check("attention, gradients", x.grad, case["attn/grad_x"], **GRADIENT)


def test_residual_blocks(parity: Parity) -> None:
    case = load(GOLDEN / "blocks.npz")
    x, cond, x8 = tensor(case["x"]), tensor(case["cond"]), tensor(case["x8"])
    block = filled(blocks.ResBlock(64, 32, 16, has_attention=True), case, "resblock/w/")
    parity.check("residual block", block(x, cond), case["resblock/out"], **FORWARD)
    small = filled(blocks.SmallResBlock(64, 32), case, "smallres/w/")
    parity.check("small residual block", small(x), case["smallres/out"], **FORWARD)
    parity.check("downsampling", filled(blocks.Downsample(8), case, "down/w/")(x8), case["down/out"], **FORWARD)
    parity.check("upsampling", filled(blocks.Upsample(8), case, "up/w/")(x8), case["up/out"], **FORWARD)


def test_unet(parity: Parity) -> None:
    case = load(GOLDEN / "unet.npz")
    sizes = (case[name].tolist() for name in ("channels", "depths", "attn_depths"))
    unet = filled(UNet(12, *sizes), case)
    seen: dict[str, Tensor] = {}
    for way, levels in (("down", unet.d_blocks), ("up", unet.u_blocks)):
        for k, level in enumerate(levels):
            level.resblocks[-1].register_forward_hook(
                lambda _, __, out, name=f"{way}{k}_last": seen.update({name: out})
            )
    parity.check("U-Net", unet(tensor(case["x"]), tensor(case["cond"])), case["out"], **FORWARD)
    for name, out in seen.items():
        parity.check("U-Net, every level", out, case[name], **FORWARD)
    assert len(seen) == 4


# --- denoiser and sampler -------------------------------------------------------------------------------------------


def tiny_denoiser(case: Case) -> Denoiser:
    inner = InnerModel(5, 16, [8, 16], [1, 1], [False, True], history=4)
    return filled(Denoiser(inner, NoiseLaw(), history=4), case)


def test_inner_model_and_denoiser(parity: Parity) -> None:
    case = load(GOLDEN / "denoise_sampler.npz")
    denoiser = tiny_denoiser(case)
    inner = denoiser.inner_model
    noisy, sigma, obs, action = (tensor(case[name]) for name in ("noisy_next", "sigma", "prev_obs", "prev_act"))
    c = denoiser.coefficients(sigma)
    parity.check("conditioning", c.c_noise, case["c_noise"], **FORWARD)
    parity.check("conditioning", inner.noise_emb(c.c_noise), case["noise_emb"], **FORWARD)
    parity.check("conditioning", inner.act_emb(action), case["act_emb"], **FORWARD)
    parity.check("conditioning", inner.condition(c.c_noise, action), case["cond"], **FORWARD)
    parity.check("inner model", denoiser.model_output(noisy, c, obs, action), case["model_output"], **FORWARD)
    parity.check("denoiser", denoiser.estimate(noisy, sigma, obs, action), case["pre_quant"], **FORWARD)
    parity.check("denoiser, quantised", denoiser.denoise(noisy, sigma, obs, action), case["denoised"], atol=0)


@pytest.mark.parametrize(("name", "steps", "order"), [("euler3", 3, 1), ("euler1", 1, 1), ("heun4", 4, 2)])
def test_sampler(parity: Parity, name: str, steps: int, order: int) -> None:
    case = load(GOLDEN / "denoise_sampler.npz")
    denoiser = tiny_denoiser(case)
    obs, action = tensor(case["prev_obs"]), tensor(case["prev_act"])
    before: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.no_grad():
            before.append(denoiser.estimate(x, sigma, obs, action))
        return denoiser.denoise(x, sigma, obs, action)

    settings = SamplerSettings(steps=steps, order=order)
    sigmas = karras_sigmas(steps, settings.sigma_min, settings.sigma_max, settings.rho)
    parity.check("noise levels of the sampler", sigmas, case[f"{name}/sigmas"], rtol=1e-5, atol=1e-9)
    path = list(trajectory(denoise, tensor(case[f"{name}/x_init"]), sigmas, settings))
    component = f"sampler, {'Euler' if order == 1 else 'Heun'}, {steps} steps"
    parity.check(component, torch.stack(before), case[f"{name}/pre_quant_per_call"], **FORWARD)
    parity.check(component, torch.stack(path), case[f"{name}/trajectory"], **FORWARD)
    parity.check(component, path[-1], case[f"{name}/x_final"], **FORWARD)


def loss_case() -> tuple[Case, Denoiser, Segments, list[Normals]]:
    case = load(GOLDEN / "denoiser_loss.npz")
    mask = tensor(case["mask_padding"])
    batch = Segments(tensor(case["obs"]), tensor(case["act"]), mask, mask.sum(0).float())
    names = ("sigma_normal", "offset_normal", "pixel_normal")
    normals = [Normals(*(tensor(case[f"iter{i}/{name}"]) for name in names)) for i in range(2)]
    inner = InnerModel(5, 16, [8, 16], [1, 1], [False, False], history=4)
    return case, filled(Denoiser(inner, NoiseLaw(), history=4), case), batch, normals


def test_denoiser_loss_and_gradients(parity: Parity) -> None:
    case, denoiser, batch, normals = loss_case()
    loss = denoiser.loss(batch, normals)
    parity.check("denoiser loss", loss, case["loss"], **FORWARD)
    loss.backward()
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    assert len(gradients) == sum(name.startswith("grad/") for name in case)
    for name, gradient in gradients.items():
        parity.check("denoiser loss, gradients", gradient, case[f"grad/{name}"], **GRADIENT)


def test_what_is_fed_back(parity: Parity) -> None:
    """The second term's history ends in the quantised one-shot estimate of the first."""
    case, denoiser, batch, normals = loss_case()
    seen: list[Tensor] = []
    denoiser.inner_model.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    denoiser.loss(batch, normals)
    last = seen[1].unflatten(1, (4, 3))[:, -1] * denoiser.law.sigma_data
    parity.check("frame fed back", last, case["iter0/denoised_fed_back"], atol=1e-6)
    for i, normal in enumerate(normals):
        sigma = denoiser.law.sigma(normal.level)
        noisy = denoiser.add_noise(batch.obs[:, i + 4], sigma, normal)
        history = (seen[i] * denoiser.law.sigma_data).unflatten(1, (4, 3))
        estimate = denoiser.estimate(noisy, sigma, history, batch.action[:, i : i + 4])
        parity.check("denoiser", estimate, case[f"iter{i}/pre_quant"], **FORWARD)


def test_optimiser_steps(parity: Parity) -> None:
    case, denoiser, batch, normals = loss_case()
    denoiser.loss(batch, normals).backward()
    norm = clip_gradients(denoiser, 1.0)
    parity.check("gradient norm", norm, case["grad_norm_before_clip"], **GRADIENT)
    lrs = [learning_rate(1e-4, 100, update) for update in range(3)]
    parity.check("learning rates", np.array(lrs), case["lrs"], rtol=1e-6, atol=0)
    optimizer = new_optimizer(denoiser, 1e-4, 1e-2)
    for lr in lrs:
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = lr
        optimizer.step()
    state = denoiser.state_dict()
    for name in (name for name in case if name.startswith("after3steps/")):
        parity.check("AdamW with warm-up", state[name.removeprefix("after3steps/")], case[name], rtol=1e-5, atol=1e-7)


def test_decay_groups(parity: Parity) -> None:
    case, denoiser, batch, normals = loss_case()
    denoiser.loss(batch, normals).backward()
    clip_gradients(denoiser, 1.0)
    optimizer = new_optimizer(denoiser, 1e-2, 0.5)
    for _ in range(3):
        optimizer.step()
    prefix = "adamw_lr1e-2_wd0.5_3steps/"
    names = [name for name in case if name.startswith(prefix)]
    assert names
    for name in names:
        ours = denoiser.state_dict()[name.removeprefix(prefix)]
        parity.check("AdamW, what decays", ours, case[name], rtol=1e-4, atol=1e-5)


# --- reward and end -------------------------------------------------------------------------------------------------


def reward_case() -> tuple[Case, RewardEndModel]:
    case = load(GOLDEN / "rew_end_model.npz")
    model = RewardEndModel(4, 8, [8, 8], [1, 1], [False, False], 10, 16)
    return case, filled(model, case)


def test_reward_end_forward(parity: Parity) -> None:
    case, model = reward_case()
    obs, action = tensor(case["obs"]), tensor(case["act"])
    reward, end, (h, c) = model(obs[:, :-1], action[:, :-1], obs[:, 1:])
    parity.check("reward logits", reward, case["fwd/logits_rew"], **FORWARD)
    parity.check("end logits", end, case["fwd/logits_end"], **FORWARD)
    parity.check("state of R", torch.stack([h, c]), np.stack([case["fwd/h"], case["fwd/c"]]), **FORWARD)
    encoded = model.encoder(torch.cat([obs[:, 0], obs[:, 1]], 1), model.act_emb(action[:, 0]))
    parity.check("encoder of R", encoded, case["enc_out_first_frame"], **FORWARD)


def test_step_by_step_is_the_whole_sequence(parity: Parity) -> None:
    case, model = reward_case()
    obs, action, state, found = tensor(case["obs"]), tensor(case["act"]), None, []
    for t in range(obs.shape[1] - 1):
        reward, end, state = model(obs[:, t : t + 1], action[:, t : t + 1], obs[:, t + 1 : t + 2], state)
        found.append(torch.cat([reward, end], -1))
    whole = np.concatenate([case["fwd/logits_rew"], case["fwd/logits_end"]], -1)
    parity.check("R step by step", torch.cat(found, 1), whole, **FORWARD)


def test_reward_end_losses(parity: Parity) -> None:
    case, model = reward_case()
    mask = tensor(case["mask_padding"])
    final = torch.zeros(3, 3, 16, 16)
    final[0] = tensor(case["final_observation_row0"])
    batch = Play(
        tensor(case["obs"]), tensor(case["act"]), mask, mask.sum(0).float(), tensor(case["rew"]), tensor(case["end"]),
        tensor(case["trunc"]), final, torch.tensor([True, False, False]),
    )  # fmt: skip
    found = model.losses(batch)
    parity.check("reward loss", found["reward"], case["loss_rew"], **FORWARD)
    parity.check("end loss", found["end"], case["loss_end"], **FORWARD)
    total = found["reward"] + found["end"]
    parity.check("loss of R", total, case["loss"], **FORWARD)
    total.backward()
    for name, p in model.named_parameters():
        parity.check("loss of R, gradients", p.grad, case[f"grad/{name}"], **GRADIENT)


# --- actor and critic -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "horizon15", "lambda0"])
def test_lambda_returns_and_losses(parity: Parity, name: str) -> None:
    whole = load(GOLDEN / "lambda_returns_ac_loss.npz")
    case = {key.removeprefix(f"{name}/"): value for key, value in whole.items() if key.startswith(f"{name}/")}
    logits, value = tensor(case["logits"]).requires_grad_(), tensor(case["val"]).requires_grad_()
    reward, end, trunc, bootstrap = (tensor(case[key]) for key in ("rew", "end", "trunc", "val_bootstrap"))
    gamma, lam = float(case["gamma"]), float(case["lambda_"])
    returns = lambda_returns(reward, end, trunc, bootstrap, gamma, lam)
    parity.check("lambda-returns", returns, case["lambda_returns"], rtol=1e-5, atol=1e-6)
    play = Rollout(logits, value, bootstrap, tensor(case["act"]), reward, end, trunc)
    found, entropy = losses(play, gamma, lam, 1.0, 0.001)
    for term, key in (("policy", "loss_actions"), ("value", "loss_values"), ("entropy", "loss_entropy")):
        parity.check(f"{term} loss", found[term], case[key], **FORWARD)
    total = torch.stack(list(found.values())).sum()
    parity.check("actor-critic loss", total, case["loss"], **FORWARD)
    parity.check("policy entropy", entropy / math.log(2), case["policy_entropy_bits"], **FORWARD)
    total.backward()
    parity.check("actor-critic loss, gradients", logits.grad, case["grad_logits"], **GRADIENT)
    parity.check("actor-critic loss, gradients", value.grad, case["grad_val"], **GRADIENT)


class Script:
    """A world that plays the recorded steps, whatever the action."""

    def __init__(self, case: Case) -> None:
        self.case, self.number = case, 0

    def step(self, action: Tensor) -> Outcome:
        case, k = self.case, self.number
        self.number += 1
        reward, end, trunc = (tensor(case[name][:, k]) for name in ("rew", "end", "trunc"))
        dead = ((end + trunc) > 0).nonzero().flatten()
        nothing = np.zeros(0, np.float32)
        final, burn_in = (case.get(f"env/step{k}/{name}", nothing) for name in ("final_observation", "burnin_obs"))
        obs = tensor(case[f"env/step{k}/next_obs"])
        return Outcome(obs, reward, end, trunc, dead, tensor(final), tensor(burn_in))


def test_recurrent_rollout(parity: Parity) -> None:
    case = load(GOLDEN / "actor_critic_rollout.npz")
    policy = filled(ActorCritic(5, case["cfg/channels"].tolist(), case["cfg/down"].tolist(), 8, 16), case)
    obs, world, actions = tensor(case["obs0"]), Script(case), iter(tensor(case["act"]).unbind(1))
    parity.check("policy encoder", policy.encoder(obs).flatten(1), case["cell/x"], **FORWARD)
    logits, value, (h, c) = policy(obs, policy.initial_state(3))
    for name, ours in (("logits", logits), ("val", value), ("h", h), ("c", c)):
        parity.check("policy and value", ours, case[f"cell/{name}"], **FORWARD)
    state = policy.initial_state(3)
    for j in range(2):
        play, obs, state = rollout(policy, world, obs, state, 4, lambda _: next(actions))
        for name, ours in (("logits", play.logits), ("val", play.value), ("val_bootstrap", play.bootstrap)):
            parity.check("rollout with resets", ours, case[f"seg{j}/{name}"], **FORWARD)
        found, _ = losses(play, 0.985, 0.95, 1.0, 0.001)
        total = torch.stack(list(found.values())).sum()
        parity.check("rollout, loss", total, case[f"seg{j}/loss"], **FORWARD)
        policy.zero_grad()
        total.backward()
        for name, p in policy.named_parameters():
            if f"seg{j}/grad/{name}" in case:
                parity.check("rollout, gradients", p.grad, case[f"seg{j}/grad/{name}"], **GRADIENT)


# --- replay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["before_start_only", "beyond_end"])
def test_replay_sampling(parity: Parity, name: str) -> None:
    case = load(GOLDEN / "replay_sampling.npz")
    lengths, age = case["lengths"].tolist(), case["weights"].tolist()
    parity.check("age weights", episode_probabilities(lengths, age), case[f"{name}/episode_probs"], rtol=1e-12, atol=0)
    parity.check("age weights", episode_probabilities(lengths, None), case["uniform/episode_probs"], rtol=1e-12, atol=0)
    random = np.random.RandomState(int(case[f"{name}/np_seed"]))
    for reference in case[f"{name}/segments"]:
        size, length = int(case["batch_size"]), int(case["seq_length"])
        ours = choose(lengths, age, size, length, random, beyond_end=name == "beyond_end")
        parity.check("segments drawn", ours, reference, atol=0)


def test_padding(parity: Parity) -> None:
    case = load(GOLDEN / "replay_sampling.npz")
    length = int(case["lengths"][0])
    rows, mask = padded(np.arange(length), -2, length + 3)
    parity.check("padding", rows, case["pad/act"], atol=0)
    parity.check("padding", mask, case["pad/mask"], atol=0)

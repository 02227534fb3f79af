"""Numbers of the authors' code against the shipped functions, in float32, at the tolerances of golden/README.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common import dist
from common.golden import Parity, load
from dreamerv3 import actor_critic, distributions, imagination_fast, rssm, rssm_fast
from dreamerv3.actor_critic import BoundedNormal, Categorical, Imagined, ReturnNorm, lambda_return, move_slow_critic
from dreamerv3.agent import Agent, Noise
from dreamerv3.config import EDITIONS, Config
from dreamerv3.networks import BlockLinear, Conv, Decoder, Encoder, RMSNorm, UpConv
from dreamerv3.optimizer import LaProp
from dreamerv3.replay import Batch, Ratio, Replay
from dreamerv3.rssm import RSSM, State
from dreamerv3.spaces import ActionSpace, ObsSpace, Sizes
from dreamerv3.tests import official
from dreamerv3.train import loss_weights, weighted_sum

GOLDEN = Path(__file__).parent / "golden"
Case = dict[str, np.ndarray]


def tensor(array: Any, dtype: torch.dtype | None = None) -> Tensor:
    made = torch.from_numpy(np.asarray(array))
    return made if dtype is None else made.to(dtype)


@pytest.fixture
def forced(monkeypatch) -> None:
    """Where random numbers go in, the golden draws go in: a class instead of a uniform number, an action instead of
    a normal one."""
    for module, name in ((distributions, "draw"), (rssm, "draw"), (rssm_fast, "draw")):
        monkeypatch.setattr(module, name, lambda probs, index: index.long())
    monkeypatch.setattr(imagination_fast, "draw_by_class", lambda probs, index: index.long())
    monkeypatch.setattr(BoundedNormal, "sample", lambda self, action: action)


def relative(parity: Parity, component: str, ours: Tensor | None, theirs: np.ndarray | Tensor, share: float) -> None:
    """A gradient, to a share of its largest entry."""
    assert ours is not None
    parity.check(component, ours, theirs, atol=share * max(float(np.abs(np.asarray(theirs)).max()), 1e-12))


# --- distributions --------------------------------------------------------------------------------------------------


def test_symlog_and_symexp(parity: Parity) -> None:
    case = load(GOLDEN / "symlog_symexp.npz")
    parity.check("symlog", distributions.symlog(tensor(case["x"])), case["symlog"], atol=1e-7, rtol=1e-6)
    parity.check("symexp", distributions.symexp(tensor(case["y"])), case["symexp"], atol=1e-7, rtol=2e-6)


def test_two_hot(parity: Parity) -> None:
    case = load(GOLDEN / "twohot_255.npz")
    parity.check("two-hot: bins", distributions.symexp_bins(255), case["bins"], atol=0, rtol=2e-6)
    bins, targets = tensor(case["bins"]), tensor(case["targets"])
    below, above, weight = distributions.two_hot(targets, bins)
    probs = torch.zeros(20, 255).scatter_add_(1, below[:, None], (1 - weight)[:, None])
    probs.scatter_add_(1, above[:, None], weight[:, None])
    parity.check("two-hot: target", probs, case["target_probs"], atol=1e-5, rtol=1e-5)
    logits = tensor(case["logits"]).requires_grad_()
    loss = distributions.two_hot_loss(logits, targets, bins)
    loss.sum().backward()
    parity.check("two-hot: loss", loss, case["loss"], atol=1e-5, rtol=1e-5)
    parity.check("two-hot: gradient", logits.grad, case["grad_logits_of_sum"], atol=1e-5, rtol=1e-5)
    pred = distributions.two_hot_mean(logits, bins)
    terms = (torch.softmax(logits.detach(), -1) * bins).abs().sum(-1).clamp(min=1)
    parity.check("two-hot: mean", pred / terms, tensor(case["pred"]) / terms, atol=1e-4)
    parity.check("two-hot: mean", distributions.two_hot_mean(torch.zeros(1, 255), bins), case["pred_uniform"], atol=0)


@pytest.mark.parametrize("name", ["kl_balance", "kl_balance_smallkl"])
def test_kl_balance(parity: Parity, name: str) -> None:
    case = load(GOLDEN / f"{name}.npz")
    post, prior = (tensor(case[f"{part}_logits"]).requires_grad_() for part in ("post", "prior"))
    p, q = (distributions.mixture(logits, float(case["unimix"])) for logits in (post, prior))
    dyn, rep = distributions.kl_balance(p, q, float(case["free_nats"]))
    total = dyn.mean() + 0.1 * rep.mean()
    total.backward()
    near = {"atol": 1e-6, "rtol": 1e-5}
    parity.check("KL: probabilities", p.log_probs, case["post_unimix_logprobs"], **near)
    parity.check("KL", distributions.categorical_kl(p, q), case["kl_raw"], **near)
    for ours, theirs in ((dyn, "dyn"), (rep, "rep"), (total, "total")):
        parity.check("KL: free bits", ours, case[theirs], **near)
    parity.check("KL: entropy", distributions.categorical_entropy(p).sum(-1), case["post_entropy"], **near)
    parity.check("KL: gradient", post.grad, case["grad_post"], **near)
    parity.check("KL: gradient", prior.grad, case["grad_prior"], **near)
    if name.endswith("smallkl"):
        assert post.grad is not None
        assert prior.grad is not None
        assert not post.grad.any()
        assert not prior.grad.any()


def test_heads(parity: Parity) -> None:
    case, near = load(GOLDEN / "heads.npz"), {"atol": 1e-5, "rtol": 1e-5}
    for name, unimix in (("plain", 0.0), ("unimix", 0.01)):
        policy = Categorical(distributions.mixture(tensor(case["disc_logits"]), unimix))
        log_prob = policy.log_prob(tensor(case["disc_action"]).long())
        parity.check("heads: categorical", log_prob, case[f"disc_{name}_logp"], **near)
        parity.check("heads: categorical", policy.entropy(), case[f"disc_{name}_entropy"], **near)
        parity.check("heads: categorical", policy.probs.argmax(-1), case[f"disc_{name}_mode"], atol=0)
    normal = BoundedNormal(*distributions.bounded_normal(tensor(case["cont_mean_raw"]), tensor(case["cont_std_raw"])))
    for ours, theirs in (
        (normal.mean, "cont_mean"),
        (normal.std, "cont_std"),
        (normal.log_prob(tensor(case["cont_action"])), "cont_logp"),
        (normal.entropy(), "cont_entropy"),
    ):
        parity.check("heads: bounded normal", ours, case[theirs], **near)
    binary = distributions.bernoulli_loss(tensor(case["binary_logit"]), tensor(case["binary_target"]))
    parity.check("heads: continue", binary, case["binary_loss"], **near)
    target = distributions.symlog(tensor(case["symlogmse_target"]))
    error = distributions.squared_error(tensor(case["symlogmse_pred"]), target, 0.0)
    parity.check("heads: symlog error", error, case["symlogmse_loss"], **near)


def test_symlog_error_with_tolerance(parity: Parity) -> None:
    case = load(GOLDEN / "apr24_symlog_mse_tol.npz")
    pred = tensor(case["pred"]).requires_grad_()
    target = distributions.symlog(tensor(case["target"]))
    loss = distributions.squared_error(pred, target, EDITIONS["arxiv_v2"].error_tolerance)
    loss.sum().backward()
    assert pred.grad is not None
    parity.check("arXiv: symlog error", loss, case["loss"], atol=1e-6, rtol=1e-4)
    parity.check("arXiv: symlog error", pred.grad, case["grad_pred_of_sum"], atol=1e-6, rtol=1e-4)
    for ours, theirs in ((loss, "loss"), (pred.grad, "grad_pred_of_sum")):
        assert torch.equal(ours == 0, tensor(case[theirs] == 0))


# --- networks -------------------------------------------------------------------------------------------------------


def test_block_linear_and_norm(parity: Parity) -> None:
    case = load(GOLDEN / "block_linear.npz")
    layer = BlockLinear(12, 8, 4)
    with torch.no_grad():
        layer.weight.copy_(tensor(case["kernel"]))
        layer.bias.copy_(tensor(case["bias"]))
        parity.check("block linear", layer(tensor(case["x"])), case["y"], atol=1e-6, rtol=1e-5)
    case = load(GOLDEN / "rms_norm.npz")
    for prefix in ("", "img_"):
        norm = RMSNorm(6)
        with torch.no_grad():
            norm.scale.copy_(tensor(case[f"{prefix}scale"]))
            parity.check("RMS norm", norm(tensor(case[f"{prefix}x"])), case[f"{prefix}y"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["down2", "same1", "up2", "up1", "down2_odd"])
def test_convolutions(parity: Parity, name: str) -> None:
    full = load(GOLDEN / "apr24_conv_layers.npz")
    case = {key.removeprefix(f"{name}/"): value for key, value in full.items() if key.startswith(f"{name}/")}
    inputs, outputs = case["kernel"].shape[2:]
    layer = UpConv(inputs, outputs) if name == "up2" else Conv(inputs, outputs, 2 if "down2" in name else 1)
    with torch.no_grad():
        layer.weight.copy_(official.our_layout(case["kernel"], layer))
        layer.bias.copy_(tensor(case["bias"]))
    x = tensor(case["x"]).requires_grad_()
    y = layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (y * tensor(case["wt"])).sum().backward()
    near = {"atol": 1e-5, "rtol": 1e-4}
    parity.check("arXiv: convolutions", y, case["y"], **near)
    kernel = official.our_layout(case["g_kernel"], layer)
    for ours, theirs in ((layer.weight.grad, kernel), (layer.bias.grad, case["g_bias"]), (x.grad, case["g_x"])):
        parity.check("arXiv: convolutions, gradient", ours, theirs, **near)


VECTORS = {
    "orientations": ObsSpace("float", (4,)),
    "height": ObsSpace("float"),
    "velocity": ObsSpace("float", (3,)),
}
KINDS = {
    "orientations": ObsSpace("float", (4,)),
    "height": ObsSpace("float", (1,)),
    "kind": ObsSpace("discrete", (), 5),
    "velocity": ObsSpace("float", (3,)),
}


class World(torch.nn.Module):
    """The encoder and decoder below the names they have in an agent."""

    def __init__(self, spaces, sizes, edition) -> None:
        super().__init__()
        self.world = torch.nn.Module()
        self.world.encoder = self.encoder = Encoder(spaces, sizes, edition)
        self.world.decoder = self.decoder = Decoder(spaces, sizes, edition)


@pytest.mark.parametrize(
    ("name", "edition", "spaces", "depth", "units", "blocks", "mults"),
    [
        ("encdec_image", "nature", {"image": ObsSpace("image", (16, 16, 3))}, 4, 6, 8, (2, 4)),
        ("encdec_vector", "nature", VECTORS, 4, 8, 8, (2, 4)),
        ("apr24_encdec_image", "arxiv_v2", {"image": ObsSpace("image", (32, 32, 3))}, 2, 6, 4, (1, 2, 3, 4, 4)),
        ("apr24_encdec_vector", "arxiv_v2", KINDS, 2, 8, 4, (1, 2, 3, 4, 4)),
    ],
)
def test_encoder_and_decoder(parity: Parity, name, edition, spaces, depth, units, blocks, mults) -> None:
    case = load(GOLDEN / f"{name}.npz")
    component = ("arXiv: " if edition == "arxiv_v2" else "") + "encoder and decoder"
    module = World(spaces, Sizes(16, 8, 3, 4, depth, units, blocks), official.edition(edition, mults))
    official.load(module, case, edition)
    obs = {key: tensor(case[f"obs/{key}"]) for key in spaces}
    h, z = tensor(case["deter"]).requires_grad_(), tensor(case["stoch"]).requires_grad_()
    tokens = module.encoder(obs)
    predictions = module.decoder(h, z)
    losses = module.decoder.losses(predictions, obs)
    near = {"atol": 1e-5, "rtol": 1e-4}
    parity.check(component, tokens, case["tokens"], **near)
    assert set(predictions) == set(spaces)
    for key, prediction in predictions.items():
        theirs = tensor(case[f"pred/{key}"])
        if spaces[key].kind == "discrete":  # logits are defined up to a constant
            prediction, theirs = (torch.log_softmax(x, -1) for x in (prediction, theirs))
        parity.check(component, prediction, theirs.reshape(prediction.shape), **near)
        tolerance = {"atol": 0.0, "rtol": 1e-5} if key == "image" and edition == "arxiv_v2" else near
        parity.check(component, losses[key], case[f"loss/{key}"], **tolerance)
    if "wt_tokens" in case:
        total = (tokens * tensor(case["wt_tokens"])).sum() + sum(loss.mean() for loss in losses.values())
        total.backward()
        for parameter, theirs in official.ours(module, case, "g/", edition).items():
            relative(parity, f"{component}, gradient", module.get_parameter(parameter).grad, theirs, 1e-3)
        relative(parity, f"{component}, gradient", h.grad, case["g_deter"], 1e-3)
        relative(parity, f"{component}, gradient", z.grad, case["g_stoch"], 1e-3)


# --- RSSM -----------------------------------------------------------------------------------------------------------


class Dynamics(torch.nn.Module):
    """The RSSM below the name it has in an agent."""

    def __init__(self, case: Case, actions: int) -> None:
        super().__init__()
        deter, hidden, stoch, classes, blocks = (
            int(case[k]) for k in ("deter", "hidden", "stoch", "classes", "blocks")
        )
        sizes = Sizes(deter, hidden, stoch, classes, 1, 1, blocks)
        self.world = torch.nn.Module()
        self.world.rssm = self.rssm = RSSM(sizes, actions, case["tokens"].shape[-1], 0.01)
        official.load(self, case, "nature")


@pytest.mark.parametrize("name", ["rssm_disc", "rssm_cont"])
def test_rssm(parity: Parity, forced, name: str) -> None:
    case = load(GOLDEN / f"{name}.npz")
    module = Dynamics(case, case["prev_action_vec"].shape[-1])
    model, near = module.rssm, {"atol": 1e-5, "rtol": 1e-4}
    start = State(tensor(case["init_deter"]), tensor(case["init_stoch"]))
    actions = tensor(case["prev_action_vec"])
    parity.check("RSSM: core", model.core(start, actions[:, 0]), case["core_step_deter"], **near)

    def observe(draws: np.ndarray, tokens: Tensor) -> tuple[State, Tensor]:
        index = tensor(draws).argmax(-1)
        return model.observe(start, actions, tokens, tensor(case["is_first"]), index)

    states, logits = observe(case["obs_stoch"], tensor(case["tokens"]))
    parity.check("RSSM: observe", states.h, case["obs_deter"], **near)
    parity.check("RSSM: observe", states.z, case["obs_stoch"], atol=1e-6)
    parity.check("RSSM: observe", logits, case["obs_post_logits"], **near)
    parity.check("RSSM: prior", model.prior_logits(states.h), case["obs_prior_logits"], **near)
    post, prior = (distributions.mixture(x, 0.01) for x in (logits, model.prior_logits(states.h)))
    parity.check("RSSM: dynamics loss", distributions.kl_balance(post, prior, 1.0)[0], case["dyn_loss"], **near)

    state = State(states.h[:, -1], states.z[:, -1])
    for t in range(case["imag_action"].shape[1]):
        action = tensor(case["imag_action"])[:, t]
        vector = action if action.ndim == 2 else torch.nn.functional.one_hot(action.long(), actions.shape[-1]).float()
        state = model.imagine_step(state, vector, tensor(case["img_stoch"])[:, t].argmax(-1))
        parity.check("RSSM: imagine", state.h, case["img_deter"][:, t], **near)
        parity.check("RSSM: imagine", model.prior_logits(state.h), case["img_prior_logits"][:, t], **near)

    tokens = tensor(case["tokens"]).requires_grad_()
    states, _ = observe(case["gradrun_stoch"], tokens)
    parity.check("RSSM: observe", states.h, case["gradrun_deter"], **near)
    ((states.h * tensor(case["gradrun_wd"])).sum() + (states.z * tensor(case["gradrun_ws"])).sum()).backward()
    loose = {"atol": 1e-4, "rtol": 1e-3}
    parity.check("RSSM: gradient", tokens.grad, case["grad_tokens"], **loose)
    for parameter, theirs in official.ours(module, case, "grad/", "nature").items():
        parity.check("RSSM: gradient", module.get_parameter(parameter).grad, theirs, **loose)


# --- actor and critic -----------------------------------------------------------------------------------------------


def test_lambda_returns(parity: Parity) -> None:
    case, near = load(GOLDEN / "lambda_return.npz"), {"atol": 1e-5, "rtol": 1e-5}
    last, term, rew, boot = (tensor(case[f"replay_{k}"]).float().t() for k in ("last", "term", "rew", "boot"))
    ours = lambda_return(rew, (1 - term) * float(case["replay_disc"]), last, boot, float(case["replay_lam"]))
    parity.check("lambda-return", ours.t(), case["replay_ret"], **near)
    con, rew, val = (tensor(case[f"imag_{k}"]).t() for k in ("con", "rew", "val"))
    ours = lambda_return(rew, con, torch.zeros_like(con), val, float(case["imag_lam"]))
    parity.check("lambda-return", ours.t(), case["imag_ret"], **near)
    parity.check("lambda-return", con.cumprod(0).t(), case["imag_weight"], **near)


def test_return_norm(parity: Parity) -> None:
    case = load(GOLDEN / "return_norm.npz")
    norm = ReturnNorm((5.0, 95.0), float(case["rate"]), float(case["limit"]))
    for k, batch in enumerate(tensor(case["batches"])):
        offset, scale = norm.update(batch)
        parity.check("return normalisation", offset, case["offset"][k], atol=1e-5, rtol=1e-4)
        parity.check("return normalisation", scale, case["scale"][k], atol=1e-5, rtol=1e-4)


def test_discrete_actor_of_the_arxiv_edition(parity: Parity) -> None:
    case, near = load(GOLDEN / "apr24_actor_disc.npz"), {"atol": 1e-5, "rtol": 1e-5}
    unimix, action = float(case["unimix"]), tensor(case["action"]).long()

    def leaf() -> tuple[Tensor, Categorical]:
        logits = tensor(case["logits"]).requires_grad_()
        return logits, Categorical(distributions.mixture(logits, unimix))

    _, policy = leaf()
    parity.check("arXiv: discrete actor", policy.probs, case["probs"], **near)
    parity.check("arXiv: discrete actor", policy.mixture.log_probs, case["logprob_all"], **near)
    advantage, weight = tensor(case["adv"]), tensor(case["weight"])
    for name, compute in (
        ("logprob", lambda p: p.log_prob(action)),
        ("entropy", lambda p: p.entropy()),
        ("policy_loss", lambda p: actor_critic.actor_loss(p, action, advantage, weight, float(case["actent"]))),
    ):
        logits, policy = leaf()
        value = compute(policy)
        value.sum().backward()
        parity.check("arXiv: discrete actor", value, case[name], **near)
        parity.check("arXiv: discrete actor, gradient", logits.grad, case[f"grad_{name}"], **near)
    logits, policy = leaf()
    (distributions.straight_through(action, policy.probs) * tensor(case["st_wt"])).sum().backward()
    parity.check("arXiv: discrete actor, gradient", logits.grad, case["st_grad"], **near)


def test_slow_critic(parity: Parity) -> None:
    case = load(GOLDEN / "apr24_slow_critic.npz")
    slow, critic = torch.nn.Module(), torch.nn.Module()
    slow.w = torch.nn.Parameter(tensor(case["slow_init"]))
    critic.w = torch.nn.Parameter(torch.zeros(5))
    updates = torch.zeros(())
    for k in range(5):
        critic.w.data.copy_(tensor(case[f"critic{k}"]))
        move_slow_critic(slow, critic, float(case["fraction"]), updates)
        parity.check("slow critic", slow.w, case[f"slow{k}"], atol=1e-7, rtol=1e-6)


class Readout(torch.nn.Module):
    """A head that has already been evaluated: its features are its outputs."""

    def __init__(self, bins: Tensor) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, feature: Tensor) -> Tensor:
        return feature

    def mean(self, logits: Tensor) -> Tensor:
        return distributions.two_hot_mean(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return distributions.two_hot_loss(logits, target, self.bins)


def bare_agent(edition: str) -> Agent:
    sizes = Sizes(16, 8, 4, 4, 2, 8, 4)
    return Agent({"x": ObsSpace("float", (2,))}, ActionSpace(5, True), sizes, EDITIONS[edition], Config(bins=41))


def behaviour(
    agent: Agent,
    policy: Categorical | BoundedNormal,
    action: Tensor,
    value_logits: Tensor,
    slow_logits: Tensor,
    reward: Tensor,
    cont: Tensor,
    is_terminal: Tensor,
    bins: Tensor,
    monkeypatch,
):
    """`Agent.behaviour_losses` with given network outputs, all time-major."""
    agent.critic, agent.slow_critic = Readout(bins), Readout(bins)  # type: ignore[assignment]
    monkeypatch.setattr(agent.critic, "forward", lambda feature: value_logits)
    monkeypatch.setattr(agent.slow_critic, "forward", lambda feature: slow_logits[:-1])
    monkeypatch.setattr(agent.world, "predict", lambda feature: (reward, cont))
    monkeypatch.setattr(agent.actor, "forward", lambda feature: policy)
    length, starts = cont.shape
    feature = torch.zeros(length, starts, 32)
    flags = torch.zeros(1, starts, dtype=torch.bool)
    batch = Batch({}, flags, flags, flags, flags, is_terminal, flags, flags)
    return agent.behaviour_losses(Imagined(feature, action), batch, dist.setup())


@pytest.mark.parametrize("name", ["actor_critic_disc", "actor_critic_cont"])
def test_actor_and_critic(parity: Parity, monkeypatch, name: str) -> None:
    case, agent = load(GOLDEN / f"{name}.npz"), bare_agent("nature")
    bins, near = tensor(case["bins"]), {"atol": 1e-4, "rtol": 2e-4}
    for part in ("b0", "b1"):
        raw = tensor(case[f"{part}_policy_params"]).requires_grad_()
        values = tensor(case[f"{part}_value_logits"]).requires_grad_()
        params = raw.transpose(0, 1)[:-1]
        policy: Categorical | BoundedNormal
        if name.endswith("disc"):
            policy = Categorical(distributions.mixture(params, 0.0))
        else:
            policy = BoundedNormal(*distributions.bounded_normal(params[..., 0, :], params[..., 1, :]))
        arrays = (tensor(case[f"{part}_{k}"]).transpose(0, 1) for k in ("action", "slowvalue_logits", "rew", "con"))
        action, slow, reward, cont = arrays
        action = action.long() if action.ndim == 2 else action
        none = torch.zeros(cont.shape[1], dtype=torch.bool)
        losses, returns, metrics = behaviour(
            agent, policy, action, values.transpose(0, 1), slow, reward, cont, none, bins, monkeypatch
        )
        (losses["actor"].mean() + losses["critic"].mean()).backward()
        for ours, theirs in (
            (losses["actor"].t(), "policy_loss"),
            (losses["critic"].t(), "value_loss"),
            (returns.t(), "ret"),
            (metrics["return_offset"], "ret_offset"),
            (metrics["return_scale"], "ret_scale"),
        ):
            parity.check("actor and critic", ours, case[f"{part}_{theirs}"], **near)
        relative(parity, "actor and critic, gradient", raw.grad, case[f"{part}_grad_policy_params"], 2e-4)
        relative(parity, "actor and critic, gradient", values.grad, case[f"{part}_grad_value_logits"], 2e-4)
    check_replay_critic(parity, "replay critic", agent, case, "repl_", {}, monkeypatch)


def check_replay_critic(
    parity: Parity, component: str, agent: Agent, case: Case, prefix: str, names: dict[str, str], monkeypatch
) -> None:
    """The critic's loss on replayed rewards, from given logits."""

    def get(name: str) -> Tensor:
        return tensor(case[names.get(name, prefix + name)])

    logits = get("value_logits").requires_grad_()
    monkeypatch.setattr(agent.critic, "forward", lambda feature: logits)
    monkeypatch.setattr(agent.slow_critic, "forward", lambda feature: get("slowvalue_logits")[:, :-1])
    last, term = get("last"), get("term")
    state = State(torch.zeros(*last.shape, 16), torch.zeros(*last.shape, 4, 4))
    batch = Batch({}, last, get("rew"), last, last, term, state.h, state.z)
    observed = type("Observed", (), {"states": state})
    loss = agent.replay_critic_loss(batch, observed, get("boot"))  # type: ignore[arg-type]
    loss.mean().backward()
    parity.check(component, loss, get("repval_loss"), atol=1e-4, rtol=2e-4)
    share = 1e-3 if prefix != "repl_" else 2e-4
    relative(parity, f"{component}, gradient", logits.grad, get("grad_value_logits").numpy(), share)


def test_actor_and_critic_of_the_arxiv_edition(parity: Parity, monkeypatch) -> None:
    full, agent = load(GOLDEN / "apr24_actor_critic_disc.npz"), bare_agent("arxiv_v2")
    bins, near = tensor(full["bins"]), {"atol": 1e-4, "rtol": 2e-4}
    for part in ("b0/", "b1/"):
        case = {key.removeprefix(part): value for key, value in full.items() if key.startswith(part)}
        raw = tensor(case["policy_params"]).requires_grad_()
        values = tensor(case["value_logits"]).requires_grad_()
        policy = Categorical(distributions.mixture(raw.transpose(0, 1)[:-1], 0.01))
        slow, reward, cont = (tensor(case[k]).transpose(0, 1) for k in ("slow_logits", "img_rew", "img_con"))
        action = tensor(case["action"]).t().long()
        is_terminal = tensor(case["is_terminal"])
        losses, returns, metrics = behaviour(
            agent, policy, action, values.transpose(0, 1), slow, reward, cont, is_terminal, bins, monkeypatch
        )
        (losses["actor"].mean() + losses["critic"].mean()).backward()
        for ours, theirs in (
            (losses["actor"].t(), "policy_loss"),
            (losses["critic"].t(), "value_loss"),
            (returns.t(), "ret"),
            (metrics["return_offset"], "offset"),
            (metrics["return_scale"], "scale"),
        ):
            parity.check("arXiv: actor and critic", ours, case[theirs], **near)
        relative(parity, "arXiv: actor and critic, gradient", raw.grad, case["grad_policy_params"], 1e-3)
        relative(parity, "arXiv: actor and critic, gradient", values.grad, case["grad_value_logits"], 1e-3)
        case["boot"] = returns[0].view(is_terminal.shape).numpy()
        names = {"value_logits": "repl_value_logits", "slowvalue_logits": "repl_slow_logits", "rew": "reward"}
        names |= {"last": "is_last", "term": "is_terminal", "boot": "boot", "repval_loss": "repl_loss"}
        names |= {"grad_value_logits": "grad_repl_value_logits"}
        check_replay_critic(parity, "arXiv: replay critic", agent, case, "", names, monkeypatch)


# --- optimiser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "atol"), [("laprop_agc", 1e-7), ("laprop_agc_default", 1e-12)])
def test_optimiser(parity: Parity, name: str, atol: float) -> None:
    case = load(GOLDEN / f"{name}.npz")
    names = [key.removeprefix("p0_") for key in case if key.startswith("p0_")]
    parameters = {key: torch.nn.Parameter(tensor(case[f"p0_{key}"]).clone()) for key in names}
    optimizer = LaProp(
        parameters.values(),
        lr=float(case["lr"]),
        warmup=int(case["warmup"]),
        agc=float(case["agc"]),
        pmin=float(case["pmin"]),
        betas=(float(case["beta1"]), float(case["beta2"])),
        eps=float(case["eps"]),
    )
    for t in range(int(case["steps"])):
        before = {key: p.detach().clone() for key, p in parameters.items()}
        for key, p in parameters.items():
            p.data.copy_(tensor(case[f"p{t}_{key}"]))
            p.grad = tensor(case[f"g{t}_{key}"]).clone()
            before[key] = p.detach().clone()
        if name == "laprop_agc_default":
            # Updates of 1e-8 vanish in a weight of 1: they are taken from weights at zero, as the case states them.
            found = optimizer_updates(optimizer, parameters)
        else:
            optimizer.step()
            found = {key: p.detach() - before[key] for key, p in parameters.items()}
            for key, p in parameters.items():
                parity.check("LaProp with AGC", p, case[f"p{t + 1}_{key}"], atol=atol, rtol=1e-4)
        for key, update in found.items():
            if name == "laprop_agc_default":
                parity.check("LaProp with AGC: update", update, case[f"up{t}_{key}"], atol=atol, rtol=1e-4)


def optimizer_updates(optimizer: LaProp, parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """What `step` adds, caught before float32 weights swallow it."""
    return dict(zip(parameters, optimizer.updates(optimizer.param_groups[0]), strict=True))


# --- whole update ---------------------------------------------------------------------------------------------------


def batch_of(case: Case, spaces: dict[str, ObsSpace]) -> Batch:
    """Row 0 gives the first state and the first previous action, the others are trained."""
    get = {key.removeprefix("batch/"): tensor(case[key]) for key in case if key.startswith("batch/")}
    stoch = get["dyn/stoch"]
    return Batch(
        obs={name: get[name][:, 1:] for name in spaces},
        prev_action=get["action"][:, :-1],
        reward=get["reward"][:, 1:],
        is_first=get["is_first"][:, 1:],
        is_last=get["is_last"][:, 1:],
        is_terminal=get["is_terminal"][:, 1:],
        start_h=get["dyn/deter"][:, 0],
        start_z=(stoch if stoch.ndim == 3 else stoch.argmax(-1))[:, 0],
    )


@pytest.mark.parametrize(
    ("name", "edition", "spaces", "actions", "mults"),
    [
        ("agent_loss_image_disc", "nature", {"image": ObsSpace("image", (16, 16, 3))}, ActionSpace(4, True), (2, 4)),
        (
            "agent_loss_vector_cont",
            "nature",
            {"pos": ObsSpace("float", (3,)), "vel": ObsSpace("float", (2,))},
            ActionSpace(2, False),
            (2, 4),
        ),
        (
            "apr24_agent_loss_image_disc",
            "arxiv_v2",
            {"image": ObsSpace("image", (32, 32, 3))},
            ActionSpace(4, True),
            (1, 2, 3, 4, 4),
        ),
        (
            "apr24_agent_loss_vector_cont",
            "arxiv_v2",
            {key: space for key, space in KINDS.items() if key != "kind"},
            ActionSpace(2, False),
            (1, 2, 3, 4, 4),
        ),
    ],
)
@pytest.mark.parametrize("use_fast", [False, True])
def test_whole_update(parity: Parity, forced, name, edition, spaces, actions, mults, use_fast) -> None:
    case = load(GOLDEN / f"{name}.npz")
    horizon = case["img_deter"].shape[1]
    # The Nature cases are those of the authors' code, which drops the actor's unimix.
    unimix = 0.01 if edition == "arxiv_v2" else 0.0
    config = Config(edition=edition, bins=41, imagination_length=horizon, actor_unimix=unimix)
    config = replace(config, use_fast=use_fast, precision="float32")
    agent = Agent(spaces, actions, Sizes(16, 8, 4, 4, 2, 8, 4), official.edition(edition, mults), config)
    official.load(agent, case, edition)
    with torch.no_grad():
        for slow, critic in zip(agent.slow_critic.parameters(), agent.critic.parameters(), strict=True):
            slow.copy_(critic * float(case["slow_ratio"]))
    batch = batch_of(case, spaces)
    action = tensor(case["imag_act"]).transpose(0, 1)
    noise = Noise(
        tensor(case["obs_stoch"]).long().argmax(-1),
        tensor(case["img_stoch"]).long().argmax(-1).transpose(0, 1),
        action[..., None] if actions.is_discrete else action,
    )
    outcome = agent.losses(batch, noise, dist.setup())
    component = ("arXiv: " if edition == "arxiv_v2" else "") + "whole update" + (", fast form" if use_fast else "")
    near = {"atol": 1e-3, "rtol": 5e-4}
    wanted = {key.removeprefix("loss/"): case[key] for key in case if key.startswith("loss/")}
    known = {"rew": "reward", "con": "cont", "policy": "actor", "value": "critic", "repval": "replay_critic"}
    known |= {name: f"rec/{name}" for name in spaces}
    assert set(outcome.losses) == {known.get(key, key) for key in wanted}
    for key, theirs in wanted.items():
        parity.check(f"{component}: losses", outcome.losses[known.get(key, key)], theirs, **near)
    parity.check(f"{component}: states", outcome.states.h, case["obs_deter"], **near)
    if edition == "arxiv_v2":  # in the Nature cases the carry is the state before the first row
        parity.check(f"{component}: states", outcome.states.h[:, -1], case["carry_deter"], **near)
    parity.check(f"{component}: return scale", outcome.metrics["return_scale"], case["ret_scale"], **near)
    total = weighted_sum(outcome.losses, loss_weights(config))
    parity.check(f"{component}: losses", total, case["total_loss"], **near)
    total.backward()
    parameters = dict(agent.named_parameters())
    trained = {n for n, p in parameters.items() if p.requires_grad}
    gradients = official.ours(agent, case, "g/", edition)
    assert set(gradients) == trained
    for key, gradient in gradients.items():
        relative(parity, f"{component}: gradients", parameters[key].grad, gradient, 2e-3)
    before = {key: parameters[key].detach().double() for key in trained}
    optimizer = LaProp(agent.trained_parameters(), lr=1e-3, warmup=0, agc=0.3, pmin=1e-3, betas=(0.9, 0.999), eps=1e-20)
    optimizer.step()
    for official_name in (key.removeprefix("upnorm/") for key in case if key.startswith("upnorm/")):
        key = official.our_name(official_name, edition, agent)
        moved = (parameters[key].detach().double() - before[key]).norm()
        parity.check(f"{component}: update norms", moved, case[f"upnorm/{official_name}"], atol=1e-7, rtol=1e-3)


# --- replay ---------------------------------------------------------------------------------------------------------


def test_replay_order_and_flags(parity: Parity, tmp_path) -> None:
    case = load(GOLDEN / "replay_schedule.npz")
    length, workers, steps = (int(case[k]) for k in ("length", "workers", "steps"))
    episode = int(case["episode_length"])
    sizes = Sizes(4, 4, 2, 2, 1, 4, 1)
    replay = Replay(
        tmp_path, {"t": ObsSpace("float")}, ActionSpace(1, False), sizes, workers, int(case["capacity"]), length - 1
    )
    starts = []
    for t in range(steps):
        row = {
            "obs/t": np.full((workers,), t, np.float32),
            "action": np.zeros((workers, 1), np.float32),
            "reward": np.zeros(workers, np.float32),
            "is_first": np.full(workers, t % episode == 0),
            "is_last": np.full(workers, t % episode == episode - 1),
            "is_terminal": np.zeros(workers, bool),
            "h": np.zeros((workers, 4), np.float32),
            "z": np.zeros((workers, 2), np.uint8),
        }
        replay.add(row)
        for _ in range(workers):
            before = replay.windows
            replay.admit()
            if replay.windows > before:
                starts.append(replay.window(replay.windows - 1))
    parity.check("replay: order", np.array(starts), case["item_starts"], atol=0)
    parity.check("replay: online queue", np.array(replay.queued()), case["online_starts"], atol=0)
    picks = replay.choose(4, np.random.default_rng(0))
    wanted = np.stack([case["sample_worker"][:, 0], case["sample_t"][:, 0]], 1)
    parity.check("replay: online queue", picks, wanted, atol=0)
    batch = replay.read(picks)
    parity.check("replay: rows", batch["obs/t"], case["sample_t"], atol=0)
    parity.check("replay: flags", batch["is_first"], case["sample_is_first"], atol=0)
    parity.check("replay: flags", batch["is_last"], case["sample_is_last"], atol=0)


@pytest.mark.parametrize(
    ("name", "train_ratio"),
    [("atari100k", 256), ("paper_atari100k", 128), ("crafter", 512), ("dmc_proprio16", 1024), ("bsuite2x", 2048)]
    + [("atari", 32)],
)
def test_train_ratio(parity: Parity, name: str, train_ratio: float) -> None:
    case, ratio = load(GOLDEN / "replay_schedule.npz"), Ratio(train_ratio / (16 * 64))
    wanted = case[f"ratio_{name}"]
    parity.check("replay: train ratio", np.array([ratio(step) for step in range(len(wanted))]), wanted, atol=0)


def test_every_golden_file_is_used() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for path in GOLDEN.glob("*.npz"):
        assert path.stem in text or path.stem.removeprefix("apr24_") in text, path.name

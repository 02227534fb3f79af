"""Numbers of the authors' libraries and of closed forms against the shipped functions; tolerances of golden/README."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.golden import Parity, load
from muzero import gumbel, search, search_cuda, search_fast, targets, transform
from muzero.networks import PlaneNetwork, Sizes, VectorNetwork, action_planes
from muzero.search import Settings
from muzero.tests.models import Case, Linear, anchor, load_official, table
from muzero.unroll import Batch, step_losses, unroll, weight_penalty, weighted_loss

GOLDEN = Path(__file__).parent / "golden"
FORMS = (search.search, search_fast.search, search_cuda.search)
INTEGERS = ("node_visits", "parents", "action_from_parent", "children_index", "children_visits")
NUMBERS = ("node_values", "raw_values", "children_rewards", "children_discounts", "children_values")


def tensor(array: Any, dtype: torch.dtype | None = None) -> Tensor:
    made = torch.from_numpy(np.asarray(array))
    return made if dtype is None else made.to(dtype)


# --- search -----------------------------------------------------------------------------------------------------------


def cases_of(name: str) -> list[tuple[str, str]]:
    """(model prefix, case prefix) of every case in a file."""
    names = [key.removesuffix("root_value") for key in load(GOLDEN / name) if key.endswith("__root_value")]
    return [(case[: case.rindex("__", 0, -2) + 2] if case.count("__") == 2 else "", case) for case in names]


MUZERO_FILES = ("search_muzero_tiny", "search_muzero_discounts", "search_muzero_twoplayer", "search_muzero_depth_mask")
MUZERO_CASES = [(name, *case) for name in MUZERO_FILES for case in cases_of(f"{name}.npz")]
GUMBEL_CASES = [
    (name, *case) for name in ("search_gumbel", "search_gumbel_twoplayer") for case in cases_of(f"{name}.npz")
]


def named(form: Any) -> str:
    """The file of a form of the search."""
    return str(form.__module__).split(".")[-1]


def check_tree(parity: Parity, what: str, found: search.Result, case: Case, prefix: str) -> None:
    for name in INTEGERS:
        parity.check(f"{what}: counts and choices", getattr(found.tree, name), case[prefix + name], atol=0)
    parity.check(f"{what}: counts and choices", found.visits, case[prefix + "root_visit_counts"], atol=0)
    for name in NUMBERS:
        parity.check(f"{what}: values", getattr(found.tree, name), case[prefix + name], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: values", found.value, case[prefix + "root_value"], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: values", found.q, case[prefix + "root_qvalues"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("file", "model", "prefix"), MUZERO_CASES)
def test_trees_of_mctx(parity: Parity, form, file: str, model: str, prefix: str) -> None:
    case = load(GOLDEN / f"{file}.npz")
    nodes = case[prefix + "node_visits"].shape[1]
    settings = Settings(simulations=nodes - 1, normalisation="node", counts_root=True)
    invalid = None
    if "depth" in prefix:
        settings = replace(settings, max_depth=int(prefix.strip("_")[-1]))
    if prefix.startswith("c1_2p5_c2_100"):
        settings = replace(settings, c1=2.5, c2=100.0)
    if prefix.startswith("mask"):
        invalid = tensor(case["invalid_actions"]).bool()
    rules = table(case, model)
    states = tensor(case.get(f"{model}root_states", case.get("root_states"))).long()
    found = form(rules.root(states, invalid), rules, settings)
    what = f"{named(form)}, trees of mctx"
    check_tree(parity, what, found, case, prefix)
    parity.check(
        f"{what}: counts and choices",
        found.tree.embeddings * (found.tree.node_visits > 0),
        case[prefix + "node_state"] * (case[prefix + "node_visits"] > 0),
        atol=0,
    )
    parity.check(f"{what}: values", found.policy, case[prefix + "action_weights"], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: counts and choices", found.action, case[prefix + "action_t0"], atol=0)


GUMBEL_SETTINGS: dict[str, dict[str, Any]] = {
    "depth2": {"max_depth": 2},
    "rawvalue": {"is_mixed": False},
    "norescale": {"is_rescaled": False},
    "vs1_mv10": {"c_scale": 1.0, "c_visit": 10.0},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("file", "model", "prefix"), GUMBEL_CASES)
def test_gumbel_trees_of_mctx(parity: Parity, form, file: str, model: str, prefix: str) -> None:
    case = load(GOLDEN / f"{file}.npz")
    settings = Settings(simulations=case[prefix + "node_visits"].shape[1] - 1, policy="gumbel")
    for word, change in GUMBEL_SETTINGS.items():
        if prefix.startswith(word):
            settings = replace(settings, **change)
    stated = re.search(r"\bm(\d+)_n|_m(\d+)_n", prefix)
    if stated is not None:
        settings = replace(settings, max_considered=int(stated[1] or stated[2]))
    invalid = tensor(case["invalid_actions"]).bool() if prefix.startswith("mask") else None
    rules = table(case, model)
    noise = None if prefix.startswith("noiseless") else tensor(case[prefix + "gumbel"])
    found = form(rules.root(tensor(case["root_states"]).long(), invalid), rules, settings, noise)
    what = f"{named(form)}, Gumbel trees of mctx"
    check_tree(parity, what, found, case, prefix)
    sigma_q = search.completed(found.tree, 0, settings)
    parity.check(f"{what}: values", sigma_q, case[prefix + "completed_qvalues"], atol=1e-4)
    parity.check(f"{what}: values", found.policy, case[prefix + "action_weights"], atol=1e-4)
    parity.check(f"{what}: counts and choices", found.action, case[prefix + "action"], atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("model", "prefix"), cases_of("search_pseudocode_minmax.npz"))
def test_trees_of_the_pseudocode(parity: Parity, form, model: str, prefix: str) -> None:
    case = load(GOLDEN / "search_pseudocode_minmax.npz")
    size = float(case[f"{model}discount"])
    discount = -size if model.startswith("two") else size
    simulations = int(case[prefix + "visit_counts"][0].sum())
    settings = Settings(simulations=simulations, normalisation="tree", discount=discount)
    rules = table(case, model, discount)
    roots = rules.root(tensor(case[f"{model}root_states"]).long(), tensor(case[f"{model}legal_mask"]) == 0)
    found = form(roots, rules, settings)
    what = f"{named(form)}, trees of the pseudocode"
    parity.check(f"{what}: counts and choices", found.visits, case[prefix + "visit_counts"], atol=0)
    parity.check(f"{what}: counts and choices", search.depths(found.tree).amax(-1), case[prefix + "max_depth"], atol=0)
    parity.check(f"{what}: values", found.value, case[prefix + "root_value"], atol=1e-5, rtol=1e-5)
    children = found.tree.children_values[:, 0]
    parity.check(f"{what}: values", children, case[prefix + "child_values"], atol=1e-5, rtol=1e-5)
    bounds = torch.stack([found.tree.low, found.tree.high], 1)
    parity.check(f"{what}: values", bounds, case[prefix + "tree_min_max"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_trees_of_the_anchor(parity: Parity, form) -> None:
    case = load(GOLDEN / "anchor_mlp_search.npz")
    model = anchor(case)
    roots = model.root(tensor(case["root_embedding"]))
    what = f"{named(form)}, trees of the anchor"
    found = form(roots, model, Settings(simulations=50, normalisation="node", counts_root=True))
    parity.check(f"{what}: counts and choices", found.visits, case["muzero_visit_counts"], atol=0)
    parity.check(f"{what}: values", found.value, case["muzero_root_value"], atol=1e-5)
    found = form(roots, model, Settings(simulations=50, policy="gumbel"))
    parity.check(f"{what}: counts and choices", found.visits, case["gumbel_visit_counts"], atol=0)
    parity.check(f"{what}: values", found.value, case["gumbel_root_value"], atol=1e-5)
    parity.check(f"{what}: counts and choices", found.action, case["gumbel_action"], atol=0)
    parity.check(f"{what}: values", found.policy, case["gumbel_action_weights"], atol=1e-4)


def test_halving_tables(parity: Parity) -> None:
    for name, wanted in load(GOLDEN / "seq_halving_tables.npz").items():
        most, simulations = (int(part[1:]) for part in name.split("_"))
        parity.check("sequential halving", gumbel.halving_table(most, simulations), wanted, atol=0)


# --- scores, policies, schedules --------------------------------------------------------------------------------------


def test_scores_of_one_node(parity: Parity) -> None:
    case = load(GOLDEN / "puct_scores.npz")
    prior, visits, q = (tensor(case[name])[None] for name in ("prior", "child_visits", "child_q"))
    c1, c2 = float(case["c1"]), float(case["c2"])
    total = tensor(case["node_visits_mctx"])[None]
    seen = search.exploration(prior, visits, total, c1, c2)
    scaled = search.scaled_by_node(q, visits, tensor(case["node_value_mctx"])[None])
    parity.check("score by node: exploration", seen[0], case["exploration_mctx"], atol=1e-9)
    parity.check("score by node: scaled q", scaled[0], case["qnorm_parent_siblings"], atol=1e-9)
    parity.check("score by node", (seen + scaled)[0], case["score_mctx"], atol=1e-9)
    seen = search.exploration(prior, visits, visits.sum(-1), c1, c2)
    scaled = search.scaled_by_tree(q, visits, tensor(case["tree_min"])[None], tensor(case["tree_max"])[None])
    parity.check("score by tree: exploration", seen[0], case["exploration_paper"], atol=1e-9)
    parity.check("score by tree: scaled q", scaled[0], case["qnorm_tree_minmax"], atol=1e-9)
    parity.check("score by tree", (seen + scaled)[0], case["score_paper"], atol=1e-9)
    for n in (50, 800, 20000, 100000):
        ones, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        factor = search.exploration(ones, none, torch.tensor([n]), c1, c2)[0, 0] / n**0.5
        parity.check("pUCT factor", factor, case[f"pb_c_at_{n}"], atol=1e-9)


def test_policies_noise_and_priorities(parity: Parity) -> None:
    case = load(GOLDEN / "policy_temperature_priorities.npz")
    for temperature in (1.0, 0.5, 0.25):
        found = targets.visit_policy(case["visits"], temperature)
        parity.check("visits by temperature", found, case[f"probs_T{temperature}"], atol=1e-12)
    parity.check("visits at T = 0", targets.visit_policy(case["visits"], 0.0).argmax(-1), case["argmax_T0"], atol=0)
    mixed = search.add_noise(tensor(case["prior"]), tensor(case["dirichlet_noise"]), 0.25)
    parity.check("root noise", mixed, case["mixed_prior"], atol=1e-12)
    masked = search.masked_softmax(tensor(case["logits"]), tensor(case["invalid"]).bool())
    parity.check("masked prior", masked, case["masked_prior"], atol=1e-12)
    values, z = case["per_value"], case["per_target"]
    parity.check("priorities", targets.priorities(values, z, 1.0), case["per_priority"], atol=1e-12)
    for alpha, beta in ((1.0, 1.0), (0.6, 0.4)):
        found = targets.priorities(values, z, alpha)
        share = found / found.sum()
        parity.check("probabilities", share, case[f"per_prob_a{alpha}"], atol=1e-12)
        weights = targets.importance_weights(share, len(share), beta)
        parity.check("importance weights", weights, case[f"per_weight_a{alpha}_b{beta}"], atol=1e-9)


def test_schedules(parity: Parity) -> None:
    case = load(GOLDEN / "schedules.npz")
    for name, lr, decay in (("lr_atari", 0.05, 350_000), ("lr_chess_shogi", 0.1, 400_000), ("lr_go", 0.01, 400_000)):
        found = [targets.learning_rate(lr, int(step), decay) for step in case["steps"]]
        parity.check("learning rate", found, case[name], atol=1e-12)
    found = [targets.temperature_by_update((1.0, 0.5, 0.25), int(step), 1_000_000) for step in case["steps"]]
    parity.check("temperature by update", found, case["temp_atari"], atol=0)
    cooled = targets.temperature_by_move(case["moves"], 1.0, 30)
    parity.check("temperature by move", cooled, case["temp_board"], atol=0)


# --- values, targets, losses ------------------------------------------------------------------------------------------


def test_value_transform(parity: Parity) -> None:
    case = load(GOLDEN / "value_transform.npz")
    x = tensor(case["x"])
    y = transform.squash(x)
    parity.check("h(x)", y, case["h_x"], atol=1e-9)
    parity.check("inverse of h", transform.unsquash(y), case["hinv_h_x"], atol=1e-9, rtol=1e-12)
    bins = transform.two_hot(y, 300)
    parity.check("two-hot of 601 bins", bins, case["twohot"], atol=1e-7)
    lower = case["twohot_lower_index"]
    upper = np.take_along_axis(bins.numpy(), np.minimum(lower + 1, 600)[:, None], 1)[:, 0] * (lower < 600)
    parity.check("two-hot: upper share", upper, case["twohot_upper_prob"], atol=1e-9)
    parity.check(
        "expected support", transform.expected(tensor(case["logits"])), case["logits_expected_support"], atol=1e-9
    )
    parity.check(
        "decoded value", transform.decode(tensor(case["logits"])), case["logits_scalar"], atol=1e-9, rtol=1e-12
    )
    parity.check(
        "two-hot in support units", transform.two_hot(tensor(case["direct_y"]), 300), case["direct_twohot"], atol=1e-7
    )
    small = transform.squash(tensor(case["small_x"]))
    parity.check("h(x)", small, case["small_h_x"], atol=1e-9)
    parity.check("two-hot of 21 bins", transform.two_hot(small, 10), case["small_twohot"], atol=1e-9)


def test_value_transform_in_float32(parity: Parity) -> None:
    """Far inside the tolerance of the usual form: the inverse loses no digits here."""
    case = load(GOLDEN / "value_transform.npz")
    found = transform.unsquash(transform.squash(tensor(case["x"], torch.float32)))
    parity.check("inverse of h, float32", found, case["hinv_h_x"], atol=1e-6, rtol=2e-6)


def windows(values: np.ndarray, length: int) -> np.ndarray:
    """[T, length]: the window that begins at every position, padded with what must not count."""
    padded = np.concatenate([values, np.full((length, *values.shape[1:]), np.nan)])
    return np.nan_to_num(np.stack([padded[start : start + length] for start in range(len(values))]), nan=1e6)


def test_targets(parity: Parity) -> None:
    case = load(GOLDEN / "nstep_targets.npz")
    rewards, values, visits = case["rewards"], case["root_values"], case["child_visits"]
    count = len(rewards)
    left, is_cut = count - np.arange(count), np.zeros(count, np.bool_)
    for name in [key for key in case if key.startswith("td") and key.endswith("__value")]:
        stem = name.removesuffix("__value")
        steps, discount, unroll_steps = (float(part.strip("tdgK")) for part in stem.split("_"))
        n, k = int(steps), int(unroll_steps)
        found = targets.value_targets(
            windows(rewards, n + k + 1), windows(values, n + k + 1), left, is_cut,
            discount=discount / 1000, td_steps=n, unroll_steps=k,
        )  # fmt: skip
        parity.check("n-step values", found, case[f"{stem}__value"], atol=1e-12)
        arriving = windows(np.concatenate([[0.0], rewards]), k + 1)[:count]
        parity.check("rewards", targets.reward_targets(arriving, left), case[f"{stem}__reward"], atol=1e-12)
        mask = targets.policy_mask(left, is_cut, k)
        parity.check("policy mask", mask, case[f"{stem}__policy_mask"], atol=0)
        policy = windows(visits, k + 1) * mask[..., None]
        parity.check("policies", policy, case[f"{stem}__policy"], atol=1e-12)


def test_targets_of_two_players(parity: Parity) -> None:
    case = load(GOLDEN / "nstep_targets.npz")
    rewards, values = case["two_rewards_mover"], case["two_root_values_to_play"]
    count = len(rewards)
    left, is_cut = count - np.arange(count), np.zeros(count, np.bool_)
    for n in (2, 3, 20):
        found = targets.value_targets(
            windows(rewards, n + 1), windows(values, n + 1), left, is_cut,
            discount=-float(case["two_discount"]), td_steps=n, unroll_steps=0,
        )  # fmt: skip
        parity.check("n-step values of two players", found[:, 0], case[f"two_td{n}__value"], atol=1e-12)
    rewards = case["board_rewards_mover"]
    for name, won in (("board_mc_value_target", rewards), ("board_draw_value_target", np.zeros_like(rewards))):
        length, left = len(won) + 1, len(won) - np.arange(len(won))
        found = targets.value_targets(
            windows(won, length), np.ones((len(won), length)), left, np.zeros(len(won), np.bool_),
            discount=-1.0, td_steps=None, unroll_steps=0,
        )  # fmt: skip
        parity.check("outcomes of a board game", found[:, 0], case[name], atol=1e-12)


@pytest.mark.parametrize("name", ["unroll_loss_categorical", "unroll_loss_mse"])
def test_loss_and_gradients(parity: Parity, name: str) -> None:
    case = load(GOLDEN / f"{name}.npz")
    network = Linear(case)
    batch = Batch(
        obs=tensor(case["obs"]),
        actions=tensor(case["actions"]),
        value=tensor(case["target_value"]),
        reward=tensor(case["target_reward"]),
        policy=tensor(case["target_policy"]),
        policy_mask=tensor(case["policy_mask"]),
        mask=torch.ones_like(tensor(case["target_value"])),
        weights=tensor(case["is_weights"]),
    )
    found = unroll(network, batch.obs, batch.actions)
    for ours, theirs in ((found.states, "hidden"), (found.value, "value_pred"), (found.policy, "policy_logits")):
        parity.check(f"{name}: outputs", ours.detach(), case[theirs], atol=1e-9)
    parity.check(f"{name}: outputs", found.reward.detach(), case["reward_pred"], atol=1e-9)
    losses = step_losses(found, batch)
    parts = torch.stack([losses[part].T for part in ("value", "reward", "policy")], 1)
    parity.check(f"{name}: losses", parts.detach(), case["loss_value_reward_policy"], atol=1e-9)
    data = weighted_loss(losses, batch.weights, float(case["value_loss_weight"]))
    penalty = weight_penalty(network.weights.values(), float(case["weight_decay_c"]))
    parity.check(f"{name}: losses", data.detach(), case["data_loss"], atol=1e-9)
    parity.check(f"{name}: losses", penalty.detach(), case["l2_loss"], atol=1e-9)
    parity.check(f"{name}: losses", (data + penalty).detach(), case["total_loss"], atol=1e-9)
    data.backward()
    for key, weight in network.weights.items():
        assert weight.grad is not None
        gradient = weight.grad + float(case["weight_decay_c"]) * weight.detach()  # as the optimiser adds it
        parity.check(f"{name}: gradients", gradient, case[f"grad__{key}"], atol=1e-9)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_scaling_and_action_planes(parity: Parity) -> None:
    case = load(GOLDEN / "hidden_scaling_and_action_planes.npz")
    conv = tensor(case["conv"])
    parity.check("scaling of vectors", transform.scale_hidden(tensor(case["vec"])), case["vec_scaled"], atol=1e-12)
    parity.check("scaling of planes", transform.scale_hidden(conv), case["conv_scaled_per_sample"], atol=1e-12)
    found = transform.scale_hidden(conv, is_per_channel=True)
    parity.check("scaling of channels", found, case["conv_scaled_per_channel"], atol=1e-12)
    rows, columns = conv.shape[2:]
    plane = action_planes(tensor(case["atari_action"]), "scalar", 18, rows, columns)
    parity.check("action planes: a / A", plane, case["atari_action_plane"], atol=1e-12)
    parity.check("action planes: a / A", plane[:, 0, 0, 0], case["atari_plane_value"], atol=1e-12)
    stack = torch.cat([tensor(case["conv_scaled_per_sample"]), plane], 1)
    parity.check("hidden, then action", stack, case["stack_hidden_then_action"], atol=1e-12)
    rows, columns = case["board_action_plane"].shape[2:]
    plane = action_planes(tensor(case["board_action"]), "point", rows * columns, rows, columns)
    parity.check("action planes: point", plane, case["board_action_plane"], atol=1e-12)


def test_tower_of_a_small_board(parity: Parity) -> None:
    case = load(GOLDEN / "resnet_tictactoe_tiny.npz")
    sizes = Sizes("board", 4, 1, 8, head_blocks=1, is_normalised=False, value_planes=2, scales_channels=True)
    network = PlaneNetwork(3, (3, 3), 9, "scalar", sizes, 10).double().eval()
    load_official(network, case)
    check_network(parity, "board tower", network, case, tensor(case["obs"]), 1e-8)


def test_layers_of_a_vector_world(parity: Parity) -> None:
    case = load(GOLDEN / "mlp_cartpole_tiny.npz")
    network = VectorNetwork(4, 2, Sizes("vector", 8, 0, 16), 10)
    load_official(network, case)
    check_network(parity, "vector layers", network, case, tensor(case["obs"]), 1e-5)


@torch.no_grad()
def check_network(parity: Parity, what: str, network: Any, case: Case, obs: Tensor, atol: float) -> None:
    state = network.represent(obs)
    policy, value = network.predict(state)
    after, reward = network.dynamics(state, tensor(case["action"])[:, 0])
    next_policy, next_value = network.predict(after)
    pairs = {"hidden0": state, "policy0": policy, "value0": value, "hidden1": after, "reward1": reward}
    for name, ours in {**pairs, "policy1": next_policy, "value1": next_value}.items():
        parity.check(what, ours, case[name], atol=atol)

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
from muzero import gumbel, search, search_fast
from muzero.search import Settings
from muzero.tests.models import Case, anchor, table

GOLDEN = Path(__file__).parent / "golden"
FORMS = (search.search, search_fast.search)
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


def check_tree(parity: Parity, what: str, found: search.Result, case: Case, prefix: str) -> None:
    for name in INTEGERS:
        parity.check(f"{what}: {name}", getattr(found.tree, name), case[prefix + name], atol=0)
    parity.check(f"{what}: root visits", found.visits, case[prefix + "root_visit_counts"], atol=0)
    for name in NUMBERS:
        parity.check(f"{what}: {name}", getattr(found.tree, name), case[prefix + name], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: root value", found.value, case[prefix + "root_value"], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: root q", found.q, case[prefix + "root_qvalues"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("file", "model", "prefix"), MUZERO_CASES)
def test_trees_of_mctx(parity: Parity, form, file: str, model: str, prefix: str) -> None:
    case = load(GOLDEN / f"{file}.npz")
    nodes = case[prefix + "node_visits"].shape[1]
    settings = Settings(simulations=nodes - 1, normalisation="node")
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
    what = f"{form.__module__.split('.')[-1]}, {file.removeprefix('search_')}"
    check_tree(parity, what, found, case, prefix)
    parity.check(f"{what}: states", found.tree.embeddings * (found.tree.node_visits > 0), case[prefix + "node_state"]
                 * (case[prefix + "node_visits"] > 0), atol=0)
    parity.check(f"{what}: policy", found.policy, case[prefix + "action_weights"], atol=1e-5, rtol=1e-5)
    parity.check(f"{what}: action", found.action, case[prefix + "action_t0"], atol=0)


GUMBEL_SETTINGS = {
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
    what = f"{form.__module__.split('.')[-1]}, {file.removeprefix('search_')}"
    check_tree(parity, what, found, case, prefix)
    sigma_q = search.completed(found.tree, 0, settings)
    parity.check(f"{what}: completed q", sigma_q, case[prefix + "completed_qvalues"], atol=1e-4)
    parity.check(f"{what}: policy", found.policy, case[prefix + "action_weights"], atol=1e-4)
    parity.check(f"{what}: action", found.action, case[prefix + "action"], atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("model", "prefix"), cases_of("search_pseudocode_minmax.npz"))
def test_trees_of_the_pseudocode(parity: Parity, form, model: str, prefix: str) -> None:
    case = load(GOLDEN / "search_pseudocode_minmax.npz")
    if f"{model}discount" in case:
        size = float(case[f"{model}discount"])
    else:
        size = float(case[f"{model}model__discount"])
    discount = -size if model.startswith("two") else size
    simulations = int(case[prefix + "visit_counts"][0].sum())
    settings = Settings(simulations=simulations, normalisation="tree", discount=discount)
    rules = table(case, model, discount)
    roots = rules.root(tensor(case[f"{model}root_states"]).long(), tensor(case[f"{model}legal_mask"]) == 0)
    found = form(roots, rules, settings)
    what = f"{form.__module__.split('.')[-1]}, pseudocode"
    parity.check(f"{what}: visits", found.visits, case[prefix + "visit_counts"], atol=0)
    parity.check(f"{what}: depth", search.depths(found.tree).amax(-1), case[prefix + "max_depth"], atol=0)
    parity.check(f"{what}: root value", found.value, case[prefix + "root_value"], atol=1e-5, rtol=1e-5)
    children = found.tree.children_values[:, 0]
    parity.check(f"{what}: child values", children, case[prefix + "child_values"], atol=1e-5, rtol=1e-5)
    bounds = torch.stack([found.tree.low, found.tree.high], 1)
    parity.check(f"{what}: bounds", bounds, case[prefix + "tree_min_max"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_trees_of_the_anchor(parity: Parity, form) -> None:
    case = load(GOLDEN / "anchor_mlp_search.npz")
    model = anchor(case)
    roots = model.root(tensor(case["root_embedding"]))
    what = f"{form.__module__.split('.')[-1]}, anchor"
    found = form(roots, model, Settings(simulations=50, normalisation="node"))
    parity.check(f"{what}: visits", found.visits, case["muzero_visit_counts"], atol=0)
    parity.check(f"{what}: root value", found.value, case["muzero_root_value"], atol=1e-5)
    found = form(roots, model, Settings(simulations=50, policy="gumbel"))
    parity.check(f"{what}: Gumbel visits", found.visits, case["gumbel_visit_counts"], atol=0)
    parity.check(f"{what}: Gumbel root value", found.value, case["gumbel_root_value"], atol=1e-5)
    parity.check(f"{what}: Gumbel action", found.action, case["gumbel_action"], atol=0)
    parity.check(f"{what}: Gumbel policy", found.policy, case["gumbel_action_weights"], atol=1e-4)


def test_halving_tables(parity: Parity) -> None:
    for name, wanted in load(GOLDEN / "seq_halving_tables.npz").items():
        most, simulations = (int(part[1:]) for part in name.split("_"))
        parity.check("sequential halving", gumbel.halving_table(most, simulations), wanted, atol=0)

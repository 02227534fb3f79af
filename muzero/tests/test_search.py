"""What every search must keep, in the readable form and in the fast one; and that both are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muzero import search, search_cuda, search_fast
from muzero.gumbel import halving_visits
from muzero.search import Root, Settings
from muzero.tests.models import Table, random_table

FORMS = (search.search, search_fast.search, search_cuda.search)
ACTIONS = 6
KINDS = {
    "tree": Settings(simulations=40, normalisation="tree", discount=0.9),
    "tree, two players": Settings(simulations=40, normalisation="tree", discount=-1.0, bounds=(-1.0, 1.0)),
    "tree, root counted": Settings(simulations=40, normalisation="tree", counts_root=True, discount=0.9),
    "node": Settings(simulations=40, normalisation="node", counts_root=True),
    "node, depth 2": Settings(simulations=40, normalisation="node", counts_root=True, max_depth=2),
    "gumbel": Settings(simulations=40, policy="gumbel"),
    "gumbel, few": Settings(simulations=40, policy="gumbel", max_considered=3, c_scale=1.0, is_mixed=False),
    "gumbel, depth 3": Settings(simulations=40, policy="gumbel", max_depth=3, is_rescaled=False),
}


def roots(model: Table, count: int, seed: int = 1) -> Root:
    generator = torch.Generator().manual_seed(seed)
    invalid = torch.rand(count, ACTIONS, generator=generator) < 0.3
    invalid[:, 2] = False
    return model.root(torch.randint(len(model.value), (count,), generator=generator), invalid)


def noise_for(settings: Settings, root: Root) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    drawn = torch.rand(root.logits.shape, generator=generator)
    if settings.policy == "gumbel":
        return -(-drawn.log()).log()
    drawn = drawn.masked_fill(root.invalid, 0.0) if root.invalid is not None else drawn
    return drawn / drawn.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("discount", [0.95, -1.0])
@pytest.mark.parametrize("form", FORMS[1:])
def test_the_fast_forms_are_the_readable_one(form, kind: str, discount: float) -> None:
    settings, model = KINDS[kind], random_table(200, ACTIONS, discount, seed=3)
    root = roots(model, 33)
    noise = noise_for(settings, root)
    ours, theirs = (each(root, model, settings, noise) for each in (form, search.search))
    for name in ("node_visits", "parents", "action_from_parent", "children_index", "children_visits", "embeddings"):
        assert torch.equal(getattr(ours.tree, name), getattr(theirs.tree, name)), name
    for name in ("node_values", "children_values", "children_rewards", "children_logits", "low", "high"):
        torch.testing.assert_close(getattr(ours.tree, name), getattr(theirs.tree, name), rtol=1e-4, atol=1e-5, msg=name)
    for name in ("visits", "action"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("value", "q", "policy"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_elements_of_a_batch_do_not_see_each_other(form, kind: str) -> None:
    settings, model = KINDS[kind], random_table(200, ACTIONS, 0.95, seed=4)
    root = roots(model, 7)
    noise = noise_for(settings, root)
    whole = form(root, model, settings, noise)
    assert root.invalid is not None
    for k in (0, 3, 6):
        one = Root(root.logits[k : k + 1], root.value[k : k + 1], root.embedding[k : k + 1], root.invalid[k : k + 1])
        alone = form(one, model, settings, noise[k : k + 1])
        assert torch.equal(alone.visits[0], whole.visits[k])
        assert torch.equal(alone.tree.children_index[0], whole.tree.children_index[k])
        torch.testing.assert_close(alone.value[0], whole.value[k], rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_visits_policy_and_action_keep_to_the_rules(form, kind: str) -> None:
    settings, model = KINDS[kind], random_table(200, ACTIONS, 0.95, seed=5)
    root = roots(model, 9)
    found = form(root, model, settings, noise_for(settings, root))
    assert root.invalid is not None
    assert (found.visits.sum(-1) == settings.simulations).all()
    assert (found.visits[root.invalid] == 0).all()
    assert (found.policy[root.invalid] == 0).all()
    torch.testing.assert_close(found.policy.sum(-1), torch.ones(9))
    assert not root.invalid[torch.arange(9), found.action].any()
    assert search.depths(found.tree).max() <= settings.depth


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["muzero", "gumbel"])
def test_the_sign_changes_with_the_turn(form, policy: str) -> None:
    """From the root, action 0 lets the opponent win and action 1 leaves him without a move that wins."""
    next_state = torch.tensor([[1, 2], [3, 3], [3, 3], [3, 3]])
    reward = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    discount = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    model = Table(next_state, reward, discount, torch.zeros(4, 2), torch.zeros(4))
    settings = Settings(simulations=30, policy=policy, normalisation="node", counts_root=True, c_scale=1.0)
    found = form(model.root(torch.tensor([0])), model, settings)
    assert found.action[0] == 1
    assert found.q[0, 0] < -0.5
    assert abs(found.q[0, 1]) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_noise_may_come_in_double_precision(form) -> None:
    model = random_table(20, ACTIONS, 0.95, seed=7)
    root = roots(model, 3)
    noise = noise_for(KINDS["node"], root)
    one, two = (form(root, model, KINDS["node"], each) for each in (noise, noise.double()))
    assert torch.equal(one.visits, two.visits)
    assert two.value.dtype == root.value.dtype


def test_threads_change_nothing() -> None:
    model = random_table(200, ACTIONS, 0.95, seed=6)
    root, found = roots(model, 64), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(search_fast.search(root, model, KINDS["node"]))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(found[0].tree.children_values, found[1].tree.children_values)


def test_a_root_without_a_move_is_refused() -> None:
    model = random_table(20, ACTIONS, 0.95, seed=7)
    root = model.root(torch.tensor([0, 1]), torch.tensor([[False] * 6, [True] * 6]))
    for form in FORMS:
        with pytest.raises(ValueError, match="no action is allowed"):
            form(root, model, KINDS["node"])


def test_a_fresh_tree_is_searched_by_its_prior() -> None:
    """Without any value, visits follow the prior; "tree" gives its first simulation to the lowest action."""
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    model = Table(torch.zeros(1, 3).long(), torch.zeros(1, 3), torch.zeros(1, 3), logits, torch.zeros(1))
    for form in FORMS:
        by_node = form(model.root(torch.tensor([0])), model, replace(KINDS["node"], simulations=1))
        by_tree = form(model.root(torch.tensor([0])), model, replace(KINDS["tree"], simulations=1))
        assert by_node.action[0] == 1
        assert by_tree.action[0] == 0


@pytest.mark.parametrize("considered", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("simulations", [1, 7, 16, 50, 200])
def test_halving_visits_each_survivor_equally(considered: int, simulations: int) -> None:
    """Every action's visits are 0, 1, 2, ... in order, and no more than two survive to the end."""
    visits = [0] * considered
    for wanted in halving_visits(considered, simulations):
        choice = next(a for a in range(considered) if visits[a] == wanted)
        visits[choice] += 1
    assert sum(visits) == simulations
    if simulations > considered * 8:
        assert sum(v == max(visits) for v in visits) <= 2

"""Parameter counts of the paper's networks, shapes, encodings of actions, and values at the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muzero.config import SIZES
from muzero.networks import (
    Convolution,
    Downsampling,
    PlaneHead,
    PlaneNetwork,
    Sizes,
    action_planes,
    for_inference,
    new_network,
    refresh,
    tower,
)
from muzero.transform import decode, two_hot


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper() -> None:
    """Source: the sizes in Appendix F; 3 x 3 convolutions without bias, batch norms with two numbers a plane."""
    with torch.device("meta"):
        assert count(Downsampling(128, 256)) == 8_118_016
        assert count(tower(256, 16)) == 18_890_752
        assert count(PlaneHead(256, 1, 361, 256, 1, is_normalised=True)) == 93_187
        assert count(PlaneHead(256, 2, 361, None, 362, is_normalised=True)) == 262_242
        atari = PlaneNetwork(128, (96, 96), 18, "tiled", SIZES["atari"], 300)
        assert count(atari.representation) == 27_008_768
        assert count(atari.transition) == 19_522_560
        go = PlaneNetwork(17, (19, 19), 362, "point", SIZES["board"], None)
        assert count(go.representation) == 18_930_432
        assert count(go.transition) == 19_483_392
        assert count(go.value) + count(go.policy) == 93_187 + 262_242
        for planes, total in ((8, 19_499_520), (11, 19_506_432)):  # chess, shogi
            assert count(nn.Sequential(Convolution(256 + planes, 256), tower(256, 16))) == total


@pytest.mark.parametrize(
    ("size", "shape", "encoding", "half"),
    [
        ("atari-small", (16, 96, 96), "tiled", 300),
        ("board-tiny", (3, 3, 3), "point", None),
        ("board-small", (3, 6, 7), "column", 10),
        ("vector-small", (4,), "tiled", 20),
        ("vector-small", (3, 3, 3), "point", None),
    ],
)
@torch.no_grad()
def test_a_network_has_the_shapes_it_promises_and_starts_at_zero(size, shape, encoding, half) -> None:
    actions = 7 if encoding == "column" else 9
    network = new_network(shape, actions, encoding, SIZES[size], half, seed=0).eval()
    state = network.represent(torch.rand(2, *shape))
    assert (float(state.min()), float(state.max())) == pytest.approx((0, 1))
    for action in (0, actions - 1):
        after, reward = network.dynamics(state, torch.tensor([action, 1]))
        assert after.shape == state.shape
        policy, value = network.predict(after)
        assert policy.shape == (2, actions)
        assert decode(value).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
        assert decode(reward).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    one, two = (new_network(shape, actions, encoding, SIZES[size], half, seed=s) for s in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_actions_as_planes() -> None:
    action = torch.tensor([1, 5])
    assert action_planes(action, "point", 9, 3, 3)[1, 0].nonzero().tolist() == [[1, 2]]
    assert not action_planes(torch.tensor([9]), "point", 10, 3, 3).any()  # a pass
    assert action_planes(action, "column", 7, 6, 7)[0, 0].nonzero()[:, 1].unique().tolist() == [1]
    tiled = action_planes(action, "tiled", 6, 2, 2)
    assert tiled.shape == (2, 6, 2, 2)
    assert tiled.sum((2, 3)).argmax(1).tolist() == [1, 5]
    move = action_planes(torch.tensor([73 * 10 + 4]), "move", 4674, 8, 8)
    assert move.shape == (1, 74, 8, 8)
    assert move[0, 0].nonzero().tolist() == [[1, 2]]
    assert move[0, 1:, 0, 0].argmax() == 4
    with pytest.raises(ValueError, match="allowed: point"):
        action_planes(action, "cell", 9, 3, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_actions_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    action = torch.tensor([1, 5])
    for encoding in ("point", "column", "tiled", "scalar"):
        planes = action_planes(action.to(dtype), encoding, 9, 3, 6)
        assert torch.equal(planes, action_planes(action, encoding, 9, 3, 6))
    network = new_network((4,), 6, "vector", Sizes("vector", 8, 1, 8), 5, seed=0)
    state = network.represent(torch.rand(2, 4))
    torch.testing.assert_close(network.dynamics(state, action.to(dtype)), network.dynamics(state, action))


def test_shares_of_two_bins_keep_the_digits_of_small_values() -> None:
    y = torch.tensor([0.1, -0.1, 1e-4])
    bins = two_hot(y, 300)
    assert bins[[0, 1, 2], [301, 299, 301]].tolist() == pytest.approx([0.1, 0.1, 1e-4], abs=1e-7)


@torch.no_grad()
def test_folded_norms_change_nothing() -> None:
    torch.manual_seed(0)
    for size in ("board-tiny", "board-small"):
        network = new_network((3, 6, 7), 7, "column", SIZES[size], None, seed=0).train()
        obs, action = torch.rand(8, 3, 6, 7), torch.arange(7).repeat(2)[:8]
        for _ in range(3):  # so that the norms have seen something
            network.predict(network.dynamics(network.represent(obs), action)[0])
        folded = for_inference(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        network.eval()
        states = [net.dynamics(net.represent(obs), action)[0] for net in (network, folded)]
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(folded.predict(states[0]), network.predict(states[0]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", ["board-tiny", "board-small", "vector-small"])
def test_a_refreshed_copy_is_a_new_one(size: str) -> None:
    network = new_network((3, 6, 7), 7, "column", SIZES[size], None, seed=0).train()
    copy = for_inference(network)
    places = [p.data_ptr() for p in copy.parameters()]
    obs = torch.rand(8, 3, 6, 7)
    for parameter in network.parameters():
        parameter.add_(0.1)
    network.predict(network.represent(obs))  # moves the statistics of the norms
    refresh(copy, network)
    wanted = for_inference(network)
    assert [p.data_ptr() for p in copy.parameters()] == places
    for ours, theirs in zip(copy.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(ours, theirs)

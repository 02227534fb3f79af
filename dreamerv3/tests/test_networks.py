"""Parameter counts of every size as the reference code has them, initialisation, and what layers promise."""

from __future__ import annotations

import pytest
import torch

from dreamerv3 import layers_fast
from dreamerv3.agent import Agent
from dreamerv3.config import EDITIONS, SIZES, Config
from dreamerv3.distributions import wide
from dreamerv3.networks import BlockLinear, Linear, norm_silu
from dreamerv3.spaces import ActionSpace, ObsSpace


def image(size: int, channels: int) -> dict[str, ObsSpace]:
    return {"image": ObsSpace("image", (size, size, channels))}


def floats(**sizes: int) -> dict[str, ObsSpace]:
    return {name: ObsSpace("float", (size,)) for name, size in sizes.items()}


WORLDS = {
    "discrete": (image(64, 3), ActionSpace(18, True)),
    "continuous": (image(64, 3), ActionSpace(6, False)),
    "atari57": (image(96, 1), ActionSpace(18, True)),
    "atari100k": (image(64, 1), ActionSpace(18, True)),
    "crafter": (image(64, 3), ActionSpace(17, True)),
    "walker": (floats(orientations=14, height=1, velocity=9), ActionSpace(6, False)),
    "cartpole": (floats(position=3, velocity=2), ActionSpace(1, False)),
}
NATURE = {
    "1m": (688_004, 686_846, 769_762, 640_867, 637_446),
    "12m": (10_498_772, 10_494_158, 11_808_850, 9_738_019, 9_724_422),
    "25m": (23_496_244, 23_489_326, 26_444_402, 21_782_947, 21_762_566),
    "50m": (41_659_284, 41_650_062, 46_900_882, 38_612_003, 38_584_838),
    "100m": (93_482_068, 93_468_238, 105_276_626, 86_622_499, 86_581_766),
    "200m": (165_967_124, 165_948_686, 186_936_082, 153_769_507, 153_715_206),
    "400m": (372_924_052, 372_896_398, 420_106_130, 345_473_059, 345_391_622),
}
MODULES = {  # 64 x 64 x 3, 18 actions: encoder, rssm, decoder, reward, continue, actor, critic
    "1m": (14_304, 377_472, 80_595, 57_663, 41_153, 50_706, 66_111),
    "12m": (220_416, 5_982_720, 1_272_003, 721_407, 656_129, 792_594, 853_503),
    "200m": (3_492_864, 95_496_192, 20_282_115, 10_749_183, 10_488_833, 12_607_506, 12_850_431),
}
ARXIV = {
    ("12m", "walker"): (138_752, 5_783_040, 794_136, 721_664, 656_129, 791_052, 853_760),
    ("12m", "cartpole"): (133_888, 5_781_760, 789_253, 721_664, 656_129, 788_482, 853_760),
    ("12m", "continuous"): (232_048, 5_979_648, 1_283_635, 721_664, 656_129, 791_052, 853_760),
    ("12m", "discrete"): (232_048, 5_982_720, 1_283_635, 721_664, 656_129, 792_594, 853_760),
    ("200m", "atari100k"): (3_689_792, 95_496_192, 20_479_041, 10_750_208, 10_488_833, 12_607_506, 12_851_456),
    ("200m", "discrete"): (3_692_992, 95_496_192, 20_482_243, 10_750_208, 10_488_833, 12_607_506, 12_851_456),
    ("200m", "atari57"): (3_689_792, 100_739_072, 36_217_921, 10_750_208, 10_488_833, 12_607_506, 12_851_456),
    ("200m", "crafter"): (3_692_992, 95_495_168, 20_482_243, 10_750_208, 10_488_833, 12_606_481, 12_851_456),
}


def counts(edition: str, size: str, world: str) -> tuple[int, ...]:
    with torch.device("meta"):  # no memory and no numbers: the largest has 420 million
        agent = Agent(*WORLDS[world], SIZES[size], EDITIONS[edition], Config())
    return tuple(agent.parameter_counts().values())


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_of_the_nature_edition(size):
    worlds = ("discrete", "continuous", "atari57", "walker", "cartpole")
    assert tuple(sum(counts("nature", size, world)) for world in worlds) == NATURE[size]
    if size in MODULES:
        assert counts("nature", size, "discrete") == MODULES[size]


@pytest.mark.parametrize(("size", "world"), ARXIV)
def test_parameter_counts_of_the_arxiv_edition(size, world):
    assert counts("arxiv_v2", size, world) == ARXIV[size, world]


def test_initial_scales():
    """Unit variance through a Linear, 1 / g through a block layer, nothing outside of two deviations."""
    torch.manual_seed(0)
    x = torch.randn(2000, 256)
    linear, block = Linear(256, 256), BlockLinear(256, 256, 8)
    assert float(linear(x).detach().var()) == pytest.approx(1, rel=0.05)
    assert float(block(x).detach().var()) == pytest.approx(1 / 8, rel=0.1)
    assert float(linear.weight.detach().abs().max()) <= 2 * 1.1368 / 16 + 1e-6
    agent = Agent(*WORLDS["walker"], SIZES["1m"], EDITIONS["nature"], Config())
    assert not agent.critic.mlp.out.weight.any()
    assert not agent.world.reward.mlp.out.weight.any()
    assert float(agent.actor.heads[0].weight.detach().std()) == pytest.approx(0.01 / 8, rel=0.2)
    assert float(agent.world.cont.out.weight.detach().std()) == pytest.approx(1 / 8, rel=0.3)


def test_first_predictions_are_exactly_zero():
    torch.manual_seed(0)
    for edition in EDITIONS:
        agent = Agent(*WORLDS["walker"], SIZES["1m"], EDITIONS[edition], Config(edition=edition))
        feature = torch.randn(3, 640)
        assert not agent.critic.mean(agent.critic(feature)).any()
        assert not agent.world.predict(feature)[0].any()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_the_fast_layer_is_the_readable_one(dtype, tolerance):
    """Its result, and the gradients to its input and to the scale, which is in float32 at least."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64).to(dtype)
    scale, upstream = torch.rand(16, generator=generator).to(wide(x).dtype), torch.randn_like(x)
    found = []
    for function in (layers_fast.activate, norm_silu):
        inputs = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = function(*inputs)
        y.backward(upstream)
        found.append((y.detach(), *(part.grad for part in inputs)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))

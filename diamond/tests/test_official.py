"""Official files, made up with the official names and sizes."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from diamond import official
from diamond.agent import new_agent
from diamond.config import SMALL_NETS, Config

SMALL = Config(image_size=16, **SMALL_NETS)


def made_up(actions=4) -> dict[str, torch.Tensor]:
    """A file of another agent's weights."""
    torch.manual_seed(7)
    agent = new_agent(SMALL, actions)
    return {
        name: torch.randn(getattr(agent, part).state_dict()[ours].shape)
        for name, (part, ours) in official.official_names(agent).items()
    }


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_every_weight_arrives(tmp_path, ending):
    path, content = tmp_path / f"Breakout{ending}", made_up()
    if ending == ".pt":
        torch.save(content, path)
    else:
        safetensors.torch.save_file(content, path)
    agent = new_agent(SMALL, 4)
    official.load(path, agent)
    for name, (part, ours) in official.official_names(agent).items():
        assert torch.equal(getattr(agent, part).state_dict()[ours], content[name]), name


def test_the_names_are_the_official_ones():
    names = official.official_names(new_agent(Config(), 4))
    assert {
        "denoiser.inner_model.noise_emb.weight",
        "denoiser.inner_model.unet.u_blocks.3.resblocks.2.conv2.weight",
        "denoiser.inner_model.unet.mid_blocks.resblocks.1.attn.qkv_proj.bias",
        "rew_end_model.encoder.downsamples.3.conv.weight",
        "rew_end_model.lstm.weight_ih_l0",
        "actor_critic.encoder.encoder.7.f.2.weight",
        "actor_critic.critic_linear.bias",
    } <= set(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("actor_critic.lstm.bias_hh"), "lacks actor_critic.lstm.bias_hh"),
        (lambda content: content.update(extra=torch.zeros(1)), "has extra besides"),
        (lambda content: content.update({"actor_critic.lstm.bias_hh": torch.zeros(3)}), "bias_hh is [3]"),
    ],
)
def test_nothing_may_be_missing_or_left_over(tmp_path, change, message):
    content = made_up()
    change(content)
    safetensors.torch.save_file(content, tmp_path / "a.safetensors")
    agent = new_agent(SMALL, 4)
    before = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    with pytest.raises(ValueError, match="init_from") as error:
        official.load(tmp_path / "a.safetensors", agent)
    assert message in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.state_dict().items())


def test_another_set_of_actions_is_named(tmp_path):
    safetensors.torch.save_file(made_up(6), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="6 actions, this one has 4"):
        official.load(tmp_path / "a.safetensors", new_agent(SMALL, 4))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, name):
    with pytest.raises(ValueError, match="init_from"):
        official.load(tmp_path / name, new_agent(SMALL, 4))
    (tmp_path / name).write_bytes(b"nonsense" * 9)
    with pytest.raises(ValueError, match="no checkpoint"):
        official.load(tmp_path / name, new_agent(SMALL, 4))

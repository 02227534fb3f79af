"""The authors' parameter names and kernel layouts for our modules: an explicit table per edition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dreamerv3.config import EDITIONS
from dreamerv3.networks import BlockLinear, Conv, Linear, UpConv

NATURE = (
    (r"enc/cnn(\d)", "world.encoder.image.convs.{0}"),
    (r"enc/cnn(\d)norm", "world.encoder.image.norms.{0}.norm"),
    (r"enc/mlp(\d)", "world.encoder.vector_layers.parts.{0}.linear"),
    (r"enc/mlp(\d)norm", "world.encoder.vector_layers.parts.{0}.norm"),
    (r"dyn/dynin0", "world.rssm.in_deter.linear"),
    (r"dyn/dynin0norm", "world.rssm.in_deter.norm"),
    (r"dyn/dynin1", "world.rssm.in_stoch.linear"),
    (r"dyn/dynin1norm", "world.rssm.in_stoch.norm"),
    (r"dyn/dynin2", "world.rssm.in_action.linear"),
    (r"dyn/dynin2norm", "world.rssm.in_action.norm"),
    (r"dyn/dynhid0", "world.rssm.hidden"),
    (r"dyn/dynhid0norm", "world.rssm.hidden_norm"),
    (r"dyn/dyngru", "world.rssm.gates"),
    (r"dyn/obs0", "world.rssm.posterior.linear"),
    (r"dyn/obs0norm", "world.rssm.posterior.norm"),
    (r"dyn/obslogit", "world.rssm.posterior_out"),
    (r"dyn/prior(\d)", "world.rssm.prior.parts.{0}.linear"),
    (r"dyn/prior(\d)norm", "world.rssm.prior.parts.{0}.norm"),
    (r"dyn/priorlogit", "world.rssm.prior_out"),
    (r"dec/sp0", "world.decoder.image.from_deter"),
    (r"dec/sp1", "world.decoder.image.from_stoch.0.linear"),
    (r"dec/sp1norm", "world.decoder.image.from_stoch.0.norm"),
    (r"dec/sp2", "world.decoder.image.from_stoch.1"),
    (r"dec/spnorm", "world.decoder.image.inner_norm.norm"),
    (r"dec/conv(\d)", "world.decoder.image.convs.{conv}"),
    (r"dec/conv(\d)norm", "world.decoder.image.norms.{conv}.norm"),
    (r"dec/imgout", "world.decoder.image.out"),
    (r"dec/mlp/linear(\d)", "world.decoder.vector_layers.parts.{0}.linear"),
    (r"dec/mlp/norm(\d)", "world.decoder.vector_layers.parts.{0}.norm"),
    (r"dec/vec/(\w+)/(?:pred|logits)", "world.decoder.outs.{0}"),
    (r"rew/mlp/linear(\d)", "world.reward.mlp.layers.parts.{0}.linear"),
    (r"rew/mlp/norm(\d)", "world.reward.mlp.layers.parts.{0}.norm"),
    (r"rew/head/logits", "world.reward.mlp.out"),
    (r"con/mlp/linear(\d)", "world.cont.layers.parts.{0}.linear"),
    (r"con/mlp/norm(\d)", "world.cont.layers.parts.{0}.norm"),
    (r"con/head/logit", "world.cont.out"),
    (r"val/mlp/linear(\d)", "critic.mlp.layers.parts.{0}.linear"),
    (r"val/mlp/norm(\d)", "critic.mlp.layers.parts.{0}.norm"),
    (r"val/head/logits", "critic.mlp.out"),
    (r"pol/mlp/linear(\d)", "actor.layers.parts.{0}.linear"),
    (r"pol/mlp/norm(\d)", "actor.layers.parts.{0}.norm"),
    (r"pol/head/action/(logits|mean)", "actor.outs.{0}"),
    (r"pol/head/action/stddev", "actor.outs.std"),
)
ARXIV = (
    (r"enc/conv(\d)", "world.encoder.image.convs.{0}"),
    (r"enc/conv(\d)/norm", "world.encoder.image.norms.{0}.norm"),
    (r"enc/mlp(\d)", "world.encoder.vector_layers.parts.{0}.linear"),
    (r"enc/mlp(\d)/norm", "world.encoder.vector_layers.parts.{0}.norm"),
    (r"dyn/dynin0", "world.rssm.in_deter.linear"),
    (r"dyn/dynin0/norm", "world.rssm.in_deter.norm"),
    (r"dyn/dynin1", "world.rssm.in_stoch.linear"),
    (r"dyn/dynin1/norm", "world.rssm.in_stoch.norm"),
    (r"dyn/dynin2", "world.rssm.in_action.linear"),
    (r"dyn/dynin2/norm", "world.rssm.in_action.norm"),
    (r"dyn/dyn0", "world.rssm.hidden"),
    (r"dyn/dyn0/norm", "world.rssm.hidden_norm"),
    (r"dyn/dyncore", "world.rssm.gates"),
    (r"dyn/obs0", "world.rssm.posterior.linear"),
    (r"dyn/obs0/norm", "world.rssm.posterior.norm"),
    (r"dyn/obslogit", "world.rssm.posterior_out"),
    (r"dyn/img(\d)", "world.rssm.prior.parts.{0}.linear"),
    (r"dyn/img(\d)/norm", "world.rssm.prior.parts.{0}.norm"),
    (r"dyn/imglogit", "world.rssm.prior_out"),
    (r"dec/space0", "world.decoder.image.from_deter"),
    (r"dec/space1hid", "world.decoder.image.from_stoch.0.linear"),
    (r"dec/space1hid/norm", "world.decoder.image.from_stoch.0.norm"),
    (r"dec/space1", "world.decoder.image.from_stoch.1"),
    (r"dec/spacenorm", "world.decoder.image.inner_norm.norm"),
    (r"dec/conv(\d)", "world.decoder.image.convs.{conv}"),
    (r"dec/conv(\d)/norm", "world.decoder.image.norms.{conv}.norm"),
    (r"dec/imgout", "world.decoder.image.out"),
    (r"dec/mlp(\d)", "world.decoder.vector_layers.parts.{0}.linear"),
    (r"dec/mlp(\d)/norm", "world.decoder.vector_layers.parts.{0}.norm"),
    (r"dec/out_(\w+)/out", "world.decoder.outs.{0}"),
    (r"rew/h(\d)", "world.reward.mlp.layers.parts.{0}.linear"),
    (r"rew/h(\d)/norm", "world.reward.mlp.layers.parts.{0}.norm"),
    (r"rew/dist/out", "world.reward.mlp.out"),
    (r"con/h(\d)", "world.cont.layers.parts.{0}.linear"),
    (r"con/h(\d)/norm", "world.cont.layers.parts.{0}.norm"),
    (r"con/dist/out", "world.cont.out"),
    (r"critic/h(\d)", "critic.mlp.layers.parts.{0}.linear"),
    (r"critic/h(\d)/norm", "critic.mlp.layers.parts.{0}.norm"),
    (r"critic/dist/out", "critic.mlp.out"),
    (r"actor/h(\d)", "actor.layers.parts.{0}.linear"),
    (r"actor/h(\d)/norm", "actor.layers.parts.{0}.norm"),
    (r"actor/action/out", "actor.outs.{first}"),
    (r"actor/action/std", "actor.outs.std"),
)
TABLES = {"nature": NATURE, "arxiv_v2": ARXIV}
LOSSES = {
    "nature": {"rew": "reward", "con": "cont", "policy": "actor", "value": "critic", "repval": "replay_critic"},
    "arxiv_v2": {},
}


def edition(name: str, mults: tuple[int, ...]):
    """The edition with other stages."""
    return replace(EDITIONS[name], mults=mults)


def our_name(official: str, edition_name: str, module: nn.Module) -> str:
    """The name of our parameter for the authors' `<layer>/kernel`, `/bias` or `/scale`."""
    layer, part = official.rsplit("/", 1)
    for pattern, template in TABLES[edition_name]:
        match = re.fullmatch(pattern, layer)
        if match:
            words = {"first": "logits", "conv": ""}
            if "{first}" in template:
                words["first"] = next(iter(module.get_submodule("actor.outs")._modules))
            if "{conv}" in template:
                count = len(list(module.get_submodule("world.decoder.image.convs").children()))
                words["conv"] = str(count - 1 - int(match[1]))
            return f"{template.format(*match.groups(), **words)}.{'weight' if part == 'kernel' else part}"
    raise KeyError(official)


def our_layout(array: np.ndarray, owner: nn.Module) -> Tensor:
    """An authors' parameter in the layout of the module that holds ours."""
    tensor = torch.from_numpy(np.asarray(array))
    if tensor.ndim == 2 and isinstance(owner, Linear):
        return tensor.t()
    if tensor.ndim == 4 and isinstance(owner, Conv):
        return tensor.permute(3, 2, 0, 1)
    if tensor.ndim == 4 and isinstance(owner, UpConv):
        return tensor.permute(2, 3, 0, 1).flip(2, 3)
    assert tensor.ndim == 1 or isinstance(owner, BlockLinear)
    return tensor


def ours(module: nn.Module, case: Mapping[str, np.ndarray], prefix: str, edition_name: str) -> dict[str, Tensor]:
    """{our parameter name: the authors' array in our layout} of everything in `case` below `prefix`."""
    found = {}
    for key in case:
        if key.startswith(prefix):
            name = our_name(key.removeprefix(prefix), edition_name, module)
            found[name] = our_layout(case[key], module.get_submodule(name.rsplit(".", 1)[0]))
    return found


@torch.no_grad()
def load(module: nn.Module, case: Mapping[str, np.ndarray], edition_name: str, prefix: str = "w/") -> None:
    """Copy the authors' weights into our module."""
    parameters = dict(module.named_parameters())
    for name, tensor in ours(module, case, prefix, edition_name).items():
        assert parameters[name].shape == tensor.shape, (name, parameters[name].shape, tensor.shape)
        parameters[name].copy_(tensor)

"""LaProp with adaptive gradient clipping, one optimiser for all modules.

Source: paper, "Optimizer"; Ziyin et al. 2020 (LaProp); Brock et al. 2021 (AGC); reference code: opt.py, jaxutils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """Per tensor: clip by AGC, divide by the second moment, then momentum, then a step of the warmed-up rate.

    AGC uses L2 norms over whole tensors, biases and norm scales included: g / max(1, |g| / (agc max(pmin, |p|))).
    LaProp is not Adam: momentum is applied to the gradient already divided. With `warmup` w the rate of update
    k = 1, 2, ... is lr min(1, (k - 1) / w): the first update changes nothing.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        warmup: int,
        agc: float,
        pmin: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """betas: of the momentum and of the second moment. lr per update, no weight decay."""
        defaults = {"lr": lr, "warmup": warmup, "agc": agc, "pmin": pmin, "betas": betas, "eps": eps}
        super().__init__(parameters, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                # In the state and on the device: a captured CUDA graph counts for itself.
                zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                self.state[parameter] = {"updates": zeros.new_zeros(()), "mu": zeros, "nu": zeros.clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is not supported."""
        if closure is not None:
            raise ValueError("LaProp takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                torch._foreach_add_(parameters, self.updates(group))

    @torch.no_grad()
    def updates(self, group: dict[str, Any]) -> list[Tensor]:
        """What `step` adds to the parameters of a group that have a gradient; the state moves on."""
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self.state[p] for p in parameters]
        counts, mu, nu = ([state[key] for state in states] for key in ("updates", "mu", "nu"))
        beta1, beta2 = group["betas"]
        done = counts[0].to(torch.float64, copy=True)  # 1 - 0.999^t loses its digits in float32
        torch._foreach_add_(counts, 1)

        norms = torch._foreach_clamp_min(torch._foreach_norm(parameters), group["pmin"])
        divisors = torch._foreach_div(torch._foreach_norm(gradients), torch._foreach_mul(norms, group["agc"]))
        clipped = torch._foreach_div(gradients, torch._foreach_clamp_min(divisors, 1))

        torch._foreach_lerp_(nu, torch._foreach_mul(clipped, clipped), 1 - beta2)
        scale = torch._foreach_sqrt(torch._foreach_div(nu, (1 - beta2 ** (done + 1)).to(counts[0].dtype)))
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_lerp_(mu, torch._foreach_div(clipped, scale), 1 - beta1)

        share = (done / group["warmup"]).clamp(max=1) if group["warmup"] else torch.ones_like(done)
        return list(torch._foreach_mul(mu, (-group["lr"] * share / (1 - beta1 ** (done + 1))).to(counts[0].dtype)))

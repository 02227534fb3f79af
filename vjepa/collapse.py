"""Is it still learning? A representation that has become a constant predicts itself perfectly: the loss cannot tell.

Three numbers can. The spread of the features over clips, the number of directions that this spread uses, and the
predictor's error beside that of a constant for each place: from 1 up, nothing of a clip is predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_std(features: Tensor) -> Tensor:
    """Spread over clips relative to the size: features [B, D] -> sqrt(mean_d var_b / mean x^2), 0 to 1. Scalar.

    0 if all clips have one and the same feature vector.
    """
    return (features.var(0, correction=0).mean() / features.square().mean()).sqrt()


def effective_rank(features: Tensor) -> Tensor:
    """exp of the entropy, in nats, of the shares that the singular values of features [B, D] have in their sum.

    The mean over clips is removed first. 1 for a line, at most min(B - 1, D); 0 if all rows are the same. Scalar.
    Source: Roy & Vetterli 2007.
    """
    values = torch.linalg.svdvals((features - features.mean(0)).float())
    total = values.sum()
    if total <= 1e-5 * features.norm():  # what is left is rounding
        return torch.zeros_like(total)
    shares = values / total
    return torch.special.entr(shares).sum().exp()


def constant_error(tokens: Tensor, targets: list[Tensor]) -> Tensor:
    """The loss of predicting, for each place, the median over clips: tokens [B, N, D], a target [B, Kt] a kind. Scalar.

    It knows where a token is and nothing of what its clip shows. The median is the best constant for L1.
    """
    middle = tokens.contiguous().median(0).values  # of an expanded axis, torch's median is wrong
    error = F.l1_loss(middle.expand_as(tokens), tokens, reduction="none").mean((0, 2))
    return torch.stack([error[target].mean() for target in targets]).mean()


@torch.no_grad()
def watch(tokens: Tensor, targets: list[Tensor], loss: Tensor) -> dict[str, Tensor]:
    """The three numbers of a micro-batch: all target tokens [B, N, D], a target [B, Kt] a kind, and the loss."""
    pooled = tokens.float().mean(1)
    return {
        "std": feature_std(pooled),
        "rank": effective_rank(pooled),
        "vs_constant": loss / constant_error(tokens.float(), targets).clamp(min=1e-12),
    }

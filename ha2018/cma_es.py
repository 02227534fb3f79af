"""The evolution of C: pycma at the settings of 2018, with the bookkeeping of the official training loop.

Shapes: N population members, P parameters; solutions [N, P], returns [N].
Source: paper, appendix A.4; reference code: train.py, es.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import cma
import numpy as np
from cma.sigma_adaptation import CMAAdaptSigmaCSA

PENALTY = 0.01


def rollout_seeds(rng: np.random.RandomState, population: int) -> np.ndarray:
    """Seeds of one generation: population / 2 draws in [0, 2^31 - 1), used twice. Returns [N] int64. Consumes `rng`.

    Members i and i + N / 2 share theirs (common random numbers, not antithetic sampling).
    """
    return np.tile(rng.randint(2**31 - 1, size=population // 2).astype(np.int64), 2)


def as_sent_to_workers(solutions: np.ndarray) -> np.ndarray:
    """What is really rolled out: parameters rounded to four decimals."""
    return np.round(np.asarray(solutions) * 10_000) / 10_000


def as_received_from_workers(returns: np.ndarray) -> np.ndarray:
    """What the evolution is told: mean returns [N] truncated toward zero at four decimals."""
    return np.trunc(np.asarray(returns) * 10_000) / 10_000


def cost(returns: np.ndarray, solutions: np.ndarray) -> np.ndarray:
    """The cost [N] that CMA-ES minimises: -return - 0.01 mean_i w_i^2.

    The sign of the second term rewards large weights. That is the official code, and its size is without effect.
    """
    return -np.asarray(returns) - PENALTY * np.square(solutions).mean(axis=1)


class Evolution:
    """CMA-ES from the origin. A pure function of its seed and the costs told, which is how it is resumed.

    Deviation D7: pycma 4 instead of 2.2, with the step size rule of then (CSA); its default today is another one in
    high dimensions.
    """

    def __init__(
        self, parameters: int, population: int, sigma0: float, seed: int, costs: Sequence[np.ndarray] = ()
    ) -> None:
        """`costs`: those of the generations already done, each [N], told again in their order."""
        rng = np.random.RandomState(seed)
        options = {
            "popsize": population,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,
            "AdaptSigma": CMAAdaptSigmaCSA,
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy(np.zeros(parameters), sigma0, options)
        self.costs: list[np.ndarray] = []
        for told in costs:
            self.tell(self.ask(), told)

    def ask(self) -> np.ndarray:
        """The solutions [N, P] of the next generation."""
        self._asked = self._strategy.ask()
        return np.stack(self._asked)

    def tell(self, solutions: np.ndarray, costs: np.ndarray) -> None:
        """Move with the `costs` [N] of the unrounded `solutions` of the last `ask`."""
        if len(costs) != len(self._asked) or len(solutions) != len(self._asked):
            raise ValueError(f"tell: {len(self._asked)} solutions were asked for, {len(costs)} costs came")
        self._strategy.tell(self._asked, [float(x) for x in costs])
        self.costs.append(np.asarray(costs, np.float64))

    @property
    def mean(self) -> np.ndarray:
        """The mean of the search distribution as the workers get it [P]; this is the agent that gets evaluated."""
        return as_sent_to_workers(self._strategy.result.xfavorite)

    @property
    def sigma_rms(self) -> float:
        """Mean over the parameters of the standard deviation of each coordinate: the column of that name in the log."""
        return float(np.mean(self._strategy.result.stds))

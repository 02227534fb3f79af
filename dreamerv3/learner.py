"""The update for a run: on a GPU it is captured once as a CUDA graph and replayed. The update itself: train.py.

A graph works on fixed memory: every batch is copied into that of the first one. What comes out is a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from common import eager
from dreamerv3.agent import Noise
from dreamerv3.replay import Batch
from dreamerv3.rssm import State

WARM_UPS = 3  # updates before a CUDA graph is captured

Result = tuple[dict[str, Tensor], State]


class Learner:
    """`step(batch, noise)`, which makes one update in place; on a GPU as a graph if `captures` and where that succeeds.

    Not yet run on a GPU.
    """

    def __init__(self, step: Callable[[Batch, Noise], Result], device: torch.device, *, captures: bool) -> None:
        self.step, self.device, self.captures = step, device, captures and device.type == "cuda"
        self.warm_ups = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Batch, Noise] | None = None
        self.outputs: Result | None = None

    def update(self, batch: Batch, noise: Noise) -> Result:
        """One update of everything: losses with numbers for the log, and the posterior states [B, T, ...]."""
        if not self.captures:
            return self.step(batch, noise)
        if self.warm_ups < WARM_UPS:
            self.warm_ups += 1
            return self._warm_up(batch, noise)
        if self.graph is None and not self._capture(batch, noise):
            return self.step(batch, noise)
        assert self.graph is not None
        assert self.inputs is not None
        assert self.outputs is not None
        for ours, theirs in zip(tensors_of(*self.inputs), tensors_of(batch, noise), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.graph.replay()
        metrics, states = self.outputs
        return {name: value.clone() for name, value in metrics.items()}, State(states.h.clone(), states.z.clone())

    def _warm_up(self, batch: Batch, noise: Noise) -> Result:
        """An update on a stream of its own, so that kernels are chosen and compiled before the capture."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            found = self.step(batch, noise)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return found

    def _capture(self, batch: Batch, noise: Noise) -> bool:
        """Record the step; recording runs nothing. False if it cannot be recorded: then it stays as it is for good."""

        def record() -> tuple[torch.cuda.CUDAGraph, tuple[Batch, Noise], Result]:
            inputs, graph = cloned(batch, noise), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = self.step(*inputs)
            return graph, inputs, outputs

        found = eager.captured("the update", record)
        if found is None:
            self.captures = False
            return False
        self.graph, self.inputs, self.outputs = found
        return True


def tensors_of(batch: Batch, noise: Noise) -> list[Tensor]:
    """All tensors of an update's inputs, in a fixed order."""
    rest = [getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "obs"]
    return [*batch.obs.values(), *rest, noise.posterior, noise.prior, noise.action]


def cloned(batch: Batch, noise: Noise) -> tuple[Batch, Noise]:
    """The inputs in memory of their own."""
    rest = {f.name: getattr(batch, f.name).clone() for f in dataclasses.fields(batch) if f.name != "obs"}
    obs = {name: value.clone() for name, value in batch.obs.items()}
    return Batch(obs=obs, **rest), Noise(noise.posterior.clone(), noise.prior.clone(), noise.action.clone())

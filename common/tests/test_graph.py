"""What is captured once and replayed does what the function does, with a tape in the place of a CUDA graph."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from common import checkpoint, eager, tape
from common.graph import WARM_UPS, Graph, prepare, set_rate, tensors_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """What a step is given."""

    x: Tensor
    named: dict[str, Tensor]


class Counting:
    """A step in place that counts its calls, and how often it was run by hand."""

    def __init__(self) -> None:
        self.total, self.calls = torch.zeros(2), 0

    def __call__(self, pair: Pair, scale: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        self.calls += 1
        self.total += pair.x * scale + pair.named["y"]
        return {"total": self.total}, [self.total * 2]


def given(number: float) -> tuple[Pair, Tensor]:
    return Pair(torch.full((2,), number), {"y": torch.full((2,), 10 * number)}), torch.tensor(number)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph[tuple[dict[str, Tensor], list[Tensor]]]:
    tape.put_in_place(monkeypatch)
    found = Graph("a step", Counting(), CPU)
    found.captures = True
    return found


def test_replays_do_what_the_function_does_and_what_came_out_stays(graph):
    plain = Counting()
    found = [graph(*given(number)) for number in range(WARM_UPS + 4)]
    assert graph.function.calls == WARM_UPS + 1, "captured once"
    for number, (metrics, (double,)) in enumerate(found):
        plain(*given(number))
        torch.testing.assert_close(double, 2 * plain.total)
        if number >= WARM_UPS:  # before, the function's own tensor comes out
            torch.testing.assert_close(metrics["total"], plain.total)
    torch.testing.assert_close(graph.function.total, plain.total)


def test_inputs_of_another_shape_are_taken_by_the_function_itself(graph):
    for number in range(WARM_UPS + 2):
        graph(*given(number))
    before, calls = graph.function.total.clone(), graph.function.calls
    graph(Pair(torch.ones(1), {"y": torch.ones(1)}), torch.tensor(1.0))
    assert graph.function.calls == calls + 1
    torch.testing.assert_close(graph.function.total, before + 2)
    graph(*given(1))
    assert graph.function.calls == calls + 1
    torch.testing.assert_close(graph.function.total, before + 2 + 11)


def test_a_number_would_be_a_constant_of_the_graph(graph):
    with pytest.raises(TypeError, match="would take this float for a constant: 0.5"):
        graph(given(1)[0], 0.5)


def test_without_a_gpu_it_is_the_function():
    graph = Graph("a step", lambda x: x, CPU)
    assert graph(0.5) == 0.5


def test_a_step_whose_capture_fails_goes_on_as_it_is(monkeypatch, capsys):
    tape.break_captures(monkeypatch)
    monkeypatch.setattr(eager, "_marks", [])
    captured, plain = Counting(), Counting()
    graph = Graph("a step", captured, CPU)
    graph.captures = True
    for number in range(WARM_UPS + 3):
        graph(*given(number))
        plain(*given(number))
    torch.testing.assert_close(captured.total, plain.total)
    assert (graph.graph, graph.captures) == (None, False)
    assert capsys.readouterr().err.count("\n") == 1


def test_tensors_are_found_in_a_fixed_order():
    pair, scale = given(3)
    assert [id(x) for x in tensors_of((pair, scale))] == [id(pair.x), id(pair.named["y"]), id(scale)]


def test_a_learning_rate_is_a_tensor_where_there_is_a_gpu_wherever_its_state_was_saved():
    """On a CPU it stays the number that it was, bit for bit."""
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3, fused=True)
    prepare(optimizer, CPU)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["capturable"]) == (1e-3, False)
    set_rate(optimizer, 0.7)
    assert optimizer.param_groups[0]["lr"] == 0.7
    optimizer.param_groups[0]["lr"] = torch.tensor(0.5)  # as a checkpoint from a GPU has it
    set_rate(optimizer, 0.25)
    assert torch.equal(optimizer.param_groups[0]["lr"], torch.tensor(0.25))
    prepare(optimizer, CPU)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_a_checkpoint_from_a_gpu_goes_on_on_a_cpu():
    """Its learning rate is a tensor there; the steps are those of a training that never left."""
    weights = []
    for leaves in (False, True):
        weight = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.5, fused=True)
        for number in range(3):
            if leaves and number == 1:
                optimizer.param_groups[0] |= {"lr": torch.tensor(0.5), "capturable": True}
                tensors, state = checkpoint.pack_optimizer("optimizer", optimizer)
                optimizer = torch.optim.Adam([weight], lr=0.5, fused=True)
                checkpoint.unpack_optimizer("optimizer", optimizer, tensors, json.loads(json.dumps(state)))
                prepare(optimizer, CPU)
            weight.grad = torch.full((3,), number + 1.0)
            optimizer.step()
        weights.append(weight.detach())
        assert isinstance(optimizer.param_groups[0]["lr"], float)
    assert torch.equal(*weights)

"""CUDA graphs of a model: a call is captured once a kind, and replayed with other arguments.

A stand-in for a graph runs the captured operations again on the captured tensors.
"""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import ROOT, new_motion, new_unet
from test_speed import frozen, inputs

import animatediff_core as ad
from animatediff_core.motion import Conditions
from animatediff_core.speed.graphs import Graphs


@pytest.fixture
def graphs(monkeypatch):
    """The graphs of a plain model, and how often one was captured and replayed."""
    made = Graphs(ad.inflate(frozen(new_unet()), new_motion().requires_grad_(False)))
    counts = {"captured": 0, "replayed": 0}
    call = made.call
    arguments = []

    class Graph:
        def replay(self):
            counts["replayed"] += 1
            (captured,) = (one for one in made.known.values() if one and one.graph is self)
            captured.output.copy_(call(*self.arguments))

    @contextmanager
    def capturing(graph, pool, capture_error_mode):
        counts["captured"] += 1
        yield
        graph.arguments = arguments[-1]

    def noted(*given):
        arguments.append(given)
        return call(*given)

    made.call = noted
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return made, call, counts


@torch.no_grad()
def test_replays_take_the_arguments_of_their_call(graphs):
    made, call, counts = graphs
    sample, time, text = inputs(batch=1)
    for number in range(4):
        conditions = Conditions(mid_residual=torch.full((3, 64, 4, 4), float(number)))
        given = sample * (number + 1), time - number, text * (number - 2), conditions
        torch.testing.assert_close(made(*given), call(*given), atol=0, rtol=0)
    assert counts == {"captured": 1, "replayed": 3}
    given = sample, time, text, conditions
    made(*given)
    text.mul_(-3)  # in place: another text at the same address
    assert torch.equal(made(*given), call(*given))
    weaker = Conditions(mid_residual=conditions.mid_residual, motion_strength=0.2)
    for _ in range(2):
        assert torch.equal(made(sample, time, text, weaker), call(sample, time, text, weaker))
    assert counts == {"captured": 2, "replayed": 6}


@torch.no_grad()
def test_a_hook_or_another_weight_ends_what_was_captured(graphs):
    made, call, counts = graphs
    given = *inputs(batch=1), None
    for _ in range(2):
        made(*given)
    unet = next(m for m in made._attentions)
    unet.to_q.register_forward_hook(lambda layer, inputs, output: output * 2)
    for _ in range(2):
        assert torch.equal(made(*given), call(*given))
    unet.to_k.weight.data = unet.to_k.weight.data * 3
    for _ in range(2):
        assert torch.equal(made(*given), call(*given))
    assert counts["captured"] == 3


@torch.no_grad()
def test_what_cannot_be_captured_runs_plainly(graphs, monkeypatch):
    made, call, counts = graphs

    def failing(*given, capture_error_mode):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    given = *inputs(batch=1), None
    for _ in range(3):
        assert torch.equal(made(*given), call(*given))
    assert len(made.failed) == 1


@pytest.mark.slow
def test_the_benchmark_for_gpus_runs_through_without_one(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "correct", "forward", "train"],
        env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stdout
    assert (tmp_path / "gpu.json").is_file()

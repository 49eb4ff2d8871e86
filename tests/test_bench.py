"""What `make bench` measures with, here and on a pretended GPU."""

import sys
import time

import pytest
import torch
from conftest import ROOT
from pretended_gpu import pretended_gpu


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) in map(str, ROOT.glob("benchmarks/*")):
            del sys.modules[name]


def test_the_cpu_counts_its_own_seconds_and_a_gpu_those_that_pass(monkeypatch):
    from place import OnCPU, OnGPU, place_of
    from turns import alternate

    finished = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: finished.append(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place_of(None) == OnGPU()
    assert place_of("cpu") == OnCPU()
    sides = {"ours": lambda: time.sleep(0.05)}
    assert alternate(OnCPU(), sides, 1)["ours"][1] < 0.03
    assert alternate(OnGPU(), sides, 1)["ours"][1] > 0.05
    assert len(finished) == 2  # before and after


def test_a_forward_of_both_sides_on_a_gpu(monkeypatch):
    from forward import compare_forwards
    from place import OnGPU

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pretended_gpu():
        row = compare_forwards(OnGPU(), "bundled", 2, torch.float16, rounds=1)
    assert 0 < max(row["error"]) < 0.05
    assert row["ratio"] == row["diffusers"][1] / row["ours"][1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_ends_in_one_sentence(monkeypatch, capsys):
    import bench

    monkeypatch.setattr(sys, "argv", ["bench.py", "train", "--device", "cuda"])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert "no CUDA device on this machine" in capsys.readouterr().err.splitlines()[-1]

"""`--compile`: the same clip from compiled blocks, kept for the next run, or one clear refusal."""

import os
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from conftest import new_motion, new_unet
from test_ip_adapter import weights

import animatediff_core as ad
from animatediff_core import Conditions
from animatediff_core.adapters.ip_adapter import IPAdapterWeights, attach_ip_adapters
from animatediff_core.errors import AnimateDiffError
from animatediff_core.planning.memory import FASTEST, MemorySettings
from animatediff_core.sampling.compiling import (
    check_compiling,
    compile_model,
    compiling_explained,
)

CPU = torch.device("cpu")
SKIPS = ((32, 8, 8), (32, 8, 8), (32, 4, 4), (64, 4, 4))


def model(*channels: int):
    unet = new_unet(channels).eval().requires_grad_(False)
    return ad.inflate(unet, new_motion(channels).requires_grad_(False))


def test_the_compiled_model_is_one_graph_with_all_that_conditions_it():
    plain, fast = model(32, 64), model(32, 64)
    adapter = IPAdapterWeights(Path("adapter"), "plain", weights("plain"))
    for side in (plain, fast):
        attach_ip_adapters(side.unet, [(adapter, 0.6)])
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    undo = compile_model(fast, counted)
    x, time, text = torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(1, 5, 16)
    seen = {"image_embeddings": (torch.randn(3, 1, 24),)}
    conditions = Conditions(**seen, motion_strength=0.5)
    more = Conditions(
        **seen, down_residuals=tuple(torch.randn(3, *s) for s in SKIPS),
        mid_residual=torch.randn(3, 64, 4, 4), motion_frames=torch.tensor([1.0, 0.5, 0.0]),
        motion_blocks={"mid_block": 0.3},
    )  # fmt: skip
    with torch.no_grad():
        for number, one in enumerate((conditions, more), start=1):
            wanted = plain(x, time, text, one)
            assert (fast(x, time, text, one) - wanted).abs().max() < 2e-5
            assert len(graphs) == number  # torch.compile(fullgraph=True) breaks none
        fast(x * 2, time - 100, text, more)
        assert len(graphs) == 2
        undo()
        assert torch.equal(fast(x, time, text, more), wanted)


def test_a_compiler_and_a_place_for_its_results_must_be_there(tmp_path, monkeypatch, asked):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check_compiling(CPU, FASTEST)
    place = tmp_path / "animatediff" / "compiled"
    assert place.is_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(place)

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(AnimateDiffError, match="TORCHINDUCTOR_CACHE_DIR"):
        check_compiling(CPU, FASTEST)
    with pytest.raises(AnimateDiffError, match="leave one of them out"):
        check_compiling(CPU, MemorySettings(offload=True))
    with pytest.raises(AnimateDiffError, match="does not run on mps"):
        check_compiling(torch.device("mps"), FASTEST)

    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    done = asked("generate", "--prompt", "x", "--compile", "--dry-run")
    assert done.exit_code == 3
    assert "--compile needs a C++ compiler such as g++; install it" in done.stderr


def test_what_cannot_be_compiled_is_told_in_one_sentence():
    def broken(graph, inputs):
        raise RuntimeError("no such instruction\nand much more")

    fast = model(32)
    compile_model(fast, broken)
    with (
        pytest.raises(AnimateDiffError, match="no such instruction.*leave --compile out") as told,
        compiling_explained(True),
        torch.no_grad(),
    ):
        fast(torch.randn(1, 4, 3, 8, 8), 500, torch.randn(1, 5, 16))
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_a_compiled_clip_is_the_exact_one_to_the_eye_and_is_made_again_from_the_cache(
    command, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    asked = ("generate", "--prompt", "a red circle moving right on a blue background", "--steps",
             "2", "--format", "png", "--seed", "1")  # fmt: skip
    clips = []
    for folder, more in (("plain", ()), ("first", ("--compile",)), ("again", ("--compile",))):
        done = command(*asked, *more, "-o", folder)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        clips.append(tmp_path / done.stdout.strip())
    plain, first, again = (
        np.stack([iio.imread(one).astype(int) for one in sorted(clip.glob("*.png"))])
        for clip in clips
    )
    assert abs(first - plain).max() <= 1
    assert np.array_equal(first, again)
    made = yaml.safe_load(clips[1].with_suffix(".yaml").read_text())
    assert made["made_with"]["kernels"] == "compiled"
    assert any((tmp_path / "cache" / "animatediff" / "compiled").rglob("*.so"))

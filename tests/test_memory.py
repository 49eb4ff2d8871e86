"""Memory: the estimate against a count of every allocation, offloading, the fallbacks."""

import json
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from animatediff_core import inflate
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.motion_module import load_motion_module
from animatediff_core.diffusion.decoding import decode
from animatediff_core.diffusion.denoise import denoise
from animatediff_core.diffusion.noise import draw_noise
from animatediff_core.diffusion.schedules import make_scheduler
from animatediff_core.diffusion.text import embed_prompt
from animatediff_core.jobs import job_from_options
from animatediff_core.planning.memory import (
    FASTEST,
    MemorySettings,
    memory_fallbacks,
    needed,
    next_fallback,
)
from animatediff_core.runs.generate import Result, run
from animatediff_core.sampling.loading import load_model
from animatediff_core.sampling.offload import place

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Counted(TorchDispatchMode):
    """Counts the bytes of every tensor that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        out = function(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def _is_tensor(one: object) -> bool:
    return isinstance(one, torch.Tensor)


@pytest.mark.parametrize(("frames", "size"), [(4, 16), (8, 32)])
def test_the_estimate_is_what_a_forward_and_a_decoder_hold_at_their_peak(frames, size):
    base = load_base("bundled:tiny")
    motion = load_motion_module(TINY / "motion_module.safetensors")
    animated = inflate(base.unet, motion)
    channels = (base.unet.config.block_out_channels[0], base.vae.config.block_out_channels[0])
    need = needed(
        num_weights=1, channels=channels, shape=(frames, 4 * size, 4 * size),
        factor=base.vae_scale_factor, itemsize=4, settings=MemorySettings(decode_chunk=4),
    )  # fmt: skip
    text = embed_prompt(base, {0: "x"}, frames).tokens
    with torch.no_grad(), Counted() as forward:
        animated(torch.zeros(1, 4, frames, size, size), 5, text)
    with torch.no_grad(), Counted() as decoder:
        base.vae.decode(torch.zeros(4, 4, size, size))
    assert forward.peak < need.denoising < 1.25 * forward.peak
    assert 0.9 * decoder.peak < need.decoding < 1.25 * decoder.peak
    assert need.peak == need.weights + max(need.denoising, need.decoding)


def test_a_plan_tells_what_a_job_will_need(asked):
    """The bundled model has 17 million weights in fp32; a clip twice as large needs four times."""
    given = ("generate", "--prompt", "x", "--dry-run", "--json")
    one = json.loads(asked(*given).stdout)["memory"]
    large = json.loads(asked(*given, "-W", 1024, "-H", 1024, "--dtype", "bf16").stdout)["memory"]
    base = load_base("bundled:tiny")
    motion = load_motion_module(TINY / "motion_module.safetensors")
    parts = (base.unet, base.vae, *base.text_encoders, motion)
    weights = sum(p.numel() for part in parts for p in part.parameters())
    assert one == 4 * weights + 28 * 16 * 16 * 16 * 48 * 4
    assert large == 2 * weights + max(28 * 16 * 256 * 256 * 48 * 2, 6 * 8 * 1024 * 1024 * 16 * 4)


def test_offloaded_models_give_the_same_clip_and_leave_their_weights_elsewhere():
    clips = []
    for settings in (FASTEST, MemorySettings(decode_chunk=1, offload=True)):
        base = load_base("bundled:tiny")
        motion = load_motion_module(TINY / "motion_module.safetensors")
        place(base, motion, CPU, torch.float32, settings)
        animated = inflate(base.unet, motion)
        text = embed_prompt(base, {0: "a red circle", 3: "a blue star"}, 4)
        noise = draw_noise(1, (1, 4, 4, 8, 8))
        scheduler = make_scheduler("ddim", motion.config)
        latents = denoise(animated, scheduler, noise, text.tokens, text.tokens, steps=1)
        clips.append(decode(base.vae, latents, chunk=settings.decode_chunk))
        away = sum(p.numel() for p in animated.parameters() if p.is_meta)
        whole = sum(p.numel() for p in animated.parameters())
        assert (away > 0.9 * whole) == settings.offload
        assert (base.unet.device, base.vae.device, base.text_encoders[0].device) == (CPU,) * 3
    assert (clips[0] == clips[1]).all()


def test_a_job_that_does_not_fit_is_made_again_with_less_memory(tmp_path, monkeypatch, caplog):
    """A VAE that has room for one frame at a time; the next job starts where the last one ended."""

    def crowded(found, *, dtype, offline):
        base, motion = load_model(found, dtype=dtype, offline=offline)
        base.vae.decoder.register_forward_pre_hook(_one_frame_at_most)
        return base, motion

    monkeypatch.setattr("animatediff_core.runs.generate.load_model", crowded)
    settings = {"prompt": "a red circle", "steps": 1, "frames": 2, "seed": 1}
    jobs = job_from_options(settings, 2)
    results = [e for e in run(jobs, output_dir=tmp_path) if isinstance(e, Result)]
    assert [r.error for r in results] == [None, None]
    told = [r.message for r in caplog.records if "not enough memory" in r.message]
    assert len(told) == 1
    assert "again with 1 frame decoded at a time" in told[0]
    for result in results:
        made = yaml.safe_load(result.path.with_suffix(".yaml").read_text())["made_with"]
        assert made["memory"] == {"decode_chunk": 1, "offload": False, "tiles": False}
    monkeypatch.undo()
    plenty = [e for e in run(jobs[:1], output_dir=tmp_path / "b") if isinstance(e, Result)]
    apart = np.abs(plenty[0].frames.astype(int) - results[0].frames)
    assert apart.max() <= 1
    assert apart.mean() < 1e-3


def _one_frame_at_most(decoder, inputs):
    if len(inputs[0]) > 1:
        raise torch.OutOfMemoryError


def test_a_job_that_fits_nowhere_fails_and_the_next_one_is_tried(tmp_path, monkeypatch):
    def full(found, *, dtype, offline):
        base, motion = load_model(found, dtype=dtype, offline=offline)
        base.unet.conv_in.register_forward_pre_hook(_none_at_all)
        return base, motion

    monkeypatch.setattr("animatediff_core.runs.generate.load_model", full)
    jobs = job_from_options({"prompt": "x", "steps": 1, "frames": 2, "seed": 1}, 2)
    results = [e for e in run(jobs, output_dir=tmp_path) if isinstance(e, Result)]
    assert ["not enough memory on cpu" in str(r.error) for r in results] == [True, True]
    assert not list(tmp_path.iterdir())


def test_a_model_is_gone_before_the_next_one_is_loaded(tmp_path, monkeypatch):
    """Also where its job failed, and whoever keeps the results."""
    models = []

    def watched(found, *, dtype, offline):
        assert [one() for one in models] == [None] * len(models)
        base, motion = load_model(found, dtype=dtype, offline=offline)
        models.append(weakref.ref(base.unet))
        if len(models) == 1:
            base.unet.conv_in.register_forward_hook(_no_number)
        return base, motion

    monkeypatch.setattr("animatediff_core.runs.generate.load_model", watched)
    settings = {"prompt": "x", "steps": 1, "frames": 2, "seed": 1}
    presets = ("tiny", "tiny-slanted", "tiny-slim")
    jobs = [job for one in presets for job in job_from_options({"preset": one, **settings})]
    results = [e for e in run(jobs, output_dir=tmp_path) if isinstance(e, Result)]
    assert ["no numbers" in str(r.error) for r in results] == [True, False, False]
    assert len(models) == 3


def _no_number(layer, inputs, output):
    return output * torch.nan


def _none_at_all(layer, inputs):
    raise torch.OutOfMemoryError


def test_the_fallbacks_end_and_offloads_only_where_there_is_other_memory():
    for device in (CPU, CUDA):
        seen, settings = [], FASTEST
        while settings is not None:
            seen.append(settings)
            settings = next_fallback(settings, device)
        assert seen == memory_fallbacks(device)
        assert any(one.offload for one in seen) == (device == CUDA)
        assert seen[-1].tiles
    assert next_fallback(MemorySettings(decode_chunk=5), CPU) is None

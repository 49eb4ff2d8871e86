"""LoRAs with weights by frame: attached to the UNet's layers, not merged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, new_motion, new_unet
from safetensors.torch import save_file

from animatediff_core import Conditions, apply_lora, inflate
from animatediff_core.adapters.lora.attach import attach_lora
from animatediff_core.checkpoints.base_model import BaseModel
from animatediff_core.errors import AnimateDiffError, CheckpointError
from animatediff_core.jobs import load_prompt_file
from animatediff_core.runs.generate import Loading, Result, run

FRAMES = 3
QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_KEY = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "down_blocks_0_resnets_0_conv1"
TIME = "time_embedding_linear_1"


def shape_of(name: str) -> tuple[int, ...]:
    layers = {key.replace(".", "_"): layer for key, layer in new_unet().named_modules()}
    return tuple(layers[name].weight.shape)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


def low_rank(name: str, rank: int = 2) -> dict[str, torch.Tensor]:
    out, *rest = shape_of(name)
    up = drawn(out, rank, 1, 1) if len(rest) == 3 else drawn(out, rank)
    return {
        f"lora_unet_{name}.lora_up.weight": up,
        f"lora_unet_{name}.lora_down.weight": drawn(rank, *rest),
        f"lora_unet_{name}.alpha": torch.tensor(3.0),
    }


def lokr(name: str) -> dict[str, torch.Tensor]:
    out, inner = shape_of(name)
    return {
        f"lora_unet_{name}.lokr_w1": drawn(2, 2),
        f"lora_unet_{name}.lokr_w2": drawn(out // 2, inner // 2),
    }


def dora(name: str) -> dict[str, torch.Tensor]:
    _, inner = shape_of(name)
    return low_rank(name) | {f"lora_unet_{name}.dora_scale": 1 + drawn(1, inner).abs()}


FILES = {
    "linear": low_rank(QUERY),
    "keys of the text": low_rank(TEXT_KEY),
    "convolution": low_rank(CONV),
    "time embedding": low_rank(TIME),
    "kronecker": lokr(QUERY),
    "dora": dora(QUERY),
    "glora": {
        f"lora_unet_{QUERY}.{part}.weight": drawn(*shape)
        for part, shape in {"a1": (32, 2), "a2": (2, 32), "b1": (32, 2), "b2": (2, 32)}.items()
    },
    "full": {f"lora_unet_{QUERY}.diff": drawn(*shape_of(QUERY))},
    "several": low_rank(QUERY) | low_rank(CONV) | low_rank(TEXT_KEY),
}


def base_of(unet: torch.nn.Module) -> BaseModel:
    return BaseModel(unet, None, [], [], {}, "", "")


def inputs() -> tuple[torch.Tensor, int, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    sample = torch.randn(2, 4, FRAMES, 8, 16, generator=generator)
    return sample, 400, torch.randn(2, 5, 16, generator=generator)


@pytest.mark.parametrize("kind", FILES)
@torch.no_grad()
def test_a_frame_is_that_of_the_merged_lora_at_its_weight(tmp_path, kind):
    path = tmp_path / "lora.safetensors"
    save_file(FILES[kind], path)
    weights = (0.0, 0.25, 1.5)
    conditions = Conditions(motion_strength=0, lora_weights=(torch.tensor(weights),))
    animated = inflate(new_unet(), new_motion())
    plain = animated(*inputs(), Conditions(motion_strength=0))
    detach = attach_lora(base_of(animated.unet), animated.call, path, 0)
    attached = animated(*inputs(), conditions)
    for frame, weight in enumerate(weights):
        unet = new_unet()
        apply_lora(unet, path, weight)
        merged = inflate(unet, new_motion())(*inputs(), Conditions(motion_strength=0))
        torch.testing.assert_close(attached[:, :, frame], merged[:, :, frame], atol=2e-4, rtol=1e-3)
    assert torch.equal(attached[:, :, 0], plain[:, :, 0])
    assert (attached - plain)[:, :, 2].abs().max() > 1e-3
    sample, time, text = inputs()
    frames = torch.tensor([2, 0])
    window = animated(sample[:, :, frames], time, text, conditions.at(frames, FRAMES))
    torch.testing.assert_close(window, attached[:, :, frames], atol=1e-4, rtol=1e-3)
    detach()
    assert torch.equal(animated(*inputs(), conditions), plain)


@torch.no_grad()
def test_two_add_up_each_with_its_own_weights(tmp_path):
    for name, layer in (("a", QUERY), ("b", CONV)):
        save_file(low_rank(layer), tmp_path / f"{name}.safetensors")
    animated = inflate(new_unet(), new_motion())
    base = base_of(animated.unet)
    one = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    for number, name in enumerate("ab"):
        attach_lora(base, animated.call, tmp_path / f"{name}.safetensors", number)
    still = Conditions(motion_strength=0)
    both = animated(*inputs(), replace(still, lora_weights=one))
    swapped = animated(*inputs(), replace(still, lora_weights=one[::-1]))
    plain = animated(*inputs(), still)
    assert torch.equal(both[:, :, 2], plain[:, :, 2])
    for frame in (0, 1):
        assert (both - plain)[:, :, frame].abs().max() > 1e-3
        assert (both - swapped)[:, :, frame].abs().max() > 1e-3


def test_boft_cannot_be_scaled_by_frame(tmp_path):
    file = {f"lora_unet_{QUERY}.oft_blocks": drawn(2, 16, 2, 2)}
    save_file(file, tmp_path / "l.safetensors")
    animated = inflate(new_unet(), new_motion())
    with pytest.raises(CheckpointError, match="an OFT in stages or with lengths, which cannot be"):
        attach_lora(base_of(animated.unet), animated.call, tmp_path / "l.safetensors", 0)


def test_norms_cannot_be_scaled_by_frame(tmp_path):
    name = "down_blocks_0_resnets_0_norm1"
    save_file({f"lora_unet_{name}.diff": drawn(*shape_of(name))}, tmp_path / "n.safetensors")
    animated = inflate(new_unet(), new_motion())
    with pytest.raises(CheckpointError, match="changes norms, .* leave weights out"):
        attach_lora(base_of(animated.unet), animated.call, tmp_path / "n.safetensors", 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A LoRA for the bundled UNet and its text encoder."""
    from diffusers.models import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(TINY / "base" / "unet")
    names = [n for n, m in unet.named_modules() if n.endswith("attn1.to_q")]
    tensors = {}
    for name in names:
        out, inner = unet.get_submodule(name).weight.shape
        plain = name.replace(".", "_")
        tensors[f"lora_unet_{plain}.lora_up.weight"] = drawn(out, 4)
        tensors[f"lora_unet_{plain}.lora_down.weight"] = drawn(4, inner)
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path


def jobs_of(folder: Path, *jobs: dict[str, object]) -> Path:
    settings = {"frames": 4, "width": 64, "height": 32, "steps": 2}
    content = {
        "defaults": settings,
        "jobs": [{"prompt": "a red circle", "seed": 1, **job} for job in jobs],
    }
    path = folder / "jobs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_jobs_with_weights_share_the_plain_model_and_restore_it(folder, tmp_path):
    style = {"path": "style.safetensors", "scale": 0.5}
    by_frame = {"loras": [{**style, "weights": {0: 0.0, -1: 2.0}}]}
    path = jobs_of(folder, {}, by_frame, {}, {"loras": [{**style, "weights": {0: 0.0}}]})
    events = list(run(load_prompt_file(path), output_dir=tmp_path, device="cpu", offline=True))
    assert sum(isinstance(event, Loading) for event in events) == 1
    results = [event for event in events if isinstance(event, Result)]
    assert not any(result.error for result in results), [result.error for result in results]
    free, led, again, off = (np.asarray(result.frames) for result in results)
    assert np.array_equal(free, again)
    assert not np.array_equal(free, led)
    assert np.abs(off.astype(int) - free).max() <= 1
    sidecar = yaml.safe_load(results[1].path.with_suffix(".yaml").read_text())
    assert "lora" in str(sidecar["made_with"]["sources"])
    repeated = list(run(load_prompt_file(results[1].path.with_suffix(".yaml")), output_dir=tmp_path,
                        device="cpu", offline=True))  # fmt: skip
    assert np.array_equal(np.asarray(repeated[-1].frames), led)


def test_a_motion_lora_takes_no_weights(folder):
    path = jobs_of(folder, {"motion_loras": [{"path": "style.safetensors", "weights": {0: 1}}]})
    with pytest.raises(AnimateDiffError, match=r"motion_loras\[0\].weights: is for loras alone"):
        load_prompt_file(path)

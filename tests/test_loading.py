"""A model is loaded in the dtype that runs: the numbers of fp32 merging, without its memory."""

from dataclasses import replace

import pytest
import torch
from conftest import new_motion, weight_pairs
from safetensors.torch import load_file, save_file
from small_model import LEVELS, write_half, write_model

from animatediff_core import apply_lora, apply_motion_lora, save_motion_module
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.motion_module import load_motion_module
from animatediff_core.jobs import Adapter, Embedding
from animatediff_core.planning.models import ModelSpec, find_model
from animatediff_core.sampling.loading import load_model

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
WORDS = "lora_te_text_model_encoder_layers_0_mlp_fc1"
SITE = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"


@pytest.fixture
def spec(tmp_path) -> ModelSpec:
    """A model with two LoRAs, two MotionLoRAs and an embedding, whose files are fp16 and fp32."""
    torch.manual_seed(3)
    write_model(tmp_path / "base")
    for part in ("unet", "vae"):
        write_half(tmp_path / "base" / part)
    save_motion_module(new_motion(LEVELS), tmp_path / "motion.safetensors")
    for name, rank in (("a", 2), ("b", 3)):
        tensors = {
            f"{LAYER}.lora_up.weight": torch.randn(32, rank),
            f"{LAYER}.lora_down.weight": torch.randn(rank, 16),
            f"{WORDS}.diff": torch.randn(32, 16),
            f"{WORDS}.diff_b": torch.randn(32),
        }
        save_file(tensors, tmp_path / f"{name}.safetensors")
        tensors = {
            f"{SITE}.processor.to_q_lora.up.weight": torch.randn(32, rank),
            f"{SITE}.processor.to_q_lora.down.weight": torch.randn(rank, 32),
        }
        save_file(tensors, tmp_path / f"motion-{name}.safetensors")
    save_file({"word": torch.randn(2, 16)}, tmp_path / "word.safetensors")
    return ModelSpec(
        base=str(tmp_path / "base"),
        variant="fp16",
        motion=str(tmp_path / "motion.safetensors"),
        motion_version="v2",
        loras=tuple(Adapter(path=str(tmp_path / f"{n}.safetensors"), scale=0.7) for n in "ab"),
        motion_loras=tuple(
            Adapter(path=str(tmp_path / f"motion-{n}.safetensors"), scale=-0.3) for n in "ab"
        ),
        embeddings=(Embedding(path=str(tmp_path / "word.safetensors")),),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_those_that_fp32_merging_gives_rounded_once(spec, dtype):
    base, motion = load_model(find_model(spec, offline=True), dtype=dtype, offline=True)
    plain = load_base(spec.base, variant="fp16")
    moved = load_motion_module(spec.motion, version="v2")
    for adapter in spec.loras:
        apply_lora(plain, adapter.path, adapter.scale)
    for adapter in spec.motion_loras:
        apply_motion_lora(moved, adapter.path, adapter.scale)
    for part, expected in ((base.unet, plain.unet), (motion, moved)):
        for name, tensor, wanted in weight_pairs(part, expected):
            assert tensor.dtype == dtype
            assert torch.equal(tensor, wanted.to(dtype)), name
    assert base.vae.dtype == torch.float32
    words, table = base.text_encoders[0].state_dict(), load_file(spec.embeddings[0].path)["word"]
    for name, tensor in plain.text_encoders[0].state_dict().items():
        assert torch.equal(words[name][: len(tensor)], tensor.to(dtype)), name
    name = next(name for name in words if name.endswith("token_embedding.weight"))
    assert torch.equal(words[name][-2:], table.to(dtype))


def test_every_weight_is_in_the_dtype_that_runs_or_as_stored(spec):
    spec = replace(spec, loras=(), motion_loras=(), embeddings=())
    base, motion = load_model(find_model(spec, offline=True), dtype=torch.float16, offline=True)
    as_stored = load_base(spec.base, variant="fp16", dtype=None)
    assert {tensor.dtype for tensor in as_stored.unet.state_dict().values()} == {torch.float16}
    assert {tensor.dtype for tensor in base.unet.state_dict().values()} == {torch.float16}
    assert {tensor.dtype for tensor in motion.state_dict().values()} == {torch.float16}

"""IP-Adapters: the pictures' effect as diffusers' own AnimateDiff pipeline has it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import both_forwards, new_motion, new_unet
from diffusers.models import AutoencoderKL, UNetMotionModel
from diffusers.pipelines.animatediff import AnimateDiffPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

import animatediff_core as ad
from animatediff_core import Conditions, denoise, inflate, make_scheduler
from animatediff_core.adapters.ip_adapter import (
    IPAdapterWeights,
    attach_ip_adapters,
    encoder_width,
    load_image_encoder,
    read_ip_adapter,
)
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.diffusion.image_embeddings import embed_images
from animatediff_core.errors import CheckpointError

FRAMES, STEPS, SCALE = 3, 2, 0.6
WIDTH, STATE = 24, 32


@pytest.fixture(scope="module")
def encoder() -> CLIPVisionModelWithProjection:
    torch.manual_seed(3)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=STATE, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            image_size=32, patch_size=8, projection_dim=WIDTH,
        )
    ).eval()  # fmt: skip


def weights(form: str, seed: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """Random tensors of an adapter for conftest's small UNet, in the released layout."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    shapes: dict[str, tuple[int, ...]]
    if form == "plain":
        shapes = {"proj.weight": (4 * 16, WIDTH), "proj.bias": (4 * 16,), "norm.weight": (16,),
                  "norm.bias": (16,)}  # fmt: skip
    elif form == "full face":
        shapes = {"proj.0.weight": (STATE, STATE), "proj.0.bias": (STATE,),
                  "proj.2.weight": (16, STATE), "proj.2.bias": (16,), "proj.3.weight": (16,),
                  "proj.3.bias": (16,)}  # fmt: skip
    else:
        wide = 64
        shapes = {"latents": (1, 4, wide), "proj_in.weight": (wide, STATE), "proj_in.bias": (wide,),
                  "proj_out.weight": (16, wide), "proj_out.bias": (16,), "norm_out.weight": (16,),
                  "norm_out.bias": (16,)}  # fmt: skip
        for i in range(4):
            for norm in ("0.norm1", "0.norm2", "1.0"):
                shapes |= {f"layers.{i}.{norm}.{kind}": (wide,) for kind in ("weight", "bias")}
            shapes |= {f"layers.{i}.0.to_q.weight": (wide, wide),
                       f"layers.{i}.0.to_kv.weight": (2 * wide, wide),
                       f"layers.{i}.0.to_out.weight": (wide, wide),
                       f"layers.{i}.1.1.weight": (4 * wide, wide),
                       f"layers.{i}.1.3.weight": (wide, 4 * wide)}  # fmt: skip
    names = [n for n in new_unet().attn_processors if not n.endswith("attn1.processor")]
    layers = {}
    for number, name in enumerate(names):
        width = new_unet().get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for kind in ("k", "v"):
            layers[f"{2 * number + 1}.to_{kind}_ip.weight"] = some(width, 16)
    return {"image_proj": {k: some(*s) for k, s in shapes.items()}, "ip_adapter": layers}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 52, 3), dtype=np.uint8)


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 4, FRAMES, 8, 16, generator=generator),
        torch.randn(1, 5, 16, generator=generator),
        torch.randn(1, 5, 16, generator=generator),
    )


def theirs(form: str, encoder: CLIPVisionModelWithProjection) -> torch.Tensor:
    motion = new_motion(mid_block=False, version="v3")
    unet = UNetMotionModel.from_unet2d(new_unet(), motion_adapter(motion))
    pipeline = AnimateDiffPipeline(
        vae=AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)), text_encoder=None,
        tokenizer=None, unet=unet, motion_adapter=None, image_encoder=encoder,
        scheduler=make_scheduler("ddim", motion.config),
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
    )  # fmt: skip
    pipeline.load_ip_adapter(weights(form), subfolder="", weight_name=None)
    pipeline.set_ip_adapter_scale(SCALE)
    pipeline.set_progress_bar_config(disable=True)
    noise, text, negative = texts()
    return pipeline(
        prompt_embeds=text, negative_prompt_embeds=negative, latents=noise, height=8, width=16,
        num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=7.5, output_type="latent",
        ip_adapter_image=Image.fromarray(picture(0)),
    ).frames  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "plus", "full face"])
def test_latents_are_those_of_diffusers(tmp_path, encoder, form):
    parts = weights(form)
    if form == "plus":
        torch.save(parts, tmp_path / "adapter.bin")
        path = tmp_path / "adapter.bin"
    else:
        path = tmp_path / "adapter.safetensors"
        save_file({f"{p}.{k}": t for p, inner in parts.items() for k, t in inner.items()}, path)
    encoder.save_pretrained(tmp_path / "encoder")
    adapter = read_ip_adapter(path)
    assert adapter.form == form
    assert encoder_width(adapter) == (WIDTH if form == "plain" else STATE)
    motion = new_motion(mid_block=False, version="v3", frame_norm="clip")
    animated = inflate(new_unet(), motion)
    with torch.no_grad():
        plain = animated.unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 5, 16)).sample
    detach = attach_ip_adapters(animated.unet, [(adapter, SCALE)])
    seen, unseen = embed_images(
        load_image_encoder(tmp_path / "encoder"), {0: picture(0)}, FRAMES, states=form != "plain"
    )
    noise, text, negative = texts()
    latents = denoise(
        animated, make_scheduler("ddim", motion.config), noise, text, negative, steps=STEPS,
        guidance_scale=7.5, conditions=Conditions(image_embeddings=(seen,)),
        negative_conditions=Conditions(image_embeddings=(unseen,)),
    )  # fmt: skip
    assert (latents - theirs(form, encoder)).abs().max() < 1e-4
    detach()
    with torch.no_grad():
        after = animated.unet(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 5, 16)).sample
    assert torch.equal(plain, after)


def two_adapters(tmp_path) -> list[IPAdapterWeights]:
    for seed, form in enumerate(("plain", "full face")):
        torch.save(weights(form, seed), tmp_path / f"{form}.bin")
    return [read_ip_adapter(tmp_path / f"{form}.bin") for form in ("plain", "full face")]


@both_forwards
def test_weights_by_frame_scale_what_each_adapter_adds(tmp_path, fast):
    scales = (0.6, 0.9)
    by_frame = tuple(
        torch.tensor(line).view(3, 1, 1) for line in ([1.0, 0.5, 0.0], [0.0, 1.0, 0.0])
    )
    noise, text, _ = texts()
    generator = torch.Generator().manual_seed(7)
    seen = (
        torch.randn(FRAMES, 1, WIDTH, generator=generator),
        torch.randn(FRAMES, 1, 5, STATE, generator=generator),
    )
    animated = inflate(new_unet().requires_grad_(False), new_motion())
    if fast:
        ad.optimize(animated)
    adapters = two_adapters(tmp_path)

    def made(given: tuple[float, ...], conditions: Conditions | None) -> torch.Tensor:
        pairs = list(zip(adapters, given, strict=bool(given)))
        detach = attach_ip_adapters(animated.unet, pairs) if given else lambda: None
        with torch.no_grad():
            out = animated(noise, 500, text, conditions)
        detach()
        return out

    still = Conditions(motion_strength=0, image_embeddings=seen)  # no frame sees another
    led = made(scales, replace(still, image_masks=by_frame))
    for frame in range(FRAMES):
        factors = [float(line[frame]) for line in by_frame]
        each = tuple(s * f for s, f in zip(scales, factors, strict=True))
        torch.testing.assert_close(led[:, :, frame], made(each, still)[:, :, frame])
    free = made((), Conditions(motion_strength=0))
    torch.testing.assert_close(led[:, :, 2], free[:, :, 2])
    assert (led[:, :, 0] - free[:, :, 0]).abs().max() > 1e-2
    moving = made(scales, Conditions(image_embeddings=seen, image_masks=by_frame))
    whole = made(scales, Conditions(image_embeddings=seen))
    assert (moving - whole).abs().max() > 1e-2
    assert torch.equal(whole, made(scales, Conditions(image_embeddings=seen)))


@torch.no_grad()
def test_a_mask_limits_the_adapter_to_the_white_part_of_each_frame(tmp_path):
    height, width = 8, 16
    masks = torch.zeros(FRAMES, height, width)
    masks[1, :, : width // 2] = 1  # frame 0 is black, frame 1 half white, frame 2 white
    masks[2] = 1
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(2, 4, FRAMES, height, width, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    embeddings = (torch.randn(2 * FRAMES, 1, WIDTH, generator=generator),)
    animated = inflate(new_unet(), new_motion())
    read = animated.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    outputs: list[torch.Tensor] = []
    read.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    still = Conditions(motion_strength=0)
    free = animated(noise, 500, text, still)
    detach = attach_ip_adapters(animated.unet, [(two_adapters(tmp_path)[0], 0.8)])
    whole = animated(noise, 500, text, replace(still, image_embeddings=embeddings))
    masked = animated(
        noise, 500, text, replace(still, image_embeddings=embeddings, image_masks=(masks,))
    )
    detach()
    none, everywhere, part = (t.view(2, FRAMES, height, width, -1) for t in outputs)
    assert (everywhere - none).abs().mean() > 1e-3
    inside = masks.bool().expand(2, -1, -1, -1)
    assert torch.equal(part[~inside], none[~inside])
    torch.testing.assert_close(part[inside], everywhere[inside])
    torch.testing.assert_close(masked[:, :, 0], free[:, :, 0])
    torch.testing.assert_close(masked[:, :, 2], whole[:, :, 2])
    changed = (masked - free)[:, :, 1].abs().mean((0, 1, 2))  # by column
    assert changed[: width // 2].mean() > 2 * changed[width // 2 + 2 :].mean()


def test_pictures_travel_into_each_other(encoder):
    pictures = {1: picture(0), 3: picture(1)}
    seen, unseen = embed_images(encoder, pictures, 6, states=False)
    assert seen.shape == unseen.shape == (6, 1, WIDTH)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[3], seen[5])
    assert torch.allclose(seen[2], (seen[1] + seen[3]) / 2)
    assert (seen[1] - seen[3]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p["ip_adapter"].popitem(), "attentions of an IP-Adapter: it lacks 1 of"),
        (lambda p: p["image_proj"].pop("norm.bias"), "projection of a plain one: it lacks 1 of"),
        (lambda p: p.pop("image_proj"), "is no IP-Adapter"),
        (lambda p: p["image_proj"].update({"proj.0.weight": p["image_proj"].pop("proj.weight")}),
         "FaceID"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_leaves_the_unet(tmp_path, edit, message):
    parts = weights("plain")
    edit(parts)
    torch.save(parts, tmp_path / "adapter.bin")
    unet = new_unet()
    before = unet.attn_processors
    with pytest.raises(CheckpointError, match=message):
        attach_ip_adapters(unet, [(read_ip_adapter(tmp_path / "adapter.bin"), 1.0)])
    assert unet.attn_processors == before
    assert unet.encoder_hid_proj is None

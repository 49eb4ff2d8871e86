"""A film of the tiny world and small random control models for the tiny base, for several tests."""

import random
from pathlib import Path

import numpy as np
import torch
from conftest import TINY
from diffusers.models import ControlNetModel, UNet2DConditionModel
from diffusers.models.adapter import T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff_core.motion import MotionConfig
from animatediff_core.motion.sparse_ctrl import SparseControlNet
from animatediff_core.tiny.renderer import render
from animatediff_core.tiny.world import draw_scene, poses

FRAMES = 6


def write_things(folder: Path) -> None:
    """A film, masks and pictures of 64 x 64, and a model of every kind."""
    rng = random.Random(1)
    scene = draw_scene(rng, motion="moving right")
    film = render(scene, poses(scene, rng, FRAMES)).permute(0, 2, 3, 1).mul(255).byte().numpy()
    (folder / "film").mkdir()
    for number, picture in enumerate(film):
        Image.fromarray(picture).save(folder / "film" / f"{number}.png")
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "right.png")
    Image.new("RGB", (50, 30)).save(folder / "odd.png")
    _write_models(folder)


def _write_models(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(TINY / "base" / "unet")
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
    sparse = SparseControlNet(
        unet,
        MotionConfig(
            block_out_channels=tuple(unet.config.block_out_channels),
            layers_per_block=unet.config.layers_per_block,
            norm_num_groups=unet.config.norm_num_groups,
        ),
        "pictures",
        (8, 8, 16),
    )
    for model in (control, sparse):
        for name, parameter in model.named_parameters():
            if "controlnet_" in name or "proj_out" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    control.save_pretrained(folder / "controlnet")
    levels = list(unet.config.block_out_channels)
    T2IAdapter(1, levels, 1, 4).save_pretrained(folder / "t2i")
    T2IAdapter(1, levels[:2], 1, 4).save_pretrained(folder / "two-levels")
    names = {key.removeprefix("controlnet."): t for key, t in sparse.state_dict().items()}
    save_file({k: t.contiguous() for k, t in names.items()}, folder / "scribble.safetensors")
    width = unet.config.cross_attention_dim
    tensors = {"image_proj.proj.weight": torch.randn(4 * width, 16) * 0.1,
               "image_proj.proj.bias": torch.zeros(4 * width),
               "image_proj.norm.weight": torch.ones(width),
               "image_proj.norm.bias": torch.zeros(width)}  # fmt: skip
    layers = [n for n in unet.attn_processors if not n.endswith("attn1.processor")]
    for number, name in enumerate(layers):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for kind in ("k", "v"):
            tensors[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(out, width)
    save_file(tensors, folder / "ip.safetensors")
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, image_size=16, patch_size=8,
                              projection_dim=16)  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "encoder")
    config.projection_dim = 24
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "wide-encoder")

"""The image encoder of the tiny IP-Adapter: a CLIP vision model that knows the tiny world.

CLIP's own learns from captions. This one learns to name, from its projection alone and linearly,
what an image shows: colour, shape, ground, size and place. An adapter then has only to hand it on.

Shapes: n images, d features of the projection (64).
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..diffusion.image_embeddings import clip_pixels
from .renderer import render_batch
from .saved import load_named, naming_loss, train_naming
from .text import ATTRIBUTES
from .world import Pose, Scene, draw_scene, poses

SIZE = 64
STEPS = 1500
BATCH = 64
FEATURES = 64
NAMED = ("color", "shape", "background", "size")


def new_image_encoder() -> CLIPVisionModelWithProjection:
    """0.5 M parameters, patches of 8 x 8."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=256,
            projection_dim=FEATURES,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=8,
        )
    )


def train_image_encoder(state_file: Path, *, steps: int = STEPS) -> Iterator[tuple[int, float]]:
    """Train and save the state; yields step and the share of attributes named right."""
    torch.manual_seed(3)
    heads = {f"to_{name}": nn.Linear(FEATURES, len(ATTRIBUTES[name])) for name in NAMED}
    heads["to_place"] = nn.Linear(FEATURES, 2)
    both = nn.ModuleDict({"encoder": new_image_encoder(), **heads})

    def loss_of(step: int) -> tuple[Tensor, float]:
        return _name_attributes(both, *_draw(random.Random(step)))

    yield from train_naming(both, state_file, steps, 250, loss_of)


def finished_image_encoder(state_file: Path) -> CLIPVisionModelWithProjection:
    """The trained encoder without its heads."""
    encoder = new_image_encoder()
    load_named(encoder, state_file)
    return encoder


def _draw(rng: random.Random) -> tuple[list[Scene], list[Pose], Tensor]:
    """Scenes, where their things are, and images n 3 h w as CLIP sees them."""
    scenes = [draw_scene(rng) for _ in range(BATCH)]
    places = [rng.choice(poses(scene, rng, 2)) for scene in scenes]
    drawn = (render_batch(scenes, places, SIZE).permute(0, 2, 3, 1) * 255).round().byte()
    seen = [clip_pixels(image, SIZE) for image in drawn.numpy()]
    return scenes, places, torch.stack(seen)


def _name_attributes(
    both: nn.ModuleDict, scenes: list[Scene], places: list[Pose], images: Tensor
) -> tuple[Tensor, float]:
    """Cross-entropy summed over attributes, and the share right; places by squared error."""
    seen = both["encoder"](images).image_embeds  # n d
    loss, right = torch.zeros(()), []
    for name in NAMED:
        truth = torch.tensor([ATTRIBUTES[name].index(getattr(s, name)) for s in scenes])
        error, share = naming_loss(both[f"to_{name}"](seen), truth)
        loss = loss + error
        right.append(share)
    centres = torch.tensor([(pose.x, pose.y) for pose in places])
    loss = loss + 10 * F.mse_loss(both["to_place"](seen), centres)
    return loss, float(torch.stack(right).mean())

"""Image embeddings: the input of an IP-Adapter.

Legend: f frames, n tokens, d features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip import CLIPVisionModelWithProjection

from .interpolation import interpolate

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalisation of red, green and blue."""


@torch.no_grad()
def embed_images(
    encoder: CLIPVisionModelWithProjection,
    images: Mapping[int, np.ndarray],
    frames: int,
    *,
    states: bool,
    loop: bool = False,
) -> tuple[Tensor, Tensor]:
    """Embeddings of reference images for every frame, and those without an image for the negative
    prompt.

    images: h w 3 uint8 by key frame, in order; between them the embeddings are interpolated, with
    `loop` around the clip's end too. Gives f 1 d each (the projection, for plain adapters), or with
    `states` f 1 n d each (the second last layer's states, for the others).
    """
    size = encoder.config.image_size
    pixels = torch.stack([clip_pixels(image, size) for image in images.values()])
    pixels = pixels.to(encoder.device, encoder.dtype)
    if states:
        embeddings = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        blank = torch.zeros_like(pixels[:1])  # as diffusers: grey, not an embedding of zeros
        without = encoder(blank, output_hidden_states=True).hidden_states[-2]
    else:
        embeddings = encoder(pixels).image_embeds
        without = torch.zeros_like(embeddings[:1])
    by_frame = interpolate(embeddings, list(images), range(frames), loop=frames if loop else None)
    return by_frame.unsqueeze(1), without.expand_as(by_frame).unsqueeze(1)


def clip_pixels(image: np.ndarray, size: int) -> Tensor:
    """CLIP's input of an image h w 3 uint8: the middle square, normalised, 3 size size."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    wide = (max(size, int(width * scale)), max(size, int(height * scale)))
    resized = np.asarray(Image.fromarray(image).resize(wide, Image.Resampling.BICUBIC))
    top, left = (wide[1] - size) // 2, (wide[0] - size) // 2
    square = torch.from_numpy(resized[top : top + size, left : left + size].copy())
    pixels = square.permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)

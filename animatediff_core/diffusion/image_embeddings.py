"""Pictures as prompts: what an IP-Adapter reads of them.

Legend: f frames, n tokens, d features.
"""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip import CLIPVisionModelWithProjection

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of red, green and blue."""


@torch.no_grad()
def embed_images(
    encoder: CLIPVisionModelWithProjection,
    pictures: Mapping[int, np.ndarray],
    frames: int,
    *,
    states: bool,
) -> tuple[Tensor, Tensor]:
    """Embeddings of every frame and of no picture, which guidance leads away from.

    pictures: h w 3 uint8 by the frame from which on they count; between two of them the embeddings
    travel linearly. Gives f 1 d each (the projection, for plain adapters), or with `states` f 1 n
    d each (the last layer's input, for the others).
    """
    size = encoder.config.image_size
    given = torch.stack([clip_pixels(picture, size) for picture in pictures.values()])
    given = given.to(encoder.device, encoder.dtype)
    if states:
        found = encoder(given, output_hidden_states=True).hidden_states[-2]
        blank = torch.zeros_like(given[:1])  # as diffusers: grey, not an embedding of zeros
        without = encoder(blank, output_hidden_states=True).hidden_states[-2]
    else:
        found = encoder(given).image_embeds
        without = torch.zeros_like(found[:1])
    travelled = _travel(found, list(pictures), frames)
    return travelled.unsqueeze(1), without.expand_as(travelled).unsqueeze(1)


def clip_pixels(picture: np.ndarray, size: int) -> Tensor:
    """The middle square, normalised: 3 size size."""
    height, width = picture.shape[:2]
    scale = size / min(height, width)
    wide = (max(size, int(width * scale)), max(size, int(height * scale)))
    resized = np.asarray(Image.fromarray(picture).resize(wide, Image.Resampling.BICUBIC))
    top, left = (wide[1] - size) // 2, (wide[0] - size) // 2
    square = torch.from_numpy(resized[top : top + size, left : left + size].copy())
    pixels = square.permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)


def _travel(found: Tensor, starts: list[int], frames: int) -> Tensor:
    """One embedding for each frame, f …; before the first and after the last they stand still."""
    rows = []
    for frame in range(frames):
        after = next((i for i, start in enumerate(starts) if start > frame), len(starts))
        before = max(after - 1, 0)
        after = min(after, len(starts) - 1)
        gap = starts[after] - starts[before]
        share = 0.0 if gap == 0 or frame < starts[before] else (frame - starts[before]) / gap
        rows.append(torch.lerp(found[before], found[after], share))
    return torch.stack(rows)

"""Previews of the clip in work."""

import numpy as np
import pytest
import torch
from PIL import Image

from animatediff_core.checkpoints.loading import load_base
from animatediff_core.jobs import Job
from animatediff_core.runs.generate import JobStep, run
from animatediff_core.sampling.preview import as_rgb, colours_of


@torch.no_grad()
def test_the_linear_map_gives_the_colours_of_an_encoded_image():
    vae = load_base("bundled:tiny").vae
    image = torch.zeros(1, 3, 32, 64)
    image[:, 0, :, :32] = 0.75  # left dark red, right blue
    image[:, 2, :, 32:] = 1.0
    latents = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    (frame,) = as_rgb(latents.transpose(0, 1), colours_of(vae))
    left, right = frame[:, : frame.shape[1] // 2], frame[:, frame.shape[1] // 2 :]
    assert left.mean((0, 1)) == pytest.approx([232, 0, 119], abs=10)  # a linear map is no decoder
    assert right.mean((0, 1)) == pytest.approx([38, 16, 243], abs=10)


def test_a_preview_lies_beside_the_clip_while_it_is_made(tmp_path):
    job = Job(name="a", prompt={0: "a red circle"}, seed=1, frames=5, width=64, height=32, steps=3)
    path, sizes = tmp_path / "a-1.preview.png", []
    for event in run([job], output_dir=tmp_path, preview=True):
        if isinstance(event, JobStep):
            with Image.open(path) as image:
                sizes.append(image.size)
                assert np.ptp(np.asarray(image)) > 50
    assert sizes == [(512, 64)] * 3  # four frames of 16 x 8 latents, enlarged eight times
    assert not path.exists()
    assert (tmp_path / "a-1.gif").exists()

"""Each kind of condition: the values that it gives to a sampling run, from a wide clip's files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from torch import Tensor
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff_core import inflate, load_motion_module
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.conditions import KINDS, LoadedModel
from animatediff_core.diffusion.conditioning import Conditioning
from animatediff_core.diffusion.image_embeddings import clip_pixels
from animatediff_core.diffusion.known_region import encode_images
from animatediff_core.jobs import Job, parse_prompts
from animatediff_core.media.edges import canny
from animatediff_core.media.image import write_image
from animatediff_core.motion import Positions

FRAMES, HEIGHT, WIDTH = 4, 24, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A video of random frames as large as the clip, masks, and an image encoder."""
    folder = tmp_path_factory.mktemp("conditions")
    (folder / "film").mkdir()
    for number, frame in enumerate(film()):
        write_image(frame, folder / "film" / f"{number}.png")
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:8, :12] = 255
    write_image(mask, folder / "corner.png")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, projection_dim=6,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "encoder")
    return folder


def film(frames: int = 2 * FRAMES) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    base = load_base("bundled:tiny")
    motion = load_motion_module(TINY / "motion_module.safetensors")
    shared = {("controlnet", "c"): "a ControlNet", ("t2i_adapter", "t"): "a T2I-Adapter",
              ("ip_adapter", "i"): SimpleNamespace(form="plain"),
              ("sparse_control", "s"): SimpleNamespace(reads="images"),
              ("sparse_control", "l"): SimpleNamespace(reads="latents")}  # fmt: skip
    return LoadedModel(base, inflate(base.unet, motion), offline=True, shared=shared)


def job_of(folder: Path, **settings: object) -> Job:
    common = {"prompt": "a", "seed": 1, "frames": FRAMES, "width": WIDTH, "height": HEIGHT}
    (job,) = parse_prompts(yaml.safe_dump({"jobs": [{**common, **settings}]}), "f", folder)
    return job


def applied(
    folder: Path, model: LoadedModel, size: tuple[int, int] = (WIDTH, HEIGHT), **settings: object
) -> Conditioning:
    """What all kinds make of a job; models are named by letters, as they are in `model`."""
    job = job_of(folder, **settings)
    for letter in "ctsli":
        (folder / letter).touch()
    model.shared |= {
        (role, str(folder / letter)): found
        for (role, letter), found in list(model.shared.items())
        if len(letter) == 1
    }
    conditioning = Conditioning(text=torch.zeros(1, 5, 128), negative_text=torch.zeros(1, 5, 128))
    for kind in KINDS:
        conditioning = kind.apply(conditioning, job, model, size)
    return conditioning


def latents(model: LoadedModel, images: np.ndarray) -> Tensor:
    return encode_images(model.base.vae, images)


def shrunk(model: LoadedModel, rows: int, columns: int) -> Tensor:
    """The corner's mask in latents, h w."""
    factor = model.base.vae_scale_factor
    mask = torch.zeros(HEIGHT // factor, WIDTH // factor)
    mask[: rows // factor, : columns // factor] = 1
    return mask


def test_without_conditions_a_run_is_free(folder, model):
    free = applied(folder, model)
    assert (free.controls, free.regions, free.known, free.source) == ((), (), None, None)
    for conditions in (free.conditions, free.negative_conditions):
        assert (conditions.motion_strength, conditions.motion_frames) == (1.0, None)
        assert conditions.image_embeddings == conditions.image_masks == ()


def test_a_start_is_the_videos_latents_and_its_mask_stays_where_it_is(folder, model):
    given = {"images": {"path": "film", "first": 1, "every": 2}}
    whole = applied(folder, model, start={**given, "strength": 0.5})
    expected = latents(model, film()[[1, 3, 5, 7]])
    torch.testing.assert_close(whole.source, expected)
    assert whole.known is None
    masked = applied(folder, model, start={**given, "mask": "corner.png"})
    torch.testing.assert_close(masked.known.latents, expected)
    assert masked.known.mask.shape == (1, 1, FRAMES, *shrunk(model, 8, 12).shape)
    for frame in range(FRAMES):
        assert torch.equal(masked.known.mask[0, 0, frame], shrunk(model, 8, 12))


def test_a_second_pass_has_its_own_size(folder, model):
    larger = applied(
        folder, model, (2 * WIDTH, 2 * HEIGHT), start={"images": "film", "mask": "corner.png"},
        controlnets=[{"path": "c", "images": "film"}],
    )  # fmt: skip
    factor = model.base.vae_scale_factor
    assert larger.source.shape[-2:] == (2 * HEIGHT // factor, 2 * WIDTH // factor)
    assert float(larger.known.mask[0, 0, 0].sum()) == pytest.approx(
        4 * float(shrunk(model, 8, 12).sum()), rel=0.1
    )  # its edges are blurred
    assert larger.controls[0].condition.shape == (1, 3, FRAMES, 2 * HEIGHT, 2 * WIDTH)


def test_key_frames_are_known_and_lie_over_the_start(folder, model):
    images = {0: "film/5.png", 3: "film/6.png"}
    first, last = latents(model, film()[5:6]), latents(model, film()[6:7])
    alone = applied(folder, model, keyframes={"images": images})
    assert alone.source is None
    assert alone.known.mask.flatten(2).amax(2).shape == (1, 1)
    assert [float(alone.known.mask[:, :, i].mean()) for i in range(FRAMES)] == [0, 1, 1, 0]
    torch.testing.assert_close(alone.known.latents[:, :, :1], first)
    torch.testing.assert_close(alone.known.latents[:, :, 3:], last)
    weak = applied(folder, model, keyframes={"images": images, "strength": 0.5})
    for frame in range(FRAMES):
        expected = torch.lerp(first[:, :, 0], last[:, :, 0], frame / 3)
        torch.testing.assert_close(weak.source[:, :, frame], expected, atol=1e-5, rtol=1e-4)
    both = applied(
        folder, model, keyframes={"images": {0: "film/5.png"}, "strength": 0.5},
        start={"images": "film", "mask": "corner.png"},
    )  # fmt: skip
    torch.testing.assert_close(both.known.latents[:, :, :1], first)
    video = latents(model, film()[:FRAMES])
    torch.testing.assert_close(both.known.latents[:, :, 1:], video[:, :, 1:])
    torch.testing.assert_close(both.source, video)
    assert both.known.mask[0, 0, 0].max() == 0
    assert torch.equal(both.known.mask[0, 0, 2], shrunk(model, 8, 12))


@pytest.mark.parametrize(("key", "letter"), [("controlnets", "c"), ("t2i_adapters", "t")])
def test_controls_have_their_images_and_settings(folder, model, key, letter):
    net = {"path": letter, "images": "film", "strength": 0.5, "start": 0.25, "end": 0.75,
           "weights": {0: 1.0, 2: 0.0}}  # fmt: skip
    edges = {"path": letter, "images": "film", "canny": {"low": 200, "high": 900}}
    (first, second) = applied(folder, model, **{key: [net, edges]}).controls
    assert first.model == second.model == model.shared[f"{key[:-1]}", letter]
    pixels = torch.from_numpy(film()[:FRAMES].copy()).permute(3, 0, 1, 2)[None] / 255
    torch.testing.assert_close(first.condition, pixels)
    assert (first.strength, first.start, first.end) == (0.5, 0.25, 0.75)
    assert first.weights == (1.0, 0.5, 0.0, 0.0)
    assert (second.strength, second.start, second.end, second.weights) == (1.0, 0.0, 1.0, ())
    assert (canny(film()[0], 200, 900) != canny(film()[0], 900, 900)).any()
    drawn = np.stack([canny(frame, 200, 900) for frame in film()[:FRAMES]])
    assert torch.equal(second.condition[0].permute(1, 2, 3, 0) * 255, torch.tensor(drawn).float())


def test_sparse_controls_read_images_or_latents_at_their_frames(folder, model):
    common = {"strength": 0.5, "start": 0.25, "end": 0.75}
    given = [{"path": "s", "images": {1: "film/5.png"}, **common},
             {"path": "l", "images": {0: "film/6.png", 3: "film/7.png"}},
             {"path": "s", "images": {2: "film/5.png"}, "normalize": True}]  # fmt: skip
    images, read, normal = applied(folder, model, sparse_controls=given).controls
    assert images.condition.shape == (1, 4, FRAMES, HEIGHT, WIDTH)
    pixels = torch.from_numpy(film()[5].copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(images.condition[0, :3, 1], pixels)
    assert [float(images.condition[0, 3, i].mean()) for i in range(FRAMES)] == [0, 1, 0, 0]
    assert images.condition[0, :, [0, 2, 3]].abs().max() == 0
    assert (images.strength, images.start, images.end) == (0.5, 0.25, 0.75)
    torch.testing.assert_close(read.condition[:, :-1, :1], latents(model, film()[6:7]))
    torch.testing.assert_close(read.condition[:, :-1, 3:], latents(model, film()[7:8]))
    assert [float(read.condition[0, -1, i].mean()) for i in range(FRAMES)] == [1, 0, 0, 1]
    greys = normal.condition[0, :3, 2]
    assert torch.equal(greys[0], greys[1])
    assert (float(greys.min()), float(greys.max())) == (0, 1)


def test_ip_adapters_embed_their_images_and_act_by_frame_and_place(folder, model):
    adapter = {"path": "i", "encoder": "encoder", "images": {0: "film/5.png", 3: "film/6.png"}}
    plain = applied(folder, model, ip_adapters=[adapter])
    (seen,), (unseen,) = (
        one.image_embeddings for one in (plain.conditions, plain.negative_conditions)
    )
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "encoder")
    with torch.no_grad():
        ends = [encoder(clip_pixels(film()[number], 16)[None]).image_embeds[0] for number in (5, 6)]
    for frame in range(FRAMES):
        expected = torch.lerp(*ends, frame / 3)
        torch.testing.assert_close(seen[frame, 0], expected, atol=1e-5, rtol=1e-4)
    assert unseen.shape == seen.shape == (FRAMES, 1, 6)
    assert unseen.abs().max() == 0
    assert plain.conditions.image_masks == plain.negative_conditions.image_masks == ()
    weighed = {**adapter, "weights": {0: 1.0, 2: 0.0}, "mask": "corner.png"}
    both = applied(folder, model, ip_adapters=[weighed, adapter])
    for conditions in (both.conditions, both.negative_conditions):
        masks, ones = conditions.image_masks
        for frame, weight in enumerate((1.0, 0.5, 0.0, 0.0)):
            torch.testing.assert_close(masks[frame], weight * shrunk(model, 8, 12))
        assert torch.equal(ones, torch.ones(FRAMES, 1, 1))


def test_a_pia_job_has_its_mask_before_the_images_latents(folder, model):
    made = applied(folder, model, animate={"image": "film/5.png", "motion": "medium"})
    still = latents(model, film()[5:6])
    for conditions in (made.conditions, made.negative_conditions):
        image = conditions.image_latents.float()
        assert image.shape == (1, 1 + still.shape[1], FRAMES, *still.shape[3:])
        for frame, likeness in enumerate((1.0, 0.8, 0.8, 0.8)):
            assert torch.allclose(image[:, 0, frame], torch.tensor(likeness))
            torch.testing.assert_close(image[:, 1:, frame], still[:, :, 0])


def test_the_motions_strength_and_positions_hold_for_both_prompts(folder, model):
    made = applied(
        folder, model, motion_positions={"stretch": 0.5, "offset": 2},
        motion_strength={"scale": 0.5, "blocks": {"mid_block": 0.25}, "frames": {0: 1, 2: 0}},
    )  # fmt: skip
    for conditions in (made.conditions, made.negative_conditions):
        assert conditions.motion_strength == 0.5
        assert conditions.motion_blocks == {"mid_block": 0.25}
        assert conditions.motion_frames.tolist() == [1, 0.5, 0, 0]
        assert conditions.motion_positions == Positions(stretch=0.5, offset=2)


def test_regions_have_texts_and_masks_of_their_own_and_the_conditions_of_the_clip(folder, model):
    given = [{"prompt": "a blue star", "mask": "corner.png"},
             {"prompt": {0: "a ring", 2: "a dot"}, "mask": "film"}]  # fmt: skip
    made = applied(folder, model, regions=given, motion_strength={"scale": 0.5})
    first, second = made.regions
    assert first.text.shape == (1, 32, 128)
    assert second.text.shape == (1, FRAMES, 32, 128)
    for frame in range(FRAMES):
        assert torch.equal(first.mask[0, 0, frame], shrunk(model, 8, 12))
    assert {region.conditions.motion_strength for region in made.regions} == {0.5}


def test_the_share_of_the_steps_is_the_starts_or_the_key_frames(folder):
    start, keyframes = {"images": "film", "strength": 0.5}, {"images": {0: "film/0.png"}}

    def shares(**settings: object) -> list[float]:
        job = job_of(folder, **settings)
        return [share for kind in KINDS if (share := kind.strength(job)) is not None]

    assert shares() == []
    assert shares(start=start) == [0.5]
    assert shares(keyframes={**keyframes, "strength": 0.25}) == [0.25]
    assert shares(start=start, keyframes=keyframes) == [0.5, 1.0]


def test_every_model_and_image_of_a_job_is_listed(folder):
    net = {"images": "film"}
    job = job_of(
        folder, controlnets=[{"path": "c", **net}], t2i_adapters=[{"path": "t", **net}],
        sparse_controls=[{"path": "s", "images": {1: "film/5.png"}}],
        ip_adapters=[{"path": "i", "encoder": "encoder", "images": {0: "film/5.png"},
                      "mask": "corner.png"}],
        start={"images": "film", "mask": "corner.png"}, keyframes={"images": {0: "film/0.png"}},
        regions=[{"prompt": "a", "mask": "corner.png"}],
    )  # fmt: skip
    roles = [(one.role, Path(one.source).name) for kind in KINDS for one in kind.weights(job)]
    assert roles == [("controlnet", "c"), ("t2i_adapter", "t"), ("sparse_control", "s"),
                     ("ip_adapter", "i"), ("image_encoder", "encoder")]  # fmt: skip
    images = {key: one for kind in KINDS for key, one in kind.images(job)}
    assert list(images) == [
        "controlnets[0].images", "t2i_adapters[0].images", "sparse_controls[0].images[1]",
        "ip_adapters[0].images[0]", "ip_adapters[0].mask", "start.images", "start.mask",
        "keyframes.images[0]", "regions[0].mask",
    ]  # fmt: skip
    assert images["start.images"].numbers == (0, 1, 2, 3)
    assert {one.size for one in images.values()} == {(WIDTH, HEIGHT)}
    assert images["ip_adapters[0].images[0]"].fit == "stretch"

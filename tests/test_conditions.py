"""Each kind of condition: what it checks and loads, and the values that it gives to a sampling run.

The clip is wider than high, so that swapped sides are seen.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import HAS_SPEED, TINY
from control_things import write_things
from safetensors.torch import save_file
from small_model import write_sdxl
from torch import Tensor, nn
from transformers.models.clip import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff_core import inflate, load_motion_module
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.single_file import family_model
from animatediff_core.conditions import KINDS, LoadedModel
from animatediff_core.conditions.controlnets import CONTROLNETS
from animatediff_core.conditions.ip_adapters import IP_ADAPTERS
from animatediff_core.conditions.loras import LORAS
from animatediff_core.conditions.sparse_controls import SPARSE_CONTROLS
from animatediff_core.conditions.t2i_adapters import T2I_ADAPTERS
from animatediff_core.diffusion.conditioning import Conditioning
from animatediff_core.diffusion.image_embeddings import clip_pixels
from animatediff_core.diffusion.known_region import encode_images
from animatediff_core.errors import AnimateDiffError, CheckpointError
from animatediff_core.jobs import Job, parse_prompts
from animatediff_core.media.edges import canny
from animatediff_core.media.image import write_image
from animatediff_core.motion import Conditions, MotionConfig, Positions
from animatediff_core.sampling.placement import PlacedModel, Placement

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
    (folder / "corners").mkdir()
    for number in range(FRAMES):  # white in the first frame, black after it
        write_image(mask if number == 0 else mask * 0, folder / "corners" / f"{number}.png")
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
             {"prompt": {0: "a ring", 2: "a dot"}, "mask": "corners"}]  # fmt: skip
    made = applied(folder, model, regions=given, motion_strength={"scale": 0.5})
    first, second = made.regions
    assert first.text.shape == (1, 32, 128)
    assert second.text.shape == (1, FRAMES, 32, 128)
    for frame in range(FRAMES):
        assert torch.equal(first.mask[0, 0, frame], shrunk(model, 8, 12))
        assert torch.equal(second.mask[0, 0, frame], shrunk(model, 8, 12) * (frame == 0))
    assert {region.conditions.motion_strength for region in made.regions} == {0.5}


def test_a_region_takes_over_the_conditions_of_all_other_kinds(folder, model):
    adapter = {"path": "i", "encoder": "encoder", "images": {0: "film/5.png"}}
    (region,) = applied(
        folder, model, regions=[{"prompt": "a ring", "mask": "corner.png"}],
        ip_adapters=[adapter], loras=[{"path": "a", "weights": {0: 0.5}}],
        animate={"image": "film/5.png"}, motion_positions={"stretch": 0.5},
    ).regions  # fmt: skip
    assert region.conditions.image_embeddings[0].abs().max() > 0  # the prompt's, not the negative's
    assert region.conditions.lora_weights[0].tolist() == [0.5] * FRAMES
    assert region.conditions.image_latents is not None
    assert region.conditions.motion_positions.stretch == 0.5


@torch.no_grad()
def test_a_region_of_sdxl_has_the_pooled_text_of_its_own_prompt(folder, tmp_path):
    write_sdxl(tmp_path)
    base = load_base(str(tmp_path))
    model = LoadedModel(base, SimpleNamespace(unet=base.unet), offline=True)
    clip = Conditions(pooled_text=torch.full((1, 24), 9.0), size_ids=torch.ones(1, 6))
    start = Conditioning(
        text=torch.zeros(1, 77, 40), negative_text=torch.zeros(1, 77, 40), conditions=clip
    )
    job = job_of(folder, regions=[{"prompt": "a blue star", "mask": "corner.png"}])
    (region,) = KINDS[-1].apply(start, job, model, (WIDTH, HEIGHT)).regions
    tokenizer, encoder = base.tokenizers[1], base.text_encoders[1]
    ids = tokenizer("a blue star", padding="max_length", max_length=77, return_tensors="pt")
    end = encoder(ids.input_ids).last_hidden_state[:, 4]  # after the begin and three words
    torch.testing.assert_close(region.conditions.pooled_text, encoder.text_projection(end))
    assert region.conditions.size_ids is clip.size_ids


def test_a_divided_clip_has_texts_on_demand_and_its_inputs_on_the_cpu(folder, model):
    elsewhere = LoadedModel(
        model.base,
        SimpleNamespace(unet=SimpleNamespace(device=torch.device("meta"), dtype=torch.float32)),
        offline=True,
        shared={("controlnet", str(folder / "c")): "a ControlNet"},
    )
    start = Conditioning(text=torch.zeros(1, 5, 128), negative_text=torch.zeros(1, 5, 128))
    regions = [{"prompt": {0: "a ring", 2: "a dot"}, "mask": "corner.png"}]

    def run(**settings: object) -> Conditioning:
        net = [{"path": "c", "images": "film"}]
        job = job_of(folder, controlnets=net, regions=regions, **settings)
        made = CONTROLNETS.apply(start, job, elsewhere, (WIDTH, HEIGHT))
        return KINDS[-1].apply(made, job, model, (WIDTH, HEIGHT))

    whole, divided = run(), run(window={"length": 2, "overlap": 1})
    assert whole.controls[0].condition.device.type == "meta"
    assert divided.controls[0].condition.device.type == "cpu"
    (text,) = (region.text for region in divided.regions)
    assert text(torch.tensor([2, 0])).shape == (1, 2, 32, 128)
    torch.testing.assert_close(text(torch.tensor([2, 0])), whole.regions[0].text[:, [2, 0]])


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
        regions=[{"prompt": "a", "mask": "corner.png"}], animate={"image": "film/0.png"},
        loras=[{"path": "merged"}, {"path": "a", "weights": {0: 1.0}}],
    )  # fmt: skip
    roles = [(one.role, Path(one.source).name) for kind in KINDS for one in kind.weights(job)]
    assert roles == [("controlnet", "c"), ("t2i_adapter", "t"), ("sparse_control", "s"),
                     ("lora", "a"), ("ip_adapter", "i"),
                     ("image_encoder", "encoder")]  # fmt: skip
    images = {key: one for kind in KINDS for key, one in kind.images(job)}
    assert list(images) == [
        "controlnets[0].images", "t2i_adapters[0].images", "sparse_controls[0].images[1]",
        "ip_adapters[0].images[0]", "ip_adapters[0].mask", "start.images", "start.mask",
        "keyframes.images[0]", "animate.image", "regions[0].mask",
    ]  # fmt: skip
    assert images["start.images"].numbers == (0, 1, 2, 3)
    assert {one.size for one in images.values()} == {(WIDTH, HEIGHT)}
    assert images["ip_adapters[0].images[0]"].fit == "stretch"


def test_loras_by_frame_have_their_scale_times_their_weights_for_both_prompts(folder, model):
    made = applied(
        folder, model,
        loras=[{"path": "b", "scale": 0.5, "weights": {0: 0.0, 2: 1.0}}, {"path": "merged"},
               {"path": "a", "scale": -2, "weights": {0: 1.0}}],
    )  # fmt: skip
    for conditions in (made.conditions, made.negative_conditions):
        first, second = conditions.lora_weights  # the merged one is not among them
        assert first.tolist() == [0.0, 0.25, 0.5, 0.5]
        assert second.tolist() == [-2.0] * FRAMES
    assert applied(folder, model).conditions.lora_weights == ()


# --- loading


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """Small models of every kind for the bundled base, and LoRAs for it."""
    folder = tmp_path_factory.mktemp("things")
    write_things(folder)
    unet = load_base("bundled:tiny").unet
    torch.manual_seed(1)
    for name, layer in (("a", "to_q"), ("b", "to_k")):
        out, inner = unet.get_submodule(f"{_BLOCK}.{layer}").weight.shape
        key = f"lora_unet_{_BLOCK.replace('.', '_')}_{layer}"
        tensors = {f"{key}.lora_up.weight": torch.randn(out, 2),
                   f"{key}.lora_down.weight": torch.randn(2, inner)}  # fmt: skip
        save_file(tensors, folder / f"{name}.safetensors")
    norm = "lora_unet_down_blocks_0_resnets_0_norm1.diff"
    save_file({norm: torch.ones(48)}, folder / "norm.safetensors")
    # as SD1.5's, which read text of 768
    save_file({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down"
               ".weight": torch.ones(1, 768),
               "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up"
               ".weight": torch.ones(320, 1)}, folder / "sd15-lora.safetensors")  # fmt: skip
    save_file({"image_proj.proj.weight": torch.ones(4 * 768, 4),
               "image_proj.proj.bias": torch.ones(4 * 768),
               "image_proj.norm.weight": torch.ones(768), "image_proj.norm.bias": torch.ones(768),
               "ip_adapter.1.to_k_ip.weight": torch.ones(320, 768),
               "ip_adapter.1.to_v_ip.weight": torch.ones(320, 768)},
              folder / "sd15-ip.safetensors")  # fmt: skip
    return folder


_BLOCK = "mid_block.attentions.0.transformer_blocks.0.attn1"


def loaded() -> LoadedModel:
    """A model of its own, for tests that change its UNet."""
    base = load_base("bundled:tiny")
    base.unet.requires_grad_(False)
    motion = load_motion_module(TINY / "motion_module.safetensors").requires_grad_(False)
    return LoadedModel(base, inflate(base.unet, motion), offline=True)


def placed() -> PlacedModel:
    """As `loaded`, with its fast forwards where there are any."""
    model = loaded()
    model.animated.deflate()
    placement = Placement(torch.device("cpu"), torch.float32)
    return PlacedModel(model.base, model.animated.motion, placement, offline=True)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_a_model_is_loaded_once_by_role_and_source(model):
    calls: list[str] = []

    def load(name: str) -> str:
        calls.append(name)
        return name

    mine = replace(model, shared={})
    first = mine.once("controlnet", "x", lambda: load("a"))
    assert first is mine.once("controlnet", "x", lambda: load("b"))
    assert mine.once("t2i_adapter", "x", lambda: load("c")) == "c"
    assert mine.once("controlnet", "y", lambda: load("d")) == "d"
    assert calls == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CONTROLNETS, {"controlnets": [{"path": "controlnet", "images": "film"}]}),
        (SPARSE_CONTROLS, {"sparse_controls": [{"path": "scribble.safetensors",
                                                "images": {0: "film/0.png"}}]}),
        (T2I_ADAPTERS, {"t2i_adapters": [{"path": "t2i", "images": "film"}]}),
    ],
    ids=["controlnets", "sparse_controls", "t2i_adapters"],
)  # fmt: skip
def test_a_control_model_is_loaded_once_in_the_unets_dtype(things, kind, settings):
    model = loaded()
    model.base.unet.to(torch.bfloat16)
    job = job_of(things, **settings, width=64, height=64)
    assert kind.load(job, model) is None  # it is beside the UNet: nothing to detach
    start = Conditioning(text=torch.zeros(1, 5, 128), negative_text=torch.zeros(1, 5, 128))
    runs = [kind.apply(start, job, model, (64, 64)) for _ in range(2)]
    (first,), (second,) = (run.controls for run in runs)
    assert first.model is second.model is next(iter(model.shared.values()))
    assert len(model.shared) == 1
    assert next(first.model.parameters()).dtype == torch.bfloat16


def test_ip_adapters_are_attached_with_their_scales_and_detached(things):
    model = loaded()
    before = dict(model.base.unet.attn_processors)
    one = {"path": "ip.safetensors", "encoder": "encoder", "images": {0: "film/0.png"}}
    detach = IP_ADAPTERS.load(
        job_of(things, ip_adapters=[{**one, "scale": 0.25}, {**one, "scale": 0.5}]), model
    )
    scales = [p.scale for p in model.base.unet.attn_processors.values() if hasattr(p, "scale")]
    assert len(scales) == 7
    assert all(scale == [0.25, 0.5] for scale in scales)
    detach()
    assert model.base.unet.attn_processors == before
    assert IP_ADAPTERS.load(job_of(things), model) is None


@torch.no_grad()
def test_loras_by_frame_act_on_the_plain_model_until_they_are_detached(things):
    model = placed()
    kernels, count = model.kernels, hooks(model.base.unet)
    assert kernels == ("fused" if HAS_SPEED else "plain")
    job = job_of(things, loras=[{"path": "a.safetensors", "scale": 0.5, "weights": {0: 0, 2: 1}},
                                {"path": "b.safetensors", "weights": {0: 1, 1: 0}}])  # fmt: skip
    start = Conditioning(text=torch.zeros(1, 32, 128), negative_text=torch.zeros(1, 32, 128))
    conditions = LORAS.apply(start, job, model, (WIDTH, HEIGHT)).conditions
    conditions = replace(conditions, motion_strength=0.0)  # frames alone
    sample = torch.randn(1, 4, FRAMES, 6, 10, generator=torch.Generator().manual_seed(2))
    text = torch.randn(1, 32, 128, generator=torch.Generator().manual_seed(3))

    detach = LORAS.load(job, model)
    assert model.kernels == "plain"
    led = model.animated(sample, 500, text, conditions)
    off = tuple(weights * 0 for weights in conditions.lora_weights)
    plain = model.animated(sample, 500, text, replace(conditions, lora_weights=off))
    change = (led - plain).abs().amax(dim=(0, 1, 3, 4))
    assert (change > 1e-4).tolist() == [True] * FRAMES  # b, a, a, a
    swapped = replace(conditions, lora_weights=conditions.lora_weights[::-1])
    assert not torch.allclose(model.animated(sample, 500, text, swapped), led, atol=1e-4)
    detach()
    assert (model.kernels, hooks(model.base.unet)) == (kernels, count)
    assert LORAS.load(job_of(things, loras=["a.safetensors"]), model) is None  # it is merged


def test_a_lora_that_cannot_be_attached_leaves_the_model_as_it_was(things):
    model = placed()
    before = model.kernels, hooks(model.base.unet)
    weights = {"weights": {0: 1.0}}
    job = job_of(things, loras=[{"path": "a.safetensors", **weights},
                                {"path": "norm.safetensors", **weights}])  # fmt: skip
    with pytest.raises(CheckpointError, match=r"norm\.safetensors.* changes norms"):
        LORAS.load(job, model)
    assert (model.kernels, hooks(model.base.unet)) == before


# --- checks

CONFIG = MotionConfig(
    block_out_channels=(48, 96, 160), layers_per_block=1, norm_num_groups=16, version="v2",
    mid_block=True,
)  # fmt: skip


def planned(family: str = "UNet 48-96-160", **config: object) -> SimpleNamespace:
    """What planning knows of a model that is not loaded."""
    with torch.device("meta"):
        own = family == "UNet 48-96-160"
        base = load_base("bundled:tiny") if own else family_model(family, "m")
    return SimpleNamespace(
        base=base, vae_scale_factor=4, motion_path=Path("folder") / "module.safetensors",
        motion_config=replace(CONFIG, **config),
    )  # fmt: skip


def problems(
    folder: Path, settings: Mapping[str, object], model: SimpleNamespace
) -> dict[str, str]:
    """The message of each failed check by the key of its setting."""
    job, found = job_of(folder, **settings), {}
    for kind in KINDS:
        for key, check in kind.checks(job, model, True):
            try:
                check()
            except AnimateDiffError as error:
                found[key] = str(error)
    return found


NET = {"path": "controlnet", "images": "film"}
SCRIBBLE = {"path": "scribble.safetensors", "images": {0: "film/0.png"}}
T2I = {"path": "t2i", "images": "film"}
IP = {"path": "ip.safetensors", "encoder": "encoder", "images": {0: "film/0.png"}}
FIRST = {"images": {0: "film/0.png"}}


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({}, {}),
        ({"controlnets": [NET], "sparse_controls": [SCRIBBLE], "ip_adapters": [IP]}, {}),
        ({"t2i_adapters": [T2I], "width": 36, "height": 64}, {}),
        ({"t2i_adapters": [T2I], "width": 32, "height": 64, "upscale": 1.125}, {}),
        ({"sparse_controls": [SCRIBBLE], "frames": 32}, {}),  # the most that it knows
        ({"sparse_controls": [SCRIBBLE], "frames": 33, "window": {"length": 32}}, {}),
        ({"animate": "film/0.png"}, {"conv_in_channels": 9}),
        ({"keyframes": FIRST, "free_init": True}, {}),  # it begins from noise alone
        ({"motion_strength": {"blocks": {"down_blocks.2": 1, "mid_block": 1, "up_blocks.0": 1}}},
         {}),
        ({"regions": [{"prompt": {0: "a", 2: "b"}, "mask": "right.png"}]}, {}),
        ({"loras": [{"path": "a.safetensors", "weights": {0: 1}}]}, {}),
        ({"loras": ["norm.safetensors"]}, {}),  # the model's own checks see to merged ones
    ],
)  # fmt: skip
def test_what_works_passes_every_check(things, settings, config):
    assert problems(things, settings, planned(**config)) == {}


@pytest.mark.parametrize(
    ("settings", "config", "key", "message"),
    [
        ({"controlnets": [NET, {**NET, "path": "scribble.safetensors"}]}, {},
         "controlnets[1].path", "is a SparseCtrl, which goes into sparse_controls"),
        ({"controlnets": [NET]}, {"family": "SDXL"},
         "controlnets[0].path", "is a ControlNet for UNet 48-96-160"),
        ({"sparse_controls": [SCRIBBLE, {**SCRIBBLE, "path": "controlnet"}]}, {},
         "sparse_controls[1].path", "is a ControlNet, which goes into controlnets"),
        ({"sparse_controls": [SCRIBBLE], "frames": 33}, {}, "sparse_controls[0].path",
         "knows 32 frames at most, but 33 are denoised together; set window.length (-C) to 32"),
        ({"t2i_adapters": [{**T2I, "path": "controlnet"}]}, {},
         "t2i_adapters[0].path", "is a ControlNet, which goes into controlnets"),
        ({"t2i_adapters": [T2I], "width": 64, "height": 42}, {}, "t2i_adapters[0].path",
         "multiples of 4, but the clip is 64 x 42"),
        ({"t2i_adapters": [T2I], "width": 42, "height": 64}, {}, "t2i_adapters[0].path",
         "multiples of 4, but the clip is 42 x 64"),
        ({"t2i_adapters": [T2I], "width": 40, "height": 64, "upscale": 1.25}, {},
         "t2i_adapters[0].path", "multiples of 4, but the clip is 50 x 80"),
        ({"ip_adapters": [IP, {**IP, "path": "controlnet"}]}, {}, "ip_adapters[1].path",
         "is a ControlNet, which goes into controlnets"),
        ({"ip_adapters": [{**IP, "path": "sd15-ip.safetensors"}]}, {"family": "SDXL"},
         "ip_adapters[0].path", "is an IP-Adapter for SD1.5 but m is SDXL"),
        ({"ip_adapters": [{**IP, "encoder": "nowhere"}]}, {}, "ip_adapters[0].encoder", "nowhere"),
        ({"ip_adapters": [{**IP, "encoder": "wide-encoder"}]}, {}, "ip_adapters[0].path",
         "reads 16 numbers for an image but"),
        ({"loras": ["a.safetensors", {"path": "controlnet/diffusion_pytorch_model.safetensors",
                                      "weights": {0: 1}}]}, {},
         "loras[1].path", "is a ControlNet, which goes into controlnets"),
        ({"loras": [{"path": "norm.safetensors", "weights": {0: 1}}]}, {}, "loras[0].path",
         "changes norms, which cannot be scaled by frame; leave weights out"),
        ({"loras": [{"path": "sd15-lora.safetensors", "weights": {0: 1}}]}, {"family": "SDXL"},
         "loras[0].path", "is a LoRA for SD1.5 but m is SDXL"),
        ({"animate": "film/0.png"}, {}, "animate",
         "animate needs a PIA motion module, but module.safetensors is v2"),
        ({}, {"conv_in_channels": 9}, "animate", "module.safetensors is a PIA module"),
        ({"start": {"images": "film"}, "free_init": True}, {}, "free_init",
         "free_init begins from noise alone"),
        ({"keyframes": {**FIRST, "strength": 0.9}, "free_init": True}, {}, "free_init",
         "nor with keyframes whose strength is below 1"),
        ({"motion_strength": {"blocks": {"down_blocks.3": 1}}}, {}, "motion_strength.blocks",
         "names down_blocks.3, but the module's are down_blocks.0, down_blocks.1, down_blocks.2, "
         "mid_block, up_blocks.0, up_blocks.1, up_blocks.2"),
        ({"motion_strength": {"blocks": {"mid_block": 1}}}, {"mid_block": False, "version": "v3"},
         "motion_strength.blocks", "names mid_block"),
        ({"regions": [{"prompt": "a", "mask": "right.png"},
                      {"prompt": {2: "b AND c"}, "mask": "right.png"}]}, {},
         "regions[1].prompt[2]", "the prompt holds 'AND'"),
    ],
)  # fmt: skip
def test_what_cannot_work_fails_one_check_which_names_its_setting(
    things, settings, config, key, message
):
    found = problems(things, settings, planned(**config))
    assert list(found) == [key]
    assert message in found[key]

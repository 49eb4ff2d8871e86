"""Prompts: weights, chunks of any number, clip skip, SDXL's two encoders, travel."""

from types import SimpleNamespace

import pytest
import torch
from conftest import new_unet
from diffusers.models import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from animatediff_core.adapters.textual_inversion import add_placeholder_token, apply_embedding
from animatediff_core.checkpoints.base_model import BaseModel
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.diffusion.chunks import chunks_of
from animatediff_core.diffusion.interpolation import interpolate, interpolate_number, slerp
from animatediff_core.diffusion.prompt_syntax import check_prompt, parse_prompt
from animatediff_core.diffusion.size_conditions import size_conditions
from animatediff_core.diffusion.text import embed_pair, embed_prompt
from animatediff_core.errors import AnimateDiffError, CheckpointError, PromptFileError
from animatediff_core.jobs import Job
from animatediff_core.motion.conditions import Conditions, added_conditions
from animatediff_core.planning.jobs import plan
from animatediff_core.runs.generate import generate

CIRCLE = "a red circle moving right on a blue background"
LONG = "a small red circle on a blue background with " * 6  # 54 words


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("bundled:tiny")


def by_transformers(base, text: str):
    """The last hidden states, 1 n d, of a text that fits into one chunk."""
    ids = base.tokenizers[0](
        text, padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return base.text_encoders[0](ids).last_hidden_state


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle", [[("a red circle", 1)]]),
        ("a (red:1.5) circle", [[("a ", 1), ("red", 1.5), (" circle", 1)]]),
        ("(a) [b]", [[("a", 1.1), (" ", 1), ("b", 1 / 1.1)]]),
        ("((a b:2):.5) c", [[("a b c", 1)]]),
        ("((a)(b:3))", [[("a", 1.21), ("b", 3.3)]]),
        ("(a: 0.5 )", [[("a", 0.5)]]),
        (r"\(a\) \[b\] \\c \d", [[(r"(a) [b] \c \d", 1)]]),
        (r"(a \(b\):2)", [[("a (b)", 2)]]),
        ("a: b::c, d:1.2", [[("a: b::c, d:1.2", 1)]]),
        ("a) b] (c", [[("a) b] ", 1), ("c", 1.1)]]),
        ("a BREAK b, break BREAKING", [[("a", 1)], [("b, break BREAKING", 1)]]),
        ("(a BREAK b:2) c", [[("a", 2)], [("b", 2), (" c", 1)]]),
        ("", [[]]),
    ],
)
def test_brackets_weigh_as_the_community_writes_them(prompt, expected):
    parts = [[(piece.text, piece.weight) for piece in part] for part in parse_prompt(prompt)]
    assert parts == [[(text, pytest.approx(weight)) for text, weight in part] for part in expected]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a cat <lora:style:0.8>", "'<lora:style:0.8>'.*under loras"),
        ("a [red:blue:0.5] circle", "change by frame"),
        ("a [red::8] circle", "change by frame"),
        ("a [red|blue] circle", "change by frame"),
    ],
)
def test_what_only_other_tools_understand_is_refused_by_name(prompt, message):
    with pytest.raises(PromptFileError, match=message):
        check_prompt(prompt)


def test_ordinary_text_is_not_refused():
    for prompt in (CIRCLE, r"\[a|b\]", "a <look> circle", "ratio 16:9, [dim: light]", "[a:b]"):
        check_prompt(prompt)


def test_a_plain_prompt_is_what_the_text_encoder_says_bit_for_bit(base):
    prompt, negative = embed_pair(base, {0: CIRCLE}, {0: ""}, 4)
    assert torch.equal(prompt.tokens, by_transformers(base, CIRCLE))
    assert torch.equal(negative.tokens, by_transformers(base, ""))
    assert torch.equal(embed_prompt(base, {0: CIRCLE}, 4).tokens, prompt.tokens)
    assert torch.equal(embed_prompt(base, {0: f"({CIRCLE}:1.0)"}, 4).tokens, prompt.tokens)


def test_long_prompts_are_read_in_chunks_and_both_sides_have_as_many(base):
    prompt, negative = embed_pair(base, {0: LONG}, {0: "blurred", 2: CIRCLE}, 4)
    assert prompt.tokens.shape == (1, 64, 128)
    assert negative.tokens.shape == (1, 4, 64, 128)
    words = LONG.split()
    for number, start in enumerate((0, 30)):
        chunk = prompt.tokens[:, 32 * number : 32 * (number + 1)]
        expected = by_transformers(base, " ".join(words[start : start + 30]))
        assert torch.allclose(chunk, expected, atol=1e-5)
    assert torch.allclose(negative.tokens[0, :, 32:], by_transformers(base, ""), atol=1e-5)
    assert torch.allclose(negative.tokens[0, 0, :32], by_transformers(base, "blurred"), atol=1e-5)


def test_break_begins_a_chunk(base):
    both = embed_prompt(base, {0: f"{CIRCLE} BREAK BREAK a green star BREAK"}, 4).tokens
    assert both.shape == (1, 64, 128)
    assert torch.allclose(both[:, 32:], by_transformers(base, "a green star"), atol=1e-5)


def test_words_stay_whole_at_a_chunks_end(base, tmp_path):
    tokenizer = base.tokenizers[0]
    for count in range(25, 31):  # "zebra" is several tokens of the bundled model
        chunks = chunks_of(tokenizer, "red " * count + "zebra")
        (zebra,) = chunks_of(tokenizer, "zebra")
        assert 1 < len(zebra.tokens) <= 7
        assert chunks[-1].tokens[-len(zebra.tokens) :] == zebra.tokens
        assert sum(len(chunk.tokens) for chunk in chunks) == count + len(zebra.tokens)
    chunks = chunks_of(tokenizer, "x" * 70)  # longer than a chunk: divided after all
    assert [len(chunk.tokens) for chunk in chunks] == [30, 30, 10]


def test_a_learned_words_vectors_stay_together_and_take_weights(tmp_path):
    base = load_base("bundled:tiny")
    save_file({"<look>": torch.randn(4, 128)}, tmp_path / "look.safetensors")
    apply_embedding(base, tmp_path / "look.safetensors")
    tokenizer = base.tokenizers[0]
    look = tuple(tokenizer.convert_tokens_to_ids(["<look>", "<look>_1", "<look>_2", "<look>_3"]))
    for count in range(24, 31):
        chunks = chunks_of(tokenizer, "red " * count + "(<LOOK>, small:1.3) star")
        (place,) = [(c, i) for c in chunks for i in range(30) if c.tokens[i : i + 4] == look]
        assert place[0].weights[place[1] : place[1] + 4] == (1.3,) * 4
        assert (chunks[0].tokens[-1:] == look[-1:]) == (count == 26)
        assert [w for c in chunks for w in c.weights].count(1.3) == 6


def test_a_weight_scales_its_tokens_and_keeps_the_chunks_mean_size(base):
    plain = embed_prompt(base, {0: CIRCLE}, 4).tokens[0]
    heavy = embed_prompt(base, {0: CIRCLE.replace("red", "(red:1.5)")}, 4).tokens[0]
    assert torch.allclose(heavy.abs().mean(), plain.abs().mean())
    factors = (heavy / plain).median(dim=1).values  # n; "red" is the third token
    others = torch.cat([factors[:2], factors[3:]])
    assert torch.allclose(factors[2] / others, torch.tensor(1.5), atol=1e-4)
    assert 0.9 < float(others[0]) < 1


def test_clip_skip_counts_layers_from_the_end_and_keeps_the_final_norm(base):
    encoder = base.text_encoders[0]
    kept = []
    handle = encoder.encoder.layers[-2].register_forward_hook(lambda *given: kept.append(given[2]))
    by_transformers(base, CIRCLE)
    handle.remove()
    first = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
    prompt, _ = embed_pair(base, {0: CIRCLE}, {0: ""}, 4, clip_skip=2)
    assert torch.equal(prompt.tokens, encoder.final_layer_norm(first))
    assert not torch.allclose(prompt.tokens, by_transformers(base, CIRCLE), atol=0.1)
    with pytest.raises(CheckpointError, match="clip_skip 3: .* knows 1 to 2"):
        embed_pair(base, {0: CIRCLE}, {0: ""}, 4, clip_skip=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clip_skip": 3},
            "ball: clip_skip: must be 1 to 2, as many layers as the text encoder of bundled",
        ),
        ({"negative_prompt": {0: "", 4: "[a|b]"}}, "ball: negative_prompt.4.: .*by frame"),
    ],
)
def test_text_that_cannot_work_is_refused_before_anything_is_loaded(changes, message):
    job = Job(**{"name": "ball", "prompt": {0: CIRCLE}, "seed": 1, "width": 64, "height": 64,
                 **changes})  # fmt: skip
    with pytest.raises(AnimateDiffError, match=message):
        plan([job])


def two_encoders(base) -> BaseModel:
    """SDXL's arrangement at a small size, with the end token of its old configurations."""
    torch.manual_seed(3)
    encoders = [
        kind(
            CLIPTextConfig(
                vocab_size=len(base.tokenizers[0]), hidden_size=16, intermediate_size=32,
                num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=32,
                projection_dim=24, eos_token_id=2,
            )
        ).eval()
        for kind, layers in ((CLIPTextModel, 3), (CLIPTextModelWithProjection, 4))
    ]  # fmt: skip
    return BaseModel(
        unet=new_unet(), vae=base.vae, text_encoders=encoders, scheduler_config={},
        tokenizers=[*base.tokenizers, *load_base("bundled:tiny").tokenizers], family="SDXL",
        source="small",
    )  # fmt: skip


def test_sdxl_reads_both_encoders_before_their_last_layer(base):
    pair = two_encoders(base)
    ids = base.tokenizers[0](
        CIRCLE, padding="max_length", max_length=32, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        outs = [encoder(ids, output_hidden_states=True) for encoder in pair.text_encoders]
    for skip in (1, 2):
        prompt, negative = embed_pair(pair, {0: CIRCLE}, {0: LONG}, 4, clip_skip=skip)
        expected = torch.cat([out.hidden_states[-1 - skip] for out in outs], dim=-1)
        assert torch.allclose(prompt.tokens[:, :32], expected, atol=1e-5)
        assert torch.allclose(prompt.pooled, outs[1].text_embeds, atol=1e-6)
        assert negative.tokens.shape == (1, 64, 32)
        assert negative.pooled.shape == (1, 24)
    with pytest.raises(CheckpointError, match="clip_skip 3: .* knows 1 to 2"):
        embed_pair(pair, {0: CIRCLE}, {0: ""}, 4, clip_skip=3)
    short, _ = embed_pair(pair, {0: CIRCLE}, {0: ""}, 4)
    for tokenizer, encoder in zip(pair.tokenizers, pair.text_encoders, strict=True):
        add_placeholder_token(tokenizer, encoder, "<look>", torch.randn(2, 16))
    assert torch.allclose(embed_prompt(pair, {0: CIRCLE}, 4).pooled, short.pooled, atol=1e-6)
    seen, other = (embed_prompt(pair, {0: f"a <look> {end}"}, 4).pooled for end in ("dog", "cat"))
    assert not torch.allclose(seen, other, atol=1e-3)  # pooled where the text ends, not at <look>


@pytest.mark.parametrize("way", ["linear", "slerp"])
def test_travel_begins_and_ends_at_the_prompts_own(base, way):
    keys = {2: "a blue star", 0: CIRCLE, 6: "a green ring"}
    prompt, negative = embed_pair(base, keys, {0: "", 6: "small"}, 8, travel=way)
    own = prompt.states
    assert prompt.tokens.shape == negative.tokens.shape == (1, 8, 32, 128)
    for frame, key in {0: 0, 2: 1, 6: 2, 7: 2}.items():
        assert torch.equal(prompt.tokens[0, frame], own[key])
    some = torch.tensor([5, 1, 7])
    assert torch.equal(prompt.at(some), prompt.tokens[:, some])
    near, far = ((prompt.tokens[0, 3] - own[key]).norm() for key in (1, 2))
    assert near < far
    middle = prompt.tokens[0, 4]
    mean = (own[1] + own[2]) / 2
    length = own[2].norm(dim=-1) + own[1].norm(dim=-1)
    if way == "linear":
        assert torch.allclose(middle, mean, atol=1e-5)
    else:
        close = torch.nn.functional.cosine_similarity(middle, mean, dim=-1)
        assert close.min() > 0.999
        assert torch.allclose(middle.norm(dim=-1), length / 2, rtol=0.02)
        assert (mean.norm(dim=-1) < 0.95 * length / 2).any()  # what slerp is for


def test_in_a_loop_the_last_prompt_travels_back_to_the_first(base):
    prompts = {1: CIRCLE, 5: "a blue star"}
    prompt, negative = embed_pair(base, prompts, {0: ""}, 8, travel_loop=True)
    first, last = prompt.states
    for frame, share in {1: 0, 3: 0.5, 5: 1, 6: 0.75, 7: 0.5, 0: 0.25}.items():
        expected = (1 - share) * first + share * last
        assert torch.allclose(prompt.tokens[0, frame], expected, atol=1e-6), frame
    held, _ = embed_pair(base, prompts, {0: ""}, 8)
    assert torch.equal(held.tokens[0, 7], last)
    assert torch.equal(negative.tokens, negative.states)


def test_sdxls_pooled_text_travels_too_and_follows_a_windows_frames(base):
    prompt, negative = embed_pair(two_encoders(base), {0: CIRCLE, 3: "a blue star"}, {0: ""}, 4)
    assert prompt.pooled.shape == (1, 4, 24)
    assert negative.pooled.shape == (1, 24)
    assert torch.equal(prompt.pooled[0, [0, 3]], prompt.pooled_states)
    conditions = size_conditions(prompt.pooled, 64, 64)
    added = added_conditions(conditions, 4)
    assert torch.equal(added["text_embeds"], prompt.pooled[0])
    assert added["time_ids"].shape == (4, 6)
    part = conditions.at(torch.tensor([3, 1]), 4)
    assert torch.equal(added_conditions(part, 2)["text_embeds"], prompt.pooled[0, [3, 1]])
    still = size_conditions(negative.pooled, 64, 64).at(torch.tensor([3, 1]), 4)
    assert torch.equal(added_conditions(still, 2)["text_embeds"], negative.pooled.repeat(2, 1))


def test_slerp_turns_evenly_and_has_a_way_where_there_is_no_arc():
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    share = torch.linspace(0, 1, 7).view(7, 1)
    path = slerp(start.expand(7, 2), end.expand(7, 2), share)
    assert torch.allclose(path.norm(dim=-1), torch.tensor(2.0))
    angles = torch.atan2(path[:, 1], path[:, 0])
    assert torch.allclose(angles.diff(), torch.tensor(torch.pi / 12), atol=1e-6)
    for other in (start, -start, 3 * start):
        halfway = slerp(start, other, torch.tensor([[0.5]]))
        assert torch.allclose(halfway, (start + other) / 2, atol=1e-6)


def test_travel_holds_before_the_first_and_after_the_last_prompt():
    embeddings = torch.eye(2).unsqueeze(1)  # k 1 d
    path = interpolate(embeddings, [2, 4], range(6), "linear")[:, 0]
    expected = [[1, 0], [1, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 1]]
    assert torch.equal(path, torch.tensor(expected))


def test_a_clips_colour_changes_at_the_frame_that_was_asked_for(tmp_path):
    red, blue = (f"a large {colour} circle on a white background" for colour in ("red", "blue"))
    job = Job(
        name="turn", prompt={0: red, 3: red, 4: blue}, seed=6, frames=8, width=64, height=64,
        base="bundled:tiny", steps=8, scheduler="k_dpmpp_2m", guidance_scale=5.0,
    )  # fmt: skip
    (result,) = generate([job], output_dir=tmp_path)
    frames = result.frames.astype(float)  # f h w 3
    vivid = frames.max(axis=-1) - frames.min(axis=-1) > 90
    redness = [float((f[..., 0] - f[..., 2])[v].mean()) for f, v in zip(frames, vivid, strict=True)]
    assert all(share > 60 for share in redness[:3]), redness
    assert all(share < -60 for share in redness[5:]), redness
    assert redness[3] > 0 > redness[4], redness


def test_sdxls_sizes_are_height_before_width():
    pooled = torch.randn(2, 24)
    conditions = size_conditions(pooled, 64, 32)
    assert conditions.size_ids.tolist() == [[64, 32, 0, 0, 64, 32]] * 2
    assert conditions.pooled_text is pooled
    assert size_conditions(None, 64, 32) == Conditions()
    unet = UNet2DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=8, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8, mid_block_type=None,
    )  # fmt: skip
    expected = StableDiffusionXLPipeline._get_add_time_ids(
        SimpleNamespace(unet=unet), (64, 32), (0, 0), (64, 32), torch.float32, 24
    )
    assert torch.equal(conditions.size_ids[:1], expected)


def test_what_clips_share_is_repeated_for_their_frames_clip_by_clip():
    conditions = Conditions(
        pooled_text=torch.tensor([[1.0], [2.0]]), size_ids=torch.arange(12.0).view(2, 6)
    )
    added = added_conditions(conditions, 3)
    assert added["text_embeds"].flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert added["time_ids"][:, 0].tolist() == [0, 0, 0, 6, 6, 6]


def test_long_travelling_prompts_of_sdxl_have_the_pooled_text_of_each_first_chunk(base):
    pair = two_encoders(base)
    texts = [f"{name} {LONG}" for name in ("a blue star and", "a green ring and", "dark")]
    prompt, negative = embed_pair(pair, {0: texts[0], 3: texts[1]}, {0: "", 3: texts[2]}, 4)
    assert prompt.tokens.shape == (1, 4, 64, 32)
    for travelling, alone in ((prompt, texts[:2]), (negative, ["", texts[2]])):
        for number, text in enumerate(alone):
            single = embed_prompt(pair, {0: text}, 4)
            torch.testing.assert_close(travelling.pooled_states[number], single.pooled[0])
            chunk = single.tokens[0]
            torch.testing.assert_close(travelling.states[number, : len(chunk)], chunk)
    assert (prompt.pooled_states[0] - prompt.pooled_states[1]).abs().max() > 1e-3


def test_numbers_are_interpolated_whatever_the_order_of_their_key_frames():
    values = {10: 3.0, 0: 1.0, 4: 5.0}
    expected = {-1: 1.0, 0: 1.0, 2: 3.0, 4: 5.0, 7: 4.0, 12: 3.0}
    assert {at: interpolate_number(values, at) for at in expected} == expected

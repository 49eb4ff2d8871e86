"""Textual inversion: words of one or several vectors, in every form of file."""

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from animatediff_core import apply_lora
from animatediff_core.adapters.identify import identify
from animatediff_core.adapters.textual_inversion import (
    apply_embedding,
    expand_placeholders,
    read_embedding,
)
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.write import write_base_folder
from animatediff_core.diffusion.chunks import chunks_of
from animatediff_core.diffusion.encoders import encode
from animatediff_core.errors import AnimateDiffError, CheckpointError
from animatediff_core.jobs import Adapter, parse_prompts
from animatediff_core.planning.jobs import plan
from animatediff_core.planning.models import ModelSpec, find_image_model
from animatediff_core.sampling.loading import load_image_model
from cli.options import _embedding

WIDTH = 128


def written(folder, form: str, vectors):
    path = folder / "look.safetensors"
    if form == "diffusers":
        save_file({"<look>": vectors}, path)
    elif form == "emb_params":
        save_file({"emb_params": vectors}, path)
    else:
        path = folder / "look.pt"
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "look"}
        torch.save(content, path)
    return path


@pytest.mark.parametrize(("form", "word"), [("diffusers", "<look>"), ("emb_params", "look"),
                                            ("web ui", "look")])  # fmt: skip
@pytest.mark.parametrize("count", [1, 3])
def test_a_word_puts_its_vectors_where_it_stands(tmp_path, form, word, count):
    vectors = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))
    path = written(tmp_path, form, vectors)
    report = identify(path)
    assert (report.kind, report.goes_in) == ("embedding", "embeddings")
    assert report.details == {"token": word, "vectors": str(count)}
    base = load_base("bundled:tiny")
    assert apply_embedding(base, path) == word
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    ids = tokenizer(expand_placeholders(tokenizer, [f"a {word} circle"])[0]).input_ids
    assert len(ids) == 4 + count
    learned = encoder.get_input_embeddings().weight[ids[2 : 2 + count]]
    assert torch.equal(learned, vectors)


def test_a_saved_model_still_knows_the_word(tmp_path):
    base = load_base("bundled:tiny")
    apply_embedding(base, written(tmp_path, "diffusers", torch.randn(2, WIDTH)))
    write_base_folder(base, tmp_path / "model")
    again = load_base(str(tmp_path / "model"))
    texts = ["a <look> circle", "a red circle"]
    assert torch.equal(encode(base, texts)[0], encode(again, texts)[0])
    assert torch.equal(encode(again, texts[1:])[0], encode(load_base("bundled:tiny"), texts[1:])[0])
    assert [len(c.tokens) for c in chunks_of(again.tokenizers[0], "<look> " * 16)] == [30, 2]


def test_what_cannot_be_taught_is_refused(tmp_path):
    base = load_base(str(TINY / "base"))
    with pytest.raises(CheckpointError, match="768 values a vector but this model's text encoder"):
        apply_embedding(base, written(tmp_path, "diffusers", torch.randn(2, 768)))
    path = written(tmp_path, "diffusers", torch.randn(1, WIDTH))
    apply_embedding(base, path)
    with pytest.raises(CheckpointError, match="'<look>' exists already"):
        apply_embedding(base, path)
    save_file({"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}, path)
    assert identify(path).family == "SDXL"
    with pytest.raises(CheckpointError, match="made for 2 text encoders"):
        apply_embedding(base, path)


def pickled(folder, content, name="look.pt"):
    torch.save(content, folder / name)
    return folder / name


def test_every_form_of_file_gives_word_and_vectors(tmp_path):
    vectors = torch.randn(2, WIDTH)
    half = vectors.half()
    forms = {
        "diffusers .bin": (pickled(tmp_path, {"<cat-toy>": vectors}, "a.bin"), "<cat-toy>"),
        "nameless .bin": (pickled(tmp_path, {"*": vectors}, "star.bin"), "star"),
        "web UI": (pickled(tmp_path, {"string_to_token": {"*": 265}, "string_to_param":
                                      {"*": vectors}, "name": "EasyNegative", "step": 3,
                                      "sd_checkpoint": None}), "EasyNegative"),
        "web UI without a name": (pickled(tmp_path, {"string_to_param": {"*": vectors}}, "b.pt"),
                                  "b"),
        "first textual inversions": (pickled(tmp_path, {
            "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})}, "c.pt"),
            "c"),
    }  # fmt: skip
    for form, (path, word) in forms.items():
        found, (rows,) = read_embedding(path)
        assert (found, rows.shape) == (word, vectors.shape), form
        assert torch.equal(rows, vectors), form
        assert identify(path).details == {"token": word, "vectors": "2"}, form
    save_file({"emb_params": half}, tmp_path / "half.safetensors")
    assert identify(tmp_path / "half.safetensors").dtype == "fp16"
    assert torch.equal(read_embedding(tmp_path / "half.safetensors")[1][0], half.float())


def test_sdxls_pair_has_a_vector_for_each_encoder(tmp_path):
    path = tmp_path / "neg.safetensors"
    pair = {"clip_l": torch.randn(3, 768), "clip_g": torch.randn(3, 1280)}
    save_file({k: t.half() for k, t in pair.items()}, path)
    word, (first, second) = read_embedding(path)
    assert (word, first.shape, second.shape) == ("neg", (3, 768), (3, 1280))
    report = identify(path)
    assert (report.family, report.dtype, report.details["vectors"]) == ("SDXL", "fp16", "3")
    save_file({**pair, "clip_g": torch.randn(2, 1280)}, path)
    with pytest.raises(CheckpointError, match="3 vectors for one text encoder and 2 for the other"):
        read_embedding(path)


def test_case_does_not_matter_and_the_word_is_told(tmp_path, caplog):
    base = load_base("bundled:tiny")
    path = tmp_path / "EasyNegative.safetensors"
    save_file({"emb_params": torch.randn(2, WIDTH)}, path)
    with caplog.at_level("INFO", logger="animatediff_core"):
        apply_embedding(base, path)
    assert "write 'EasyNegative' in a prompt for its 2 vectors" in caplog.text
    texts = ["a EasyNegative circle", "a easynegative circle"]
    one, other = encode(base, texts)[0]
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("word", "vectors", "message"),
    [
        ("<look>", torch.randn(31, WIDTH), "has 31 vectors but a prompt holds 30 at most"),
        ("<look>", torch.randn(2, WIDTH) / 0, "values that are no numbers"),
        ("my look", torch.randn(1, WIDTH), "token 'my look' has spaces"),
        ("x" * 400, torch.randn(1, WIDTH), "has 400 characters, more than 64"),
        ("!?", torch.randn(1, WIDTH), "has no letter or digit"),
        ("a", torch.randn(1, WIDTH), "'a' exists already"),
        ("A", torch.randn(1, WIDTH), "'A' exists already"),
        ("Circle", torch.randn(1, WIDTH), "exists already"),  # in the vocabulary as circle</w>
        ("<|endoftext|>", torch.randn(1, WIDTH), "exists already"),
    ],
)
def test_words_and_vectors_that_would_break_the_tokenizer_are_refused(
    tmp_path, word, vectors, message
):
    base = load_base("bundled:tiny")
    size = len(base.tokenizers[0])
    save_file({word: vectors}, tmp_path / "e.safetensors")
    with pytest.raises(CheckpointError, match=message):
        apply_embedding(base, tmp_path / "e.safetensors")
    assert len(base.tokenizers[0]) == size
    assert base.placeholder_tokens == []


def test_a_word_that_cannot_be_typed_is_refused(tmp_path):
    content = {"string_to_param": {"*": torch.randn(1, WIDTH)}, "name": "look\u200b"}
    with pytest.raises(CheckpointError, match="characters that cannot be typed"):
        apply_embedding(load_base("bundled:tiny"), pickled(tmp_path, content))


def test_a_word_that_begins_as_another_is_spelled_by_its_own_vectors(tmp_path):
    base = load_base("bundled:tiny")
    for word in ("look", "lookout", "lookouts"):
        save_file({word: torch.randn(2, WIDTH)}, tmp_path / f"{word}.safetensors")
        apply_embedding(base, tmp_path / f"{word}.safetensors")
    texts = expand_placeholders(base.tokenizers[0], ["a lookout, look at LOOKOUTS"])
    assert texts == ["a lookout lookout_1, look look_1 at lookouts lookouts_1"]


def taught(word, path):
    """The bundled model with an embedding whose file says `cat`."""
    base = load_base("bundled:tiny")
    save_file({"cat": torch.ones(1, WIDTH)}, path)
    return base, apply_embedding(base, path, word)


def test_another_word_takes_the_place_of_the_files_own(tmp_path):
    base, token = taught("<mine>", tmp_path / "e.safetensors")
    assert (token, base.placeholder_tokens) == ("<mine>", ["<mine>"])
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    (number,) = tokenizer("<mine>", add_special_tokens=False).input_ids
    assert encoder.get_input_embeddings().weight[number].tolist() == [1.0] * WIDTH
    assert "<mine>" not in [tokenizer.decode(i) for i in tokenizer("cat").input_ids]


def test_a_word_of_the_vocabulary_is_rejected_when_planned_with_the_way_out(tmp_path):
    save_file({"circle": torch.ones(1, WIDTH)}, tmp_path / "e.safetensors")
    job = f"{{base: 'bundled:tiny', embeddings: [{tmp_path / 'e.safetensors'}], prompt: x}}"
    with pytest.raises(AnimateDiffError, match="name another one: `word: NEW` beside its path"):
        plan(parse_prompts(f"jobs: [{job}]", "f", tmp_path))
    job = job.replace(f"[{tmp_path}", f"[{{word: <new>, path: {tmp_path}").replace("s]", "s}]")
    (planned,) = plan(parse_prompts(f"jobs: [{job}]", "f", tmp_path))
    assert planned.job.embeddings[0].word == "<new>"


def test_the_command_line_names_a_word_after_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:name.pt").touch()
    texts = {
        "a.pt": ("a.pt", None), "a.pt:<b>": ("a.pt", "<b>"), "odd:name.pt": ("odd:name.pt", None),
        "bundled:tiny/giant.safetensors": ("bundled:tiny/giant.safetensors", None),
        "bundled:tiny/giant.safetensors:b": ("bundled:tiny/giant.safetensors", "b"),
        "C:\\a.pt": ("C:\\a.pt", None),
    }  # fmt: skip
    for text, expected in texts.items():
        found = _embedding(text)
        assert (found.path, found.word) == expected


def bundle(folder, word="<mine>"):
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_{part}.weight": torch.ones(shape)
               for part, shape in (("up", (96, 2)), ("down", (2, 96)))}  # fmt: skip
    tensors[f"bundle_emb.{word}.string_to_param.*"] = torch.ones(2, WIDTH)
    save_file(tensors, folder / "l.safetensors")
    return str(folder / "l.safetensors")


def test_the_embedding_in_a_lora_is_learned_with_it(tmp_path, caplog):
    lora = bundle(tmp_path)
    assert identify(lora).details["embeddings"] == "<mine>"
    spec = ModelSpec(base="bundled:tiny", loras=(Adapter(path=lora),))
    base = load_image_model(find_image_model(spec, offline=True), offline=True)
    assert base.placeholder_tokens == ["<mine>"]
    numbers = base.tokenizers[0].convert_tokens_to_ids(["<mine>", "<mine>_1"])
    table = base.text_encoders[0].get_input_embeddings().weight
    assert table[numbers].tolist() == [[1.0] * WIDTH] * 2
    assert apply_lora(load_base("bundled:tiny"), lora) == 1
    assert "its embeddings (<mine>) are left out" in caplog.text


def test_the_embedding_in_a_lora_is_checked_when_planned(tmp_path):
    lora = bundle(tmp_path, "circle")
    job = f"{{base: 'bundled:tiny', prompt: x, loras: [{{path: {lora}}}]}}"
    with pytest.raises(AnimateDiffError, match="'circle' exists already; it belongs to the LoRA"):
        plan(parse_prompts(f"jobs: [{job}]", "f", tmp_path))
    lora = bundle(tmp_path)
    job = job.replace("}]", ", weights: 0.5}]")
    with pytest.raises(AnimateDiffError, match=r"holds an embedding \(<mine>\), which has no"):
        plan(parse_prompts(f"jobs: [{job}]", "f", tmp_path))

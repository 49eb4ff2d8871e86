"""Textual inversion: words of one or several vectors, in every form of file."""

import pytest
import torch
from conftest import TINY
from safetensors.torch import save_file

from animatediff_core.checkpoints.base import load_base
from animatediff_core.checkpoints.embeddings import apply_embedding, spelled_out
from animatediff_core.checkpoints.export import write_base_folder
from animatediff_core.checkpoints.identify import identify
from animatediff_core.diffusion.text import cut_text, encode
from animatediff_core.errors import CheckpointError

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
    assert report.details == {"word": word, "vectors": str(count)}
    base = load_base("bundled:tiny")
    assert apply_embedding(base, path) == word
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    ids = tokenizer(spelled_out(tokenizer, [f"a {word} circle"])[0]).input_ids
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
    assert cut_text(again, "<look> " * 15) is None
    assert cut_text(again, "<look> " * 16) is not None


def test_what_cannot_be_taught_is_refused(tmp_path):
    base = load_base(str(TINY / "base"))
    with pytest.raises(CheckpointError, match="768 values a word but this model's text encoder"):
        apply_embedding(base, written(tmp_path, "diffusers", torch.randn(2, 768)))
    path = written(tmp_path, "diffusers", torch.randn(1, WIDTH))
    apply_embedding(base, path)
    with pytest.raises(CheckpointError, match="'<look>' exists already"):
        apply_embedding(base, path)
    save_file({"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}, path)
    assert identify(path).family == "SDXL"
    with pytest.raises(CheckpointError, match="made for 2 text encoders"):
        apply_embedding(base, path)

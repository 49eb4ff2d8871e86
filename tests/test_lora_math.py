"""LoRA arithmetic: every form against its formula, written out here (LyCORIS 2309.14859, DoRA
2402.09353, PEFT's settings)."""

import json

import pytest
import torch
from conftest import new_unet, weight_pairs
from safetensors.torch import save_file

from animatediff_core import apply_lora
from animatediff_core.errors import CheckpointError

CONV = "down_blocks.0.resnets.0.conv1"
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "down_blocks.0.resnets.0.norm1"
OUT, IN, RANK = 32, 32, 4


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def applied(folder, tensors, scale=1.0, metadata=None, name="l.safetensors"):
    """A UNet with the file merged, and the same UNet without it."""
    save_file(tensors, folder / name, metadata=metadata)
    unet = new_unet()
    apply_lora(unet, folder / name, scale)
    return unet, new_unet()


def weights(layer, *unets):
    return [unet.get_submodule(layer).weight for unet in unets]


def kohya(factors, layer=CONV, alpha=None):
    name = "lora_unet_" + layer.replace(".", "_")
    tensors = {f"{name}.{key}": tensor.contiguous() for key, tensor in factors.items()}
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def kron(small, large):
    """The Kronecker product of o i with o i k l, by its definition."""
    out = torch.zeros(OUT, IN, 3, 3)
    rows, columns = large.shape[:2]
    for a in range(small.shape[0]):
        for b in range(small.shape[1]):
            block = small[a, b] * large
            out[a * rows : (a + 1) * rows, b * columns : (b + 1) * columns] = block
    return out


W1A, W1B = drawn(4, 2, seed=1), drawn(2, 4, seed=2)
W2A, W2B = drawn(8, RANK, seed=3), drawn(RANK, 8 * 9, seed=4)
T2, TA, TB = drawn(RANK, RANK, 3, 3, seed=5), drawn(RANK, 8, seed=6), drawn(RANK, 8, seed=7)
SMALL = {"whole": {"lokr_w1": W1A @ W1B}, "product": {"lokr_w1_a": W1A, "lokr_w1_b": W1B}}
LARGE = {
    "whole": ({"lokr_w2": (W2A @ W2B).view(8, 8, 3, 3)}, (W2A @ W2B).view(8, 8, 3, 3)),
    "product": ({"lokr_w2_a": W2A, "lokr_w2_b": W2B}, (W2A @ W2B).view(8, 8, 3, 3)),
    "tucker": ({"lokr_t2": T2, "lokr_w2_a": TA, "lokr_w2_b": TB},
               torch.einsum("ro,rskl,si->oikl", TA, T2, TB)),
}  # fmt: skip


@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("large", LARGE)
def test_lokr_in_every_factorised_form(tmp_path, small, large):
    factors, second = LARGE[large]
    after, before = applied(tmp_path, kohya({**SMALL[small], **factors}, alpha=3.0))
    new, old = weights(CONV, after, before)
    rank = RANK if large != "whole" else (2 if small == "product" else None)
    scale = 3.0 / rank if rank else 1.0  # alpha counts only where something is a product
    assert torch.allclose(new - old, scale * kron(W1A @ W1B, second), atol=1e-4)


def test_loha_with_a_core_and_on_a_linear_layer(tmp_path):
    t1, t2 = drawn(RANK, RANK, 3, 3, seed=8), drawn(RANK, RANK, 3, 3, seed=9)
    a, b, c, d = (drawn(RANK, OUT, seed=n) for n in range(4))
    factors = {"hada_t1": t1, "hada_w1_a": a, "hada_w1_b": b,
               "hada_t2": t2, "hada_w2_a": c, "hada_w2_b": d}  # fmt: skip
    after, before = applied(tmp_path, kohya(factors, alpha=2.0))
    new, old = weights(CONV, after, before)
    change = torch.einsum("ro,rskl,si->oikl", a, t1, b) * torch.einsum("ro,rskl,si->oikl", c, t2, d)
    assert torch.allclose(new - old, 0.5 * change, rtol=1e-4, atol=1e-4)
    flat = {"hada_w1_a": a.T, "hada_w1_b": b, "hada_w2_a": c.T, "hada_w2_b": d}
    after, before = applied(tmp_path, kohya(flat, LINEAR), -0.5)
    new, old = weights(LINEAR, after, before)
    assert torch.allclose(new - old, -0.5 * (a.T @ b) * (c.T @ d), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_locon_of_a_convolution_is_two_convolutions_in_a_row(tmp_path, dtype):
    down, up = drawn(RANK, IN, 3, 3).to(dtype) / 8, drawn(OUT, RANK, 1, 1).to(dtype)
    factors = {"lora_down.weight": down, "lora_up.weight": up}
    after, before = applied(tmp_path, kohya(factors, alpha=1.0), 0.7)
    x = drawn(2, IN, 6, 5)
    conv = torch.nn.functional.conv2d
    inner = conv(conv(x, down.float(), padding=1), up.float())
    expected = before.get_submodule(CONV)(x) + 0.7 * (1.0 / RANK) * inner
    assert torch.allclose(after.get_submodule(CONV)(x), expected, atol=1e-4)


def test_one_by_one_factors_fit_a_linear_layer(tmp_path):
    down, up = drawn(RANK, IN, 1, 1), drawn(OUT, RANK, 1, 1)
    factors = {"lora_down.weight": down, "lora_up.weight": up}
    after, before = applied(tmp_path, kohya(factors, LINEAR))
    new, old = weights(LINEAR, after, before)
    assert torch.allclose(new - old, up[..., 0, 0] @ down[..., 0, 0], atol=1e-5)


def test_full_differences_reach_biases_and_norms(tmp_path):
    weight, bias, gain, shift = (
        drawn(OUT, IN, 3, 3),
        drawn(OUT),
        drawn(IN, seed=1),
        drawn(IN, seed=2),
    )
    tensors = {**kohya({"diff": weight, "diff_b": bias}),
               **kohya({"w_norm": gain, "b_norm": shift}, NORM)}  # fmt: skip
    after, before = applied(tmp_path, tensors, 0.5)
    for layer, change, shifted in ((CONV, weight, bias), (NORM, gain, shift)):
        new, old = after.get_submodule(layer), before.get_submodule(layer)
        assert torch.allclose(new.weight - old.weight, 0.5 * change, atol=1e-6)
        assert torch.allclose(new.bias - old.bias, 0.5 * shifted, atol=1e-6)
    others = {name for name, a, b in weight_pairs(after, before) if not torch.equal(a, b)}
    assert others == {f"{layer}.{kind}" for layer in (CONV, NORM) for kind in ("weight", "bias")}
    tensors = kohya({"diff_b": drawn(OUT)}, LINEAR)
    with pytest.raises(CheckpointError, match="has the shape of another family"):
        applied(tmp_path, tensors)  # to_q has no bias


@pytest.mark.parametrize("layer", [LINEAR, CONV])
@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_dora_gives_the_changed_weight_its_lengths(tmp_path, layer, axis, scale):
    old = new_unet().get_submodule(layer).weight.detach()
    kernel = old.shape[2:]
    down, up = drawn(RANK, IN, *kernel) / 8, drawn(OUT, RANK, *(1 for _ in kernel))
    turned = old + 0.5 * torch.einsum("or,ri...->oi...", up.flatten(1), down)
    length = drawn(IN if axis == "input" else OUT).abs() + 1
    shape = (1, IN) if axis == "input" else (OUT, 1)
    new = torch.empty_like(old)
    for n in range(32):
        at = (slice(None), n) if axis == "input" else (n,)
        new[at] = length[n] * turned[at] / turned[at].square().sum().sqrt()
    factors = {"lora_down.weight": down, "lora_up.weight": up,
               "dora_scale": length.view(*shape, *(1 for _ in kernel))}  # fmt: skip
    after, before = applied(tmp_path, kohya(factors, layer, alpha=2.0), scale)
    expected = old + scale * (new - old)
    assert torch.allclose(after.get_submodule(layer).weight, expected, atol=1e-5)
    assert torch.equal(before.get_submodule(layer).weight, old)


def peft(layer, down, up, prefix="unet.", **more):
    return {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up,
            **{f"{prefix}{layer}.{key}": tensor for key, tensor in more.items()}}  # fmt: skip


@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_pefts_magnitude_is_by_output(tmp_path, layer):
    old = new_unet().get_submodule(layer).weight.detach()
    kernel = old.shape[2:]
    down, up = drawn(RANK, IN, *kernel) / 8, drawn(OUT, RANK, *(1 for _ in kernel))
    turned = old + torch.einsum("or,ri...->oi...", up.flatten(1), down)
    length = drawn(OUT).abs() + 1
    # peft/tuners/lora/dora.py: magnitude / norm over all but the output channels, 1 o 1 1 for conv
    lengths = turned.flatten(1).norm(dim=1)
    expected = turned * (length / lengths).view(OUT, *(1 for _ in old.shape[1:]))
    stored = length if not kernel else length.view(1, OUT, 1, 1)
    tensors = peft(layer, down, up, lora_magnitude_vector=stored)
    after, _ = applied(tmp_path, tensors)
    assert torch.allclose(after.get_submodule(layer).weight, expected, atol=1e-5)


def test_pefts_alpha_is_read_from_the_metadata_by_layer_and_with_its_root(tmp_path):
    down, up = drawn(RANK, IN), drawn(OUT, RANK)
    other = LINEAR.replace("to_q", "to_k")
    tensors = {**peft(LINEAR, down, up), **peft(other, down.clone(), up.clone())}
    settings = {"unet.r": RANK, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_k": 1},
                "unet.use_rslora": True}  # fmt: skip
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    after, before = applied(tmp_path, tensors, metadata=metadata)
    for layer, alpha in ((LINEAR, 6), (other, 1)):
        new, old = weights(layer, after, before)
        assert torch.allclose(new - old, alpha / RANK**0.5 * up @ down, atol=1e-5)
    with pytest.raises(CheckpointError, match="lora_adapter_metadata cannot be read"):
        applied(tmp_path, tensors, metadata={"lora_adapter_metadata": "[]"})


def test_a_bare_peft_folder_is_scaled_as_its_settings_say(tmp_path):
    down, up = drawn(RANK, IN), drawn(OUT, RANK)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8}))
    tensors = peft(LINEAR, down, up, prefix="base_model.model.")
    after, before = applied(tmp_path, tensors, name="adapter_model.safetensors")
    new, old = weights(LINEAR, after, before)
    assert torch.allclose(new - old, 2.0 * up @ down, atol=1e-5)
    after, before = applied(tmp_path, tensors, name="lora.safetensors")
    new, old = weights(LINEAR, after, before)
    assert torch.allclose(new - old, up @ down, atol=1e-5)


HALF_TURN = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
"""Its difference to its transpose, by Cayley's transform, turns by 90 degrees."""
PAIRS = {"linear": LINEAR, "convolution": CONV}


@pytest.mark.parametrize("layer", PAIRS.values(), ids=PAIRS)
def test_glora_also_multiplies_the_weight(tmp_path, layer):
    a1, a2, b1 = drawn(IN, RANK, seed=1), drawn(RANK, IN, seed=2), drawn(OUT, RANK, seed=3)
    b2 = drawn(RANK, *new_unet().get_submodule(layer).weight.shape[1:], seed=4)
    file = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    changed, before = weights(layer, *applied(tmp_path, kohya(file, layer, 2.0), 0.7))
    w = before.flatten(2) if before.ndim == 4 else before[..., None]
    multiplied = torch.stack([w[..., k] @ a1 @ a2 for k in range(w.shape[2])], 2)
    expected = before + 0.7 * 2.0 / RANK * (multiplied.view_as(before) + (b1 @ b2.flatten(1))
                                            .view_as(before))  # fmt: skip
    assert torch.allclose(changed, expected, atol=1e-4)


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("layer", PAIRS.values(), ids=PAIRS)
def test_ia3_scales_channels(tmp_path, layer, on_input):
    factors = drawn(32)
    file = {"weight": factors, "on_input": torch.tensor(on_input)}
    changed, before = weights(layer, *applied(tmp_path, kohya(file, layer), 0.7))
    for channel in (0, 31):
        of = (slice(None), channel) if on_input else channel
        assert torch.allclose(changed[of], before[of] * (1 + 0.7 * factors[channel]), atol=1e-6)


@pytest.mark.parametrize("name", ["lora_unet_", "oft_unet_"])
@pytest.mark.parametrize("layer", PAIRS.values(), ids=PAIRS)
def test_oft_turns_outputs_in_blocks(tmp_path, layer, name):
    file = kohya({"oft_blocks": HALF_TURN.repeat(16, 1, 1)}, layer)
    file = {key.replace("lora_unet_", name): tensor for key, tensor in file.items()}
    changed, before = weights(layer, *applied(tmp_path, file))
    assert torch.allclose(changed[::2], -before[1::2], atol=1e-6)
    assert torch.allclose(changed[1::2], before[::2], atol=1e-6)
    half, _ = weights(layer, *applied(tmp_path, file, 0.5))
    assert torch.allclose(half, (before + changed) / 2, atol=1e-6)


def test_oft_stays_within_its_constraint_and_learns_lengths(tmp_path):
    file = {"oft_blocks": HALF_TURN.repeat(16, 1, 1), "rescale": torch.full((OUT, 1), 2.0)}
    changed, before = weights(LINEAR, *applied(tmp_path, kohya(file, LINEAR, 0.01)))
    q = 0.32 / 32**0.5  # alpha * outputs is the longest, of 32 entries of one size
    cosine, sine = (1 - q * q) / (1 + q * q), 2 * q / (1 + q * q)
    expected = 2 * (cosine * before[0] - sine * before[1])
    assert torch.allclose(changed[0], expected, atol=1e-6)


@pytest.mark.parametrize("layer", PAIRS.values(), ids=PAIRS)
def test_boft_turns_outputs_in_stages(tmp_path, layer):
    file = {"oft_blocks": HALF_TURN.repeat(2, 16, 1, 1)}
    changed, before = weights(layer, *applied(tmp_path, kohya(file, layer)))
    expected = torch.stack([before[3], -before[2], -before[1], before[0]])
    assert torch.allclose(changed[:4], expected, atol=1e-6)


def test_an_alpha_of_zero_is_said_and_changes_nothing(tmp_path, caplog):
    file = {"lora_up.weight": drawn(OUT, 2), "lora_down.weight": drawn(2, IN)}
    changed, before = weights(LINEAR, *applied(tmp_path, kohya(file, LINEAR, 0.0)))
    assert torch.equal(changed, before)
    assert "alpha is 0 in 1 of 1 layers (first down_blocks_0_attentions_0_" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_read_as_the_numbers_that_it_holds(tmp_path, dtype):
    up, down = torch.full((OUT, 2), 0.5).to(dtype), torch.full((2, IN), 0.25).to(dtype)
    file = kohya({"lora_up.weight": up, "lora_down.weight": down}, LINEAR)
    changed, before = weights(LINEAR, *applied(tmp_path, file))
    assert torch.allclose(changed, before + 0.25, atol=1e-6)
    file = {"lora_up.weight": (up.float() * float("nan")).to(dtype), "lora_down.weight": down}
    with pytest.raises(CheckpointError, match="attn1_to_q holds values that are no numbers"):
        applied(tmp_path, kohya(file, LINEAR))

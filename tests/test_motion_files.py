"""Motion modules in and out of files."""

from dataclasses import fields

import pytest
import torch
from conftest import new_motion, new_unet, weight_pairs
from diffusers.models import MotionAdapter
from safetensors.torch import load_file, save_file

from animatediff_core import inflate, load_motion_module, optimize, save_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import MotionConfig
from animatediff_core.motion.module import AS_TRAINED, Positions, sinusoids


def same(one, other):
    return all(torch.equal(a, b) for _, a, b in weight_pairs(one, other))


def with_positions(motion, length=32):
    tensors = {}
    for key, tensor in motion.state_dict().items():
        tensors[key] = tensor
        if key.endswith("to_q.weight"):
            stem = key.removesuffix("to_q.weight")
            pe = sinusoids(length, tensor.shape[0], tensor).unsqueeze(0)
            tensors[f"{stem}pos_encoder.pe"] = pe.clone()
    return tensors


def test_round_trip_is_bit_exact_and_keeps_the_configuration(tmp_path):
    motion = new_motion(max_frames=20, resnet_norm="clip", frame_norm="clip")
    save_motion_module(motion, tmp_path / "m.safetensors")
    loaded = load_motion_module(tmp_path / "m.safetensors")
    assert loaded.config == motion.config
    assert same(motion, loaded)


CHANGED = {
    "block_out_channels": (32, 64, 96), "layers_per_block": 2, "max_frames": 20,
    "mid_block": False, "frame_norm": "clip", "resnet_norm": "clip", "version": "mine",
    "num_attention_heads": 4, "norm_num_groups": 16, "betas": (0.001, 0.03, "scaled_linear"),
    "timestep_spacing": "trailing", "conv_in_channels": 9,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(MotionConfig)])
def test_each_field_of_the_configuration_comes_back_from_the_metadata(tmp_path, name):
    motion = new_motion(**{"channels": CHANGED[name]} if name == "block_out_channels" else
                        {name: CHANGED[name]})  # fmt: skip
    assert getattr(motion.config, name) == CHANGED[name] != getattr(new_motion().config, name)
    save_motion_module(motion, tmp_path / "m.safetensors")
    assert load_motion_module(tmp_path / "m.safetensors").config == motion.config


def new_official(channels=(32, 64, 64, 32)):
    """32 groups, as official files have without saying so."""
    return new_motion(channels, norm_num_groups=32)


def test_official_trainer_file_loads_with_its_prefix_and_wrapper(tmp_path):
    motion = new_official()
    tensors = {f"module.{k}": t for k, t in with_positions(motion).items()}
    tensors["module.conv_in.weight"] = torch.zeros(3)
    torch.save({"epoch": 0, "global_step": 5, "state_dict": tensors}, tmp_path / "m.ckpt")
    config = load_motion_module(tmp_path / "m.ckpt").config
    assert (config.version, config.max_frames, config.mid_block) == ("v2", 32, True)


@pytest.mark.parametrize(
    ("levels", "mid_block", "positions", "version", "norms"),
    [
        (4, False, 24, "v1", ("frame", "clip")),
        (4, True, 32, "v2", ("frame", "frame")),
        (4, False, 32, "v3", ("frame", "frame")),
        (3, False, 32, "sdxl-beta", ("clip", "frame")),
        (3, False, 24, "hotshot-xl", ("frame", "clip")),
    ],
)
def test_the_content_tells_the_version(tmp_path, levels, mid_block, positions, version, norms):
    motion = new_motion((32,) * levels, norm_num_groups=32, mid_block=mid_block)
    save_file(with_positions(motion, positions), tmp_path / "m.safetensors")
    config = load_motion_module(tmp_path / "m.safetensors").config
    assert (config.version, config.max_frames) == (version, positions)
    assert (config.frame_norm, config.resnet_norm) == norms


def test_hotshot_xl_is_read_out_of_its_whole_unet(tmp_path):
    motion = new_motion((32, 64, 64), norm_num_groups=32, mid_block=False)
    tensors = {
        key.replace(".motion_modules.", ".temporal_attentions.")
        .replace(".temporal_transformer.", ".")
        .replace(".pos_encoder.pe", ".pos_encoder.positional_encoding"): tensor
        for key, tensor in with_positions(motion, 24).items()
    }
    tensors["down_blocks.0.resnets.0.conv1.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / "m.safetensors")
    loaded = load_motion_module(tmp_path / "m.safetensors")
    assert same(motion, loaded)
    assert loaded.config.version == "hotshot-xl"


def pia(channels=(32, 64, 64, 32)):
    """A PIA-shaped module whose conv_in is not zero."""
    motion = new_motion(
        channels, norm_num_groups=32, mid_block=False, version="pia", resnet_norm="clip",
        conv_in_channels=9,
    )  # fmt: skip
    torch.nn.init.normal_(motion.conv_in.weight)
    torch.nn.init.normal_(motion.conv_in.bias)
    return motion


def test_pia_is_told_by_its_first_convolution(tmp_path):
    motion = pia()
    torch.save({f"module.{k}": t for k, t in with_positions(motion).items()}, tmp_path / "pia.ckpt")
    loaded = load_motion_module(tmp_path / "pia.ckpt")
    assert same(motion, loaded)
    assert (loaded.config.version, loaded.config.conv_in_channels) == ("pia", 9)
    assert (loaded.config.frame_norm, loaded.config.resnet_norm) == ("frame", "clip")
    with pytest.raises(CheckpointError, match="has a conv_in, as PIA has, so it is no v3"):
        load_motion_module(tmp_path / "pia.ckpt", version="v3")


def test_a_whole_unet_besides_is_not_taken_for_pia(tmp_path):
    tensors = {f"module.{k}": t for k, t in with_positions(new_official()).items()}
    tensors["module.conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    tensors["module.conv_in.bias"] = torch.zeros(32)
    content = {"state_dict": tensors, "animatediff_config": {"unet": "inflated"}, "epoch": 1}
    torch.save(content, tmp_path / "trained.ckpt")
    assert load_motion_module(tmp_path / "trained.ckpt").config.version == "v2"
    flat = {**tensors, "animatediff_config": {"unet": "inflated"}, "global_step": 3}
    torch.save(flat, tmp_path / "flat.ckpt")
    assert same(new_official(), load_motion_module(tmp_path / "flat.ckpt"))


@pytest.mark.parametrize(("mid", "length"), [(True, 64), (True, 32), (False, 64), (False, 16)])
def test_longer_and_shorter_positions_set_the_frames(tmp_path, mid, length):
    motion = new_motion((32, 64, 64, 32), norm_num_groups=32, mid_block=mid)
    save_file(with_positions(motion, length), tmp_path / "long.safetensors")
    loaded = load_motion_module(tmp_path / "long.safetensors")
    assert same(motion, loaded)
    assert (loaded.config.max_frames, loaded.config.version) == (length, "v2" if mid else "v3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positions_may_be_rounded_but_not_others(tmp_path, dtype, caplog):
    tensors = {k: t.to(dtype) for k, t in with_positions(new_official()).items()}
    save_file(tensors, tmp_path / "m.safetensors")
    with caplog.at_level("INFO", logger="animatediff_core"):
        assert load_motion_module(tmp_path / "m.safetensors").config.max_frames == 32
    assert "its 26 stored positions are the standard sinusoids" in caplog.text


def stretched(tensors, keys):
    """Tensors whose first 16 positions are stretched to 32, as community modules have them."""
    first = {key: tensors[key][:, :16].transpose(1, 2) for key in keys}
    wide = {k: torch.nn.functional.interpolate(t, size=32, mode="linear") for k, t in first.items()}
    return tensors | {key: table.transpose(1, 2).contiguous() for key, table in wide.items()}


def test_positions_that_a_file_holds_are_used_where_they_differ(tmp_path, caplog):
    motion = new_official().eval()
    for module in motion.modules():
        if hasattr(module, "proj_out"):
            torch.nn.init.normal_(module.proj_out.weight)
    tensors = with_positions(motion)
    keys = [key for key in tensors if key.endswith("pos_encoder.pe")]
    save_file(stretched(tensors, keys), tmp_path / "s.safetensors")
    loaded = load_motion_module(tmp_path / "s.safetensors")
    assert "26 of its 26 stored positions are its own (stretched or trained), up to" in caplog.text
    site = "down_blocks.0.motion_modules.0.temporal_transformer"
    ours, plain = (module.get_submodule(site) for module in (loaded, motion))
    x = torch.randn(4, 32, 2, 2)
    with torch.no_grad():
        found, without = ours(x, 4), plain(x, 4)
    table = load_file(tmp_path / "s.safetensors")[keys[0]][0]
    assert torch.equal(ours.places(4, torch.zeros(1, 32), AS_TRAINED)[0], table[:4])
    between = ours.places(2, torch.zeros(1, 32), Positions(stretch=0.5))[0]
    torch.testing.assert_close(between, torch.stack([table[0], (table[0] + table[1]) / 2]))
    last = ours.places(2, torch.zeros(1, 32), Positions(offset=30))[1]
    assert torch.equal(last, table[30:32])
    assert float((found - without).abs().max()) > 0.05
    fast = optimize(inflate(new_unet((32, 64, 64, 32)), loaded))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, 4), found)
    fast.deflate()


@pytest.mark.parametrize("form", ["official", "diffusers"])
def test_own_positions_are_saved_again(tmp_path, form):
    tensors = with_positions(new_official())
    keys = [key for key in tensors if key.endswith("pos_encoder.pe")]
    save_file(stretched(tensors, keys), tmp_path / "s.safetensors")
    save_motion_module(load_motion_module(tmp_path / "s.safetensors"), tmp_path / "m", form=form)
    again = load_motion_module(tmp_path / "m")
    wanted = stretched(tensors, keys)
    for key in keys:
        attention = again.get_submodule(key.removesuffix(".pos_encoder.pe"))
        assert torch.equal(attention.positions, wanted[key][0])
    one = stretched(tensors, keys[:1])
    save_file(one, tmp_path / "s.safetensors")
    mixed = load_motion_module(tmp_path / "s.safetensors")
    if form == "diffusers":
        with pytest.raises(CheckpointError, match="diffusers has one table of positions for both"):
            save_motion_module(mixed, tmp_path / "n", form=form)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_module_in_fp8_has_no_positions_of_its_own(tmp_path, dtype, caplog):
    tensors = {k: t.to(dtype) for k, t in with_positions(new_official()).items()}
    save_file(tensors, tmp_path / "m.safetensors")
    loaded = load_motion_module(tmp_path / "m.safetensors")
    assert "are its own" not in caplog.text
    assert loaded.down_blocks[0].motion_modules[0].temporal_transformer.norm.weight[0] == 1
    key = next(key for key in tensors if key.endswith(".pe"))
    bad = tensors | {key: torch.full((1, 32, 32), torch.nan)}
    save_file(bad, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="has values that are no numbers"):
        load_motion_module(tmp_path / "m.safetensors")


def test_animatelcm_i2v_is_rejected_with_any_version(tmp_path):
    tensors = dict(new_official().state_dict()) | {"img_encoder.conv_in.weight": torch.ones(1)}
    save_file(tensors, tmp_path / "m.safetensors")
    for version in (None, "animatelcm"):
        with pytest.raises(CheckpointError, match="is an AnimateLCM-I2V module that cannot"):
            load_motion_module(tmp_path / "m.safetensors", version=version)


def diffusers_keys(motion, folder):
    """The names and tensors that diffusers itself saves, positions included."""
    motion_adapter(motion).save_pretrained(folder)
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("keys", ["diffusers", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lightning_loads_in_both_key_forms_and_must_be_named(tmp_path, keys, dtype):
    motion = new_official()
    tensors = with_positions(motion)
    if keys == "diffusers":
        tensors = diffusers_keys(motion, tmp_path / "adapter")
        assert any(key.endswith("pos_embed.pe") for key in tensors)
    path = tmp_path / "lightning.safetensors"
    save_file({k: t.to(dtype).contiguous() for k, t in tensors.items()}, path)
    assert load_motion_module(path).config.version == "v2"
    assert "--motion-version lightning" in identify(path).details["note"]
    loaded = load_motion_module(path, version="lightning")
    assert (loaded.config.version, loaded.config.timestep_spacing) == ("lightning", "trailing")
    for key, tensor, stored in weight_pairs(loaded, motion):
        assert torch.equal(tensor, stored.to(dtype).float()), key


@pytest.mark.parametrize("form", ["fp16 .bin", "sharded", "variant beside"])
def test_diffusers_folders_are_read_in_every_form(tmp_path, form):
    motion = new_official()
    adapter, folder = motion_adapter(motion), tmp_path / "adapter"
    if form == "fp16 .bin":
        adapter.half().save_pretrained(folder, safe_serialization=False, variant="fp16")
        motion.half().float()
    elif form == "sharded":
        adapter.save_pretrained(folder, max_shard_size="200KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        adapter.save_pretrained(folder)
        motion_adapter(new_motion((32, 64, 64, 32), seed=7, norm_num_groups=32)).half(
        ).save_pretrained(folder, variant="fp16")  # fmt: skip
    assert same(motion, load_motion_module(folder))
    assert identify(folder).details["keys"] == "diffusers"


@pytest.mark.parametrize("make", [new_motion, pia])
def test_the_diffusers_form_comes_back_bit_for_bit_both_ways(tmp_path, make):
    motion = make()
    save_motion_module(motion, tmp_path / "folder", form="diffusers")
    loaded = load_motion_module(tmp_path / "folder")
    assert same(motion, loaded)
    assert loaded.config == motion.config
    adapter = MotionAdapter.from_pretrained(tmp_path / "folder")
    adapter.save_pretrained(tmp_path / "theirs")
    again = load_motion_module(tmp_path / "theirs", version=motion.config.version)
    save_motion_module(again, tmp_path / "back", form="diffusers")
    name = "diffusion_pytorch_model.safetensors"
    theirs, back = load_file(tmp_path / "theirs" / name), load_file(tmp_path / "back" / name)
    assert theirs.keys() == back.keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.items())
    with pytest.raises(CheckpointError, match="exists already and is not empty"):
        save_motion_module(motion, tmp_path / "folder", form="diffusers")


def test_without_positions_the_version_must_be_given(golden, tmp_path):
    with pytest.raises(CheckpointError, match="v1 or v3.*--motion-version"):
        load_motion_module(golden / "v1" / "motion_module.ckpt")
    motion = load_motion_module(golden / "v1" / "motion_module.ckpt", version="v1")
    assert (motion.config.resnet_norm, motion.config.max_frames) == ("clip", 24)


def test_diffusers_folder_is_read_back(tmp_path):
    motion = new_motion((32, 64), max_frames=32)
    motion_adapter(motion).save_pretrained(tmp_path / "adapter")
    loaded = load_motion_module(tmp_path / "adapter")
    assert same(motion, loaded)
    assert loaded.config.frame_norm == "frame"


def test_missing_and_unknown_tensors_are_named(tmp_path):
    tensors = with_positions(new_official())
    gone = "up_blocks.1.motion_modules.0.temporal_transformer.proj_in.bias"
    save_file({k: t for k, t in tensors.items() if k != gone}, tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"lacks 1 of \d+ tensors \({gone}\); download it again"
    ):
        load_motion_module(tmp_path / "m.safetensors")
    extra = "down_blocks.0.motion_modules.0.temporal_transformer.surprise"
    save_file({**tensors, extra: torch.zeros(1)}, tmp_path / "n.safetensors")
    with pytest.raises(CheckpointError, match="has 1 unknown tensors .*surprise"):
        load_motion_module(tmp_path / "n.safetensors")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


BAD = {
    "page.safetensors": (b"<!DOCTYPE html><html>log in</html>", "web page"),
    "pointer.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "LFS pointer",
    ),
    "empty.safetensors": (b"", "is empty"),
    "noise.ckpt": (b"\x01\x02\x03\x04 nothing", "truncated or damaged"),
    "text.txt": (b"hello there, this is text", "no weight file"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_hold_no_weights_are_named(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_motion_module(tmp_path / name)


def test_truncated_files_and_code_are_refused(tmp_path, capsys):
    save_motion_module(new_motion(), tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_motion_module(tmp_path / "cut.safetensors")
    torch.save({"a": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="could run code"):
        load_motion_module(tmp_path / "evil.ckpt")
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="no such file"):
        load_motion_module(tmp_path / "missing.ckpt")

"""What shapes and words of a file say about a motion module, at full size and with bad intent."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import TINY, new_motion
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save_file

from animatediff_core import Job, inflate, load_motion_module, save_motion_module
from animatediff_core.adapters.identify import identify
from animatediff_core.checkpoints.motion_config import CONFIG_KEY, read_config
from animatediff_core.checkpoints.motion_files import MotionContent
from animatediff_core.checkpoints.motion_names import dialect_of, is_position, official_keys
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import VERSIONS, MotionConfig, MotionModule
from animatediff_core.planning.jobs import plan
from animatediff_core.weights.weight_file import WeightFile

SD15, SDXL = (320, 640, 1280, 1280), (320, 640, 1280)


def released(channels=SD15, *, mid=False, length=32, layers=2):
    """Names and shapes of a released file, by the table of facts/motion-modules.md 1.3."""
    sites = {
        f"{side}_blocks.{i}.motion_modules.{j}": c
        for side, widths, count in (("down", channels, layers), ("up", channels[::-1], layers + 1))
        for i, c in enumerate(widths)
        for j in range(count)
    }
    if mid:
        sites["mid_block.motion_modules.0"] = channels[-1]
    shapes = {}
    for site, c in sites.items():
        table = {"norm": c, "proj_in": (c, c), "proj_out": (c, c)}
        block = "transformer_blocks.0"
        for a in (0, 1):
            attention = f"{block}.attention_blocks.{a}"
            table |= {f"{attention}.to_{x}!": (c, c) for x in "qkv"}
            table |= {f"{attention}.to_out.0": (c, c), f"{block}.norms.{a}": c}
            table[f"{attention}.pos_encoder.pe!!"] = (1, length, c)
        table |= {f"{block}.ff.net.0.proj": (8 * c, c), f"{block}.ff.net.2": (c, 4 * c),
                  f"{block}.ff_norm": c}  # fmt: skip
        for name, shape in table.items():
            shape = (shape,) if isinstance(shape, int) else shape
            place = f"{site}.temporal_transformer.{name.rstrip('!')}"
            if name.endswith("!!"):
                shapes[place] = shape
                continue
            shapes[f"{place}.weight"] = shape
            if not name.endswith("!"):
                shapes[f"{place}.bias"] = shape[:1]
    return shapes


def content(shapes, metadata=None, settings=None):
    found = official_keys(shapes)
    file = WeightFile(Path("m.ckpt"), "pickle", shapes, {}, metadata or {}, settings)
    return MotionContent(found, file.metadata, settings, dialect_of(shapes), file)


def sniffed(shapes, version=None, **words):
    return read_config(content(shapes, **words), version=version, path="m.ckpt")


@pytest.mark.parametrize(
    ("version", "file", "keys", "millions"),
    [
        ("v1", {"length": 24}, 560, 417.1376),
        ("v2", {"mid": True}, 588, 453.209),
        ("v3", {}, 560, 417.1376),
        ("sdxl-beta", {"channels": SDXL}, 420, 236.779),
        ("hotshot-xl", {"channels": SDXL, "length": 24}, 420, 236.779),
    ],
)
def test_full_size_files_are_taken_key_by_key_and_shape_by_shape(version, file, keys, millions):
    shapes = released(**file)
    assert len(shapes) == keys
    config = sniffed(shapes)
    assert config == VERSIONS[version]
    with torch.device("meta"):
        motion = MotionModule(config)
    ours = {key: tuple(t.shape) for key, t in motion.state_dict().items()}
    assert ours == {key: shape for key, shape in shapes.items() if not is_position(key)}
    assert sum(p.numel() for p in motion.parameters()) / 1e6 == pytest.approx(millions, 1e-5)


def full_unet(channels, width):
    cross = ("CrossAttnDownBlock2D",) * 3, ("CrossAttnUpBlock2D",) * 3
    downs, ups = (*cross[0], "DownBlock2D"), ("UpBlock2D", *cross[1])
    if len(channels) == 3:
        downs = ("DownBlock2D", *cross[0][:2])
        ups = (*cross[1][:2], "UpBlock2D")
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=channels, down_block_types=downs, up_block_types=ups,
            cross_attention_dim=width,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("version", "channels", "sites"),
    [("v1", SD15, 20), ("v2", SD15, 21), ("v3", SD15, 20), ("sdxl-beta", SDXL, 15)],
)
def test_full_size_modules_find_every_site_of_their_unet(version, channels, sites):
    unet = full_unet(channels, 768 if len(channels) == 4 else 2048)
    keys = list(unet.state_dict())
    with torch.device("meta"):
        animated = inflate(unet, MotionModule(VERSIONS[version]))
    hooked = [m for m in unet.modules() if any("Motion" in type(h).__name__
                                               for h in m._forward_hooks.values())]  # fmt: skip
    assert len(hooked) == sites
    assert list(unet.state_dict()) == keys
    assert animated.deflate() is unet


@pytest.mark.parametrize(
    ("file", "version", "message"),
    [
        ({}, "v2", "has no mid block, so it is no v2 module"),
        ({"mid": True}, "v3", "has a mid block, so it is no v3 module"),
        ({}, "sdxl-beta", "has the levels of SD1.5, so it is no sdxl-beta"),
        ({"channels": SDXL}, "v3", "has the levels of SDXL, so it is no v3"),
        ({"channels": (32, 32, 64, 64)}, "hotshot-xl", "has 4 levels, not SDXL's three"),
        ({}, "pia", "has no conv_in, so it is no pia"),
        ({}, "v9", "no motion module version 'v9'"),
    ],
)
def test_a_version_against_the_content_is_refused_by_name(file, version, message):
    with pytest.raises(CheckpointError, match=message):
        sniffed(released(**file), version)


@pytest.mark.parametrize(
    ("file", "choice"),
    [({}, "v1 or v3"), ({"mid": True}, "v2, lightning or animatelcm"),
     ({"channels": SDXL}, "sdxl-beta or hotshot-xl")],
)  # fmt: skip
def test_without_positions_the_choice_is_named_and_the_user_decides(file, choice):
    shapes = {key: s for key, s in released(**file).items() if not is_position(key)}
    with pytest.raises(CheckpointError, match=f"could be {choice}; say which with --motion-v"):
        sniffed(shapes)
    for version in choice.replace(" or ", ", ").split(", "):
        assert sniffed(shapes, version) == VERSIONS[version]


@pytest.mark.parametrize(
    ("positions", "version"), [(24, "v2"), (32, "v2"), (33, "animatelcm"), (64, "animatelcm")]
)
def test_v2_and_animatelcm_in_diffusers_form_differ_in_their_positions(positions, version):
    renames = {".temporal_transformer.": ".", ".attention_blocks.0.": ".attn1.",
               ".attention_blocks.1.": ".attn2.", ".norms.0.": ".norm1.", ".norms.1.": ".norm2.",
               ".ff_norm.": ".norm3."}  # fmt: skip
    shapes = {}
    for key, shape in released(mid=True, length=positions).items():
        for official, theirs in renames.items():
            key = key.replace(official, theirs)
        if ".pos_encoder." not in key:
            shapes[key] = shape
    settings = {"_class_name": "MotionAdapter", "motion_max_seq_length": positions,
                "use_motion_mid_block": True, "motion_layers_per_block": [2, 2, 2, 2],
                "block_out_channels": list(SD15), "motion_num_attention_heads": 8}  # fmt: skip
    config = sniffed(shapes, settings=settings)
    assert (config.version, config.max_frames) == (version, positions)
    official = sniffed(released(mid=True, length=positions))  # animatelcm's is diffusers' alone
    assert (official.version, official.max_frames) == ("v2", positions)


SMALL = {"channels": (32, 64), "mid": True, "layers": 1}
CONFIG = asdict(MotionConfig(block_out_channels=(32, 64), mid_block=True, layers_per_block=1,
                             version="v2"))  # fmt: skip

HOSTILE_METADATA = [
    ({"layers_per_block": 10**9}, "its layers_per_block is 1000000000"),
    ({"layers_per_block": 2}, "says layers_per_block 2 but its tensors have 1"),
    ({"block_out_channels": [10**9, 64]}, "its block_out_channels is 1000000000"),
    ({"block_out_channels": [64, 64]}, r"says block_out_channels \(64, 64\) but its tensors have"),
    ({"num_attention_heads": "8"}, "its num_attention_heads is 8"),
    ({"num_attention_heads": 7}, "7 does not divide 32 channels"),
    ({"mid_block": 1}, "its mid_block is 1"),
    ({"betas": [0.1, 0.2, "evil"]}, "its betas is"),
    ({"frame_norm": "video"}, "frame_norm must be frame or clip"),
    ({"timestep_spacing": "x"}, "timestep_spacing must be leading or trailing"),
    ({"max_frames": -1}, "its max_frames is -1"),
    ({"max_frames": 16}, "says max_frames 16 but its tensors have 32"),
    ({"surprise": 1}, "its surprise is 1: Extra inputs"),
    ("[1, 2]", "should be an object"),
    ("not JSON", "cannot be read"),
    ("[" * 100_000, "cannot be read"),
    ("9" * 5000, "cannot be read"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE_METADATA)
def test_metadata_that_the_tensors_do_not_bear_out_is_refused_at_once(change, message):
    text = change if isinstance(change, str) else json.dumps({**CONFIG, **change})
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        sniffed(released(**SMALL), metadata={CONFIG_KEY: text})
    assert time.process_time() - begun < 1


def test_the_metadata_wins_and_another_version_is_refused():
    words = {CONFIG_KEY: json.dumps({**CONFIG, "norm_num_groups": 4})}
    assert sniffed(released(**SMALL), metadata=words).norm_num_groups == 4
    with pytest.raises(CheckpointError, match="says that it is a v2 module, not lightning"):
        sniffed(released(**SMALL), "lightning", metadata=words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion_layers_per_block": 10**9}, "its motion_layers_per_block is 1000000000"),
        ({"motion_layers_per_block": [1, 2]}, r"motion_layers_per_block is \[1, 2\]"),
        ({"block_out_channels": [10**9]}, "its block_out_channels is"),
        ({"motion_max_seq_length": "many"}, "its motion_max_seq_length is many"),
        ({"use_motion_mid_block": False}, "says mid_block False but its tensors have True"),
        ({"motion_num_attention_heads": 5}, "5 does not divide 32"),
        ({"conv_in_channels": 9}, "says conv_in_channels 9 but its tensors have None"),
    ],
)
def test_an_absurd_config_json_is_refused(change, message):
    settings = {"_class_name": "MotionAdapter", **change}
    with pytest.raises(CheckpointError, match=message):
        sniffed(released(**SMALL), settings=settings)


def test_sites_and_levels_that_no_unet_has_are_refused_before_anything_is_built(tmp_path):
    far = {"down_blocks.0.motion_modules.999999999.temporal_transformer.norm.weight": (32,)}
    with pytest.raises(CheckpointError, match="names a place down_blocks.0.motion_modules.99999"):
        sniffed({**released(**SMALL), **far})
    deep = {"down_blocks.77777.motion_modules.0.temporal_transformer.norm.weight": (32,)}
    with pytest.raises(CheckpointError, match="which no UNet has"):
        sniffed({**released(**SMALL), **deep})
    with pytest.raises(CheckpointError, match="has 60 levels, but no UNet has more than 8"):
        sniffed(released((32,) * 60, layers=1))
    with pytest.raises(CheckpointError, match="has 70 layers a block"):
        sniffed(released((32,), layers=70))
    with pytest.raises(CheckpointError, match="has 999999 channels"):
        sniffed(released((999999,), layers=1))
    thousands = {f"down_blocks.{i}.motion_modules.0.temporal_transformer.norm.weight": (32,)
                 for i in range(3000)}  # fmt: skip
    save_file({k: torch.zeros(s) for k, s in thousands.items()}, tmp_path / "m.safetensors")
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="which no UNet has"):
        load_motion_module(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="which no UNet has"):
        identify(tmp_path / "m.safetensors")
    assert time.process_time() - begun < 1


def test_positions_of_different_lengths_are_refused():
    shapes = released(**SMALL)
    key = next(key for key in shapes if is_position(key))
    with pytest.raises(CheckpointError, match="has 16 and 32 positions in different places"):
        sniffed({**shapes, key: (1, 16, 32)})


def test_a_shard_outside_its_folder_is_refused(tmp_path):
    motion = new_motion()
    save_file(dict(motion.state_dict()), tmp_path / "m.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "MotionAdapter"}')
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../m.safetensors"}}))
    with pytest.raises(CheckpointError, match="names ../m.safetensors, which is not beside it"):
        load_motion_module(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map from names to files"):
        load_motion_module(folder)


def test_planning_refuses_pia_in_generate(tmp_path):
    base = json.loads((TINY / "base" / "unet" / "config.json").read_text())
    motion = new_motion(
        tuple(base["block_out_channels"]), layers_per_block=base["layers_per_block"],
        mid_block=False, version="pia", conv_in_channels=2 * base["in_channels"] + 1,
    )  # fmt: skip
    save_motion_module(motion, tmp_path / "pia.safetensors")
    job = Job(name="ball", prompt={0: "a ball"}, seed=0, motion=str(tmp_path / "pia.safetensors"),
              width=64, height=64)  # fmt: skip
    with pytest.raises(CheckpointError, match="is a PIA module, which animates an image"):
        plan([job], offline=True)

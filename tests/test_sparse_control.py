"""SparseCtrl: both official checkpoint forms, and residuals as another implementation has them."""

import json

import pytest
import torch
from conftest import new_unet
from diffusers.models import ControlNetModel, SparseControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from animatediff_core.adapters.sparse_ctrl import load_sparse_control
from animatediff_core.checkpoints.families import CONFIGS
from animatediff_core.diffusion.residuals import Control, add_residuals
from animatediff_core.errors import CheckpointError
from animatediff_core.motion import VERSIONS, Conditions
from animatediff_core.motion.sparse_ctrl import SparseControlNet, sparse_condition

FRAMES = 3


def diffusers_model(reads: str, seed: int = 5) -> SparseControlNetModel:
    """diffusers' own, at the size of conftest's small UNet; no zero is left in it."""
    torch.manual_seed(seed)
    model = SparseControlNetModel(
        in_channels=4,
        conditioning_channels=4 if reads == "latents" else 3,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
        motion_max_seq_length=8,
        motion_num_attention_heads=8,
        use_simplified_condition_embedding=reads == "latents",
    ).eval()
    for name, parameter in model.named_parameters():
        if "controlnet_" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def official_names(model: SparseControlNetModel) -> dict[str, torch.Tensor]:
    """The renames of diffusers' conversion script for the released checkpoints, undone."""
    names = {}
    for key, tensor in model.state_dict().items():
        if ".motion_modules." in key:
            key = key.replace(".attn1.", ".attention_blocks.0.").replace(".norm3.", ".ff_norm.")
            key = key.replace(".norm1.", ".norms.0.")
            key = key.replace(".pos_embed.", ".attention_blocks.0.pos_encoder.")
            key = key.replace("motion_modules.0.", "motion_modules.0.temporal_transformer.")
        names[key] = tensor
    return names


def call(reads: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    side, channels = (4, 4) if reads == "latents" else (8, 3)  # one halving in the embedding
    pictures = {
        frame: torch.rand(channels, side, side, generator=generator) for frame in (0, FRAMES - 1)
    }
    return (
        torch.randn(2, 4, FRAMES, 4, 4, generator=generator),
        torch.tensor([10, 900]),
        torch.randn(2, 5, 16, generator=generator),
        sparse_condition(pictures, FRAMES),
    )


@pytest.mark.parametrize(
    ("reads", "form"),
    [("latents", "official"), ("pictures", "official"), ("latents", "wrapped"),
     ("pictures", "folder")],
)  # fmt: skip
def test_residuals_are_those_of_diffusers(tmp_path, reads, form):
    theirs = diffusers_model(reads)
    path = tmp_path / "sparse"
    if form == "folder":
        theirs.save_pretrained(path)
    else:
        path = tmp_path / "sparse.ckpt"
        names = official_names(theirs)
        torch.save({"controlnet": names} if form == "wrapped" else names, path)
    ours = load_sparse_control(path, new_unet(), frame_norm="clip")
    assert ours.reads == reads
    assert ours.max_frames == 8
    sample, time, text, condition = call(reads)
    with torch.no_grad():
        down, mid = theirs(
            sample, time, text.repeat_interleave(FRAMES, 0),
            condition[:, :-1].expand(2, -1, -1, -1, -1), conditioning_scale=0.7,
            conditioning_mask=condition[:, -1:].expand(2, -1, -1, -1, -1), return_dict=False,
        )  # fmt: skip
        control = Control(model=ours, condition=condition, strength=0.7)
        added = add_residuals([control], sample, time, text, Conditions())
    assert len(added.down_residuals) == len(down)
    for here, there in zip((*added.down_residuals, added.mid_residual), (*down, mid), strict=True):
        assert there.abs().max() > 0.01
        assert (here - there).abs().max() < 1e-4


def test_the_official_norm_is_per_frame(tmp_path):
    save_file(official_names(diffusers_model("latents")), tmp_path / "s.safetensors")
    sample, time, text, condition = call("latents")
    states = text[:1].repeat_interleave(FRAMES, 0)
    outputs = []
    for norm in ("frame", "clip"):
        model = load_sparse_control(tmp_path / "s.safetensors", new_unet(), frame_norm=norm)
        with torch.no_grad():
            outputs.append(model(condition, time[:1], states)[1])
    assert not torch.allclose(*outputs, atol=1e-3)


@pytest.mark.parametrize("reads", ["latents", "pictures"])
def test_full_size_structure_is_the_released_one(reads):
    """diffusers' conversion script loads the released files strictly into these."""
    with torch.device("meta"):
        config = UNet2DConditionModel.load_config(CONFIGS / "sd15" / "unet")
        unet = UNet2DConditionModel.from_config(config)
        ours = SparseControlNet(unet, VERSIONS["v3"], reads)
        theirs = SparseControlNetModel(
            conditioning_channels=4 if reads == "latents" else 3,
            use_simplified_condition_embedding=reads == "latents",
        )
    named = {k: tuple(t.shape) for k, t in theirs.state_dict().items() if "pos_embed" not in k}
    here = {}
    for key, tensor in ours.state_dict().items():
        name = key.removeprefix("controlnet.").replace(".temporal_transformer.", ".")
        if ".motion_modules." in name:
            name = name.replace(".attention_blocks.0.", ".attn1.").replace(".norms.0.", ".norm1.")
            name = name.replace(".ff_norm.", ".norm3.")
        here[name] = tuple(tensor.shape)
    assert here == named


def edited(names: dict[str, torch.Tensor], edit: str) -> dict[str, torch.Tensor]:
    first = next(iter(names))
    if edit == "lacks":
        names.pop("mid_block.resnets.0.norm1.weight")
    elif edit == "lacks motion":
        names.pop(next(key for key in names if key.endswith("ff_norm.bias")))
    elif edit == "unknown":
        names["mid_block.motion_modules.0.temporal_transformer.norm.weight"] = torch.zeros(64)
    elif edit == "misshapen":
        names[first] = torch.zeros(3)
    elif edit == "positions":
        for key in [k for k in names if k.endswith(".pe")]:
            names[key] = names[key] + 0.1
    elif edit == "no control":
        for key in [k for k in names if k.startswith("controlnet_")]:
            names.pop(key)
    return names


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("lacks", "lacks 1 of .*mid_block.resnets.0.norm1.weight"),
        ("lacks motion", "lacks 1 of .*temporal_transformer.transformer_blocks.0.ff_n"),
        ("unknown", "has 1 unknown tensors"),
        ("misshapen", "has 1 tensors of another shape"),
        ("no control", "is no SparseCtrl encoder"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path, edit, message):
    names = edited(official_names(diffusers_model("latents")), edit)
    save_file(names, tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_sparse_control(tmp_path / "s.safetensors", new_unet())


def test_positions_of_its_own_are_used(tmp_path):
    names = edited(official_names(diffusers_model("latents")), "positions")
    save_file(names, tmp_path / "s.safetensors")
    control = load_sparse_control(tmp_path / "s.safetensors", new_unet())
    key = next(key for key in names if key.endswith("pos_encoder.pe"))
    place = key.removeprefix("module.").removeprefix("controlnet.").removesuffix(".pos_encoder.pe")
    assert torch.equal(control.get_submodule(place).positions, names[key][0])


def test_another_family_and_another_kind_are_refused(tmp_path):
    diffusers_model("latents").save_pretrained(tmp_path / "sparse")
    with pytest.raises(CheckpointError, match="is a SparseCtrl for UNet 32-64 but the base"):
        load_sparse_control(tmp_path / "sparse", new_unet((32, 32)))
    settings = json.loads((tmp_path / "sparse" / "config.json").read_text())
    settings["_class_name"] = "ControlNetModel"
    (tmp_path / "sparse" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="says ControlNetModel but its weights"):
        load_sparse_control(tmp_path / "sparse", new_unet())
    ControlNetModel.from_unet(new_unet()).save_pretrained(tmp_path / "control")
    with pytest.raises(CheckpointError, match="is a ControlNet, which goes into controlnets"):
        load_sparse_control(tmp_path / "control", new_unet())

"""Injected models: the folder that we and stock diffusers open alike, and the plain files."""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import TINY, new_motion, pictures
from diffusers import AnimateDiffPipeline, PIAPipeline
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from diffusers.models import MotionAdapter, UNetMotionModel
from safetensors.torch import load_file, save_file

from animatediff_core import inflate, load_motion_module, save_motion_module
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.checkpoints.write import together
from animatediff_core.diffusion.encoders import encode
from animatediff_core.errors import AnimateDiffError, CheckpointError
from animatediff_core.jobs import Adapter, Embedding, defaults_of, kept_adapters
from animatediff_core.planning.models import ModelSpec, find_model
from animatediff_core.runs import inject
from animatediff_core.runs.difference import one_step_difference
from animatediff_core.sampling.loading import load_model

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
MOTION_LAYER = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
    "attention_blocks.0.processor.to_q_lora"
)


def tiny_motion(**changes):
    settings = {"norm_num_groups": 16, "num_attention_heads": 8, "max_frames": 16, **changes}
    return new_motion((48, 96, 160), **settings)


def write_lora(path, layer, width, marks=("lora_up", "lora_down"), seed=0):
    draw = torch.Generator().manual_seed(seed)
    up, down = marks
    save_file(
        {
            f"{layer}.{up}.weight": torch.randn(width, 2, generator=draw),
            f"{layer}.{down}.weight": torch.randn(2, width, generator=draw),
        },
        path,
    )
    return str(path)


@pytest.fixture
def parts(tmp_path):
    """A LoRA, and a motion module with diffusers' norms."""
    save_motion_module(tiny_motion(frame_norm="clip"), tmp_path / "m.safetensors")
    lora = write_lora(tmp_path / "l.safetensors", LAYER, 48)
    return ModelSpec(
        base="bundled:tiny",
        motion=str(tmp_path / "m.safetensors"),
        loras=(Adapter(path=lora, scale=0.5),),
    )


@pytest.fixture
def rich_parts(tmp_path):
    """Two LoRAs of one name, one of them for the text, a MotionLoRA and a word of two vectors."""
    (tmp_path / "text").mkdir()
    save_motion_module(tiny_motion(), tmp_path / "m.safetensors")
    save_file(
        {"<look>": torch.randn(2, 128, generator=torch.Generator().manual_seed(5))},
        tmp_path / "word.safetensors",
    )
    return ModelSpec(
        base="bundled:tiny",
        motion=str(tmp_path / "m.safetensors"),
        loras=(
            Adapter(path=write_lora(tmp_path / "l.safetensors", LAYER, 48), scale=0.5),
            Adapter(path=write_lora(tmp_path / "text" / "l.safetensors", TEXT_LAYER, 128)),
        ),
        motion_loras=(
            Adapter(path=write_lora(tmp_path / "ml.safetensors", MOTION_LAYER, 48,
                                    ("up", "down")), scale=-0.3),
        ),
        embeddings=(Embedding(path=str(tmp_path / "word.safetensors")),),
    )  # fmt: skip


def loaded(parts):
    base, motion = load_model(find_model(parts, offline=True), offline=True)
    return [base.unet, *base.text_encoders, motion, base.vae]


def same(one, other):
    theirs = other.state_dict()
    return theirs.keys() == one.state_dict().keys() and all(
        torch.equal(tensor, theirs[key]) for key, tensor in one.state_dict().items()
    )


def test_stock_diffusers_opens_it_and_agrees_where_the_norm_does(parts, tmp_path):
    planned = inject.plan(parts, tmp_path / "model")
    assert inject.run(planned).difference == 0
    folder = tmp_path / "model"
    pipeline = AnimateDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    x = torch.randn(1, 4, 4, 8, 8)
    text = torch.randn(1, 5, 128)
    animated = inflate(
        load_base(str(folder)).unet, load_motion_module(folder / "motion_module.safetensors")
    )
    with torch.no_grad():
        theirs = pipeline.unet(x, 500, text.repeat_interleave(4, 0)).sample
        ours = animated(x, 500, text)
    assert (theirs - ours).abs().max() < 1e-4
    frames = pipeline(
        "a red circle", num_frames=4, width=32, height=32, num_inference_steps=2
    ).frames
    assert len(frames[0]) == 4


@pytest.mark.parametrize("keep", [False, True])
def test_the_folder_is_its_parts_bit_for_bit(rich_parts, tmp_path, keep):
    inject.run(inject.plan(rich_parts, tmp_path / "model", keep_adapters=keep))
    again = loaded(ModelSpec(base=str(tmp_path / "model")))
    assert all(same(*pair) for pair in zip(loaded(rich_parts), again, strict=True))
    plain = load_base(str(tmp_path / "model")).unet
    assert same(plain, again[0]) is not keep


def test_further_adapters_add_to_those_that_the_folder_keeps(rich_parts, tmp_path):
    inject.run(inject.plan(rich_parts, tmp_path / "model", keep_adapters=True))
    more = Adapter(path=write_lora(tmp_path / "x.safetensors", LAYER, 48, seed=1), scale=2.0)
    with_more = replace(rich_parts, loras=(*rich_parts.loras, more))
    again = loaded(ModelSpec(base=str(tmp_path / "model"), loras=(more,)))
    assert all(same(*pair) for pair in zip(loaded(with_more), again, strict=True))


def test_kept_adapters_are_files_of_their_own_names_and_listed(rich_parts, tmp_path):
    inject.run(inject.plan(rich_parts, tmp_path / "model", keep_adapters=True))
    names = {p.name for p in (tmp_path / "model" / "adapters").iterdir()}
    assert names == {"l.safetensors", "l-2.safetensors", "ml.safetensors"}
    record = json.loads((tmp_path / "model" / "animatediff.json").read_text())
    assert record["adapters"] == [
        {"role": "lora", "file": "l.safetensors", "scale": 0.5},
        {"role": "lora", "file": "l-2.safetensors", "scale": 1.0},
        {"role": "motion_lora", "file": "ml.safetensors", "scale": -0.3},
    ]
    assert len(AnimateDiffPipeline.from_pretrained(tmp_path / "model").unet.state_dict()) > 0


@pytest.mark.parametrize("file", ["../l.safetensors", "/l.safetensors", "..", ""])
def test_a_record_that_points_out_of_its_folder_is_refused(rich_parts, tmp_path, file):
    inject.run(inject.plan(rich_parts, tmp_path / "model", keep_adapters=True))
    record = tmp_path / "model" / "animatediff.json"
    content = json.loads(record.read_text())
    content["adapters"][0]["file"] = file
    record.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="its list of adapters cannot be read"):
        find_model(ModelSpec(base=str(tmp_path / "model")), offline=True)


def test_a_record_without_end_is_refused(tmp_path):
    (tmp_path / "animatediff.json").write_text('{"adapters": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="animatediff.json: is nested too deeply; inject the"):
        kept_adapters(tmp_path)
    assert defaults_of(str(tmp_path)) == {}


def test_every_source_is_recorded(rich_parts, tmp_path):
    inject.run(inject.plan(rich_parts, tmp_path / "model"))
    record = json.loads((tmp_path / "model" / "animatediff.json").read_text())
    assert record["animatediff"] == version("animatediff")
    assert record["defaults"]["guidance_scale"] == 3.0  # as the preset tiny says
    sources = record["sources"]
    assert [(s["role"], s.get("scale")) for s in sources] == [
        ("base", None), ("motion", None), ("lora", 0.5), ("lora", 1.0), ("motion_lora", -0.3),
        ("embedding", None),
    ]  # fmt: skip
    for source in sources[1:]:
        content = Path(source["path"]).read_bytes()
        assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert len(sources[0]["sha256"]) == 64


def test_stock_diffusers_knows_the_words_of_an_injected_model(rich_parts, tmp_path):
    inject.run(inject.plan(rich_parts, tmp_path / "model"))
    pipeline = AnimateDiffPipeline.from_pretrained(tmp_path / "model")
    base, _ = load_model(find_model(rich_parts, offline=True), offline=True)
    with torch.no_grad():
        theirs = pipeline.encode_prompt("a <look> circle", "cpu", 1, False)[0]
    assert torch.equal(theirs, encode(base, ["a <look> circle"])[0])


def test_reduced_precision_gives_what_the_parts_give_in_it(rich_parts, tmp_path):
    inject.run(inject.plan(rich_parts, tmp_path / "model", dtype="bf16"))
    stored = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    *ours, vae = loaded(rich_parts)
    *again, vae_again = loaded(ModelSpec(base=str(tmp_path / "model")))
    assert same(vae, vae_again)  # stays fp32, as it is run
    for one, other in zip(ours, again, strict=True):
        assert same(one.to(torch.bfloat16), other.to(torch.bfloat16))


def test_the_prediction_type_goes_into_the_folder(parts, tmp_path):
    assert load_base("bundled:tiny").prediction_type == "v_prediction"
    inject.run(inject.plan(replace(parts, prediction_type="sample"), tmp_path / "model"))
    assert load_base(str(tmp_path / "model")).prediction_type == "sample"
    scheduler = AnimateDiffPipeline.from_pretrained(tmp_path / "model").scheduler
    assert scheduler.config.prediction_type == "sample"
    assert scheduler.config.beta_schedule == "linear"


@pytest.mark.parametrize(
    ("mid_block", "frames", "kind"),
    [(False, 24, "animatediff_v1"), (True, 32, "animatediff_v2"), (False, 32, "animatediff_v3")],
)
def test_a_motion_file_is_known_to_other_programs_and_comes_back_exactly(
    tmp_path, mid_block, frames, kind
):
    motion = new_motion((32, 64, 64, 64), mid_block=mid_block, max_frames=frames, version="mine",
                        resnet_norm="clip", layers_per_block=2)  # fmt: skip
    path = tmp_path / "motion.safetensors"
    save_motion_module(motion, path)
    content = load_file(path)
    sites = 21 if mid_block else 20
    assert len(content) == 28 * sites  # the official count, two of them positions
    assert infer_diffusers_model_type(content) == kind
    again = load_motion_module(path)
    assert again.config == motion.config
    assert same(motion, again)
    motion_adapter(motion).save_config(tmp_path / "config")
    stock = MotionAdapter.from_single_file(str(path), config=str(tmp_path / "config"))
    theirs = stock.state_dict()
    for key, tensor in motion_adapter(motion).state_dict().items():
        assert torch.equal(theirs[key], tensor), key


@pytest.mark.parametrize("resnet_norm", ["frame", "clip"])
@pytest.mark.parametrize("frame_norm", ["frame", "clip"])
def test_the_measured_difference_is_that_to_stock_diffusers(frame_norm, resnet_norm):
    base = load_base("bundled:tiny")
    motion = tiny_motion(frame_norm=frame_norm, resnet_norm=resnet_norm)
    measured = one_step_difference(base, motion)
    noise = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = encode(base, [""])[0]
        animated = inflate(base.unet, motion)
        ours = animated(noise, 500, text)
        animated.deflate()
        stock = UNetMotionModel.from_unet2d(base.unet, motion_adapter(motion)).eval()
        theirs = stock(noise, 500, text.repeat_interleave(4, 0)).sample
    assert measured == pytest.approx(float((ours - theirs).norm() / ours.norm()), abs=1e-5)
    assert (measured == 0) == ((frame_norm, resnet_norm) == ("clip", "frame"))


def test_a_pia_module_goes_into_stock_diffusers_pia_pipeline(parts, tmp_path):
    motion = tiny_motion(version="pia", resnet_norm="clip", conv_in_channels=9)
    save_motion_module(motion, tmp_path / "pia.safetensors")
    planned = inject.plan(replace(parts, motion=str(tmp_path / "pia.safetensors")), tmp_path / "m")
    assert inject.run(planned).difference > 0
    pipeline = PIAPipeline.from_pretrained(tmp_path / "m")
    assert pipeline.unet.conv_in.weight.shape[1] == 9


def test_a_model_that_predicts_no_numbers_is_not_written(parts, tmp_path):
    tensors = {key: 1e18 * tensor for key, tensor in load_file(parts.loras[0].path).items()}
    save_file(tensors, tmp_path / "huge.safetensors")
    huge = Adapter(path=str(tmp_path / "huge.safetensors"), scale=10.0)
    parts = replace(parts, motion=None, loras=(huge,))
    with pytest.raises(CheckpointError, match="predicts values that are no numbers; lower"):
        inject.run(inject.plan(parts, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_weight_that_is_no_number_is_named_and_not_written(parts, tmp_path, monkeypatch):
    planned = inject.plan(parts, tmp_path / "model")
    base, motion = load_model(planned.found, offline=True)
    base.vae.decoder.conv_in.bias.data[3] = float("nan")
    monkeypatch.setattr(inject, "load_model", lambda *_, **__: (base, motion))
    with pytest.raises(CheckpointError, match="AutoencoderKL's decoder.conv_in.bias holds values"):
        inject.run(planned)
    assert not (tmp_path / "model").exists()


def test_a_kept_lora_of_peft_keeps_its_settings(parts, tmp_path):
    lora = tmp_path / "peft" / "adapter_model.safetensors"
    lora.parent.mkdir()
    write_lora(lora, LAYER, 48)
    (lora.parent / "adapter_config.json").write_text('{"lora_alpha": 7}')
    two = tuple(Adapter(path=str(path)) for path in (lora, lora.parent))
    inject.run(inject.plan(replace(parts, loras=two), tmp_path / "model", keep_adapters=True))
    kept = kept_adapters(tmp_path / "model")["lora"]
    assert [Path(one.path).name for one in kept] == ["peft", "peft-2"]
    for one in kept:
        names = {path.name for path in Path(one.path).iterdir()}
        assert names == {"adapter_model.safetensors", "adapter_config.json"}


def test_outputs_come_together_or_not_at_all(parts, tmp_path):
    out = tmp_path / "out"
    folder, file = out / "model", out / "motion.safetensors"
    planned = inject.plan(parts, folder, motion_file=file)

    def write():
        with together(planned.outputs) as (beside, other):
            beside.mkdir()
            other.write_text("ours")
            file.write_text("came in between")

    with pytest.raises(CheckpointError, match=r"motion.safetensors: exists already"):
        write()
    assert [p.name for p in out.iterdir()] == ["motion.safetensors"]
    assert file.read_text() == "came in between"
    file.unlink()
    assert inject.run(planned).outputs == [folder, file]
    assert {p.name for p in out.iterdir()} == {"model", "motion.safetensors"}


def test_a_folder_that_is_there_is_not_touched(parts, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="exists already"):
        inject.plan(parts, tmp_path / "model")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["mine.txt"]


WRONG = {
    "nothing": ({}, "nothing to write; give -o FOLDER, --motion-file or --single-file"),
    "suffix": ({"motion_file": "m.ckpt"}, "must end in .safetensors"),
    "there": ({"motion_file": "m.safetensors"}, "m.safetensors: exists already"),
    "one place": ({"motion_file": "a.safetensors", "single_file": "a.safetensors"}, "in one place"),
    "inside": ({"output": "new", "motion_file": "new/m.safetensors"}, "files outside the folder"),
    "dtype": ({"output": "new", "dtype": "fp8"}, "no dtype 'fp8'; use fp32, fp16, bf16"),
    "family": ({"output": "new", "single_file": "s.safetensors"},
               "bundled:tiny is UNet 48-96-160, but the layout is only for SD1.5, SD2, SDXL"),
    "moved nowhere": ({"single_file": "s.safetensors"},
                      "--single-file alone holds nothing that moves; leave --motion, "),
    "kept nowhere": ({"motion_file": "k.safetensors", "keep_adapters": True},
                     "--keep-adapters is for the folder"),
    "kept rounded": ({"output": "new", "keep_adapters": True, "dtype": "fp16"},
                     "--keep-adapters needs --dtype fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_anything_is_written(parts, tmp_path, name):
    given, message = WRONG[name]
    places = {k: tmp_path / v if isinstance(v, str) and k != "dtype" else v
              for k, v in given.items()}  # fmt: skip
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AnimateDiffError) as caught:
        inject.plan(parts, places.pop("output", None), **places)
    assert message in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_the_command_gives_the_same_clips_from_parts_folder_and_kept_adapters(
    command, rich_parts, tmp_path
):
    more = write_lora(tmp_path / "x.safetensors", LAYER, 48, seed=1)
    given = ["--base", "bundled:tiny", "--motion", rich_parts.motion]
    for one in rich_parts.loras:
        given += ["--lora", f"{one.path}:{one.scale}"]
    for one in rich_parts.motion_loras:
        given += ["--motion-lora", f"{one.path}:{one.scale}"]
    given += ["--embedding", rich_parts.embeddings[0].path]
    merged = command("inject", *given, "-o", "merged", "--motion-file", "motion.safetensors")
    assert merged.stdout == "merged\nmotion.safetensors\n", merged.stderr
    assert "differs from ours by 0." in merged.stderr
    kept = command("inject", *given, "-o", "kept", "--keep-adapters", "--json")
    record = json.loads(kept.stdout)
    assert record["folder"] == "kept"
    assert 0 < record["difference"] < 2

    def clip(*arguments):
        made = command("generate", *arguments, "--prompt", "a <look> circle", "--steps", 2, "-L", 4,
                       "-W", 32, "-H", 32, "--seed", 1, "-o", "clips")  # fmt: skip
        assert made.returncode == 0, made.stderr
        return pictures(tmp_path / made.stdout.strip())

    first = clip(*given)
    assert clip("--base", "merged") == first
    assert clip("--base", "kept") == first
    with_more = clip("--base", "kept", "--lora", f"{more}:2")
    assert with_more == clip(*given, "--lora", f"{more}:2")
    assert with_more != first


def test_a_dry_run_writes_nothing_and_a_wrong_request_is_one_sentence(asked, tmp_path):
    done = asked("inject", "--base", "bundled:tiny", "-o", "model", "--dry-run")
    assert (done.exit_code, done.stdout) == (0, "model\n")
    wrong = asked("inject", "--base", "bundled:tiny")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: nothing to write; give -o FOLDER")
    assert not list(tmp_path.iterdir())


def test_a_damaged_folder_is_named(tmp_path):
    shutil.copytree(TINY / "base", tmp_path / "base")
    weights = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_base(str(tmp_path / "base"))
    shutil.rmtree(tmp_path / "base" / "vae")
    with pytest.raises(CheckpointError, match="no vae/"):
        load_base(str(tmp_path / "base"))

"""Training: real steps on real and drawn videos, exact resume, honest errors."""

import json
import random
import shutil
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from safetensors.torch import load_file
from small_model import write_sdxl

from animatediff_core import apply_lora, inflate, load_motion_module, motion_loss
from animatediff_core.adapters.textual_inversion import apply_embedding
from animatediff_core.checkpoints.loading import load_base
from animatediff_core.diffusion.encoders import encode
from animatediff_core.diffusion.schedules import training_scheduler
from animatediff_core.errors import CheckpointError, TrainingError
from animatediff_core.media.image import write_image
from animatediff_core.runs.train import Checked, Prior, Skipped, Written, run
from animatediff_core.tiny.clips import write_clips
from animatediff_core.training.clips import Clips, list_clips, read_window, window
from animatediff_core.training.config_file import load_train_config, parse_override
from animatediff_core.training.loop import Loop, Step, learning_rate
from animatediff_core.training.pixels import to_pixels
from animatediff_core.training.stage import Stage
from animatediff_core.training.stages import open_stage
from animatediff_core.training.stages.lora import KOHYA, LoraLayers, kohya_layers


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    list(write_clips(folder, count=6))
    return folder


def config(drawn, tmp_path, **changes):
    path = tmp_path / "train.yaml"
    given = {
        "stage": "motion",
        "base": str(TINY / "base"),
        "max_train_steps": 4,
        "train_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpointing_steps": 2,
        "data": {
            "video_folder": str(drawn / "clips"),
            "csv_path": str(drawn / "clips.csv"),
            "sample_size": 32,
            "sample_stride": 2,
            "sample_n_frames": 4,
        },
    }
    if changes.get("stage", "motion") == "motion":
        given["max_frames"] = 16
    data = changes.pop("data", {})
    given["data"] |= data
    path.write_text(yaml.safe_dump(given | changes))
    return load_train_config(path)


def steps_of(events):
    return [e for e in events if isinstance(e, Step)]


def test_resumed_run_gives_the_weights_of_an_uninterrupted_one(drawn, tmp_path):
    whole = config(drawn, tmp_path, ema_decay=0.9)
    list(run(whole, tmp_path / "whole"))
    cut = iter(run(whole, tmp_path / "cut"))
    for event in cut:
        if isinstance(event, Step) and event.step == 3:
            break
    cut.close()
    again = steps_of(run(whole, tmp_path / "cut", resume=True))
    assert [step.step for step in again] == [3, 4]
    one = load_file(tmp_path / "whole" / "motion_module.safetensors")
    other = load_file(tmp_path / "cut" / "motion_module.safetensors")
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert any(t.abs().max() > 0 for k, t in one.items() if "proj_out" in k)


class Line(torch.nn.Module):
    """A loss whose gradient is the mean of its samples: what accumulation must keep."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, latents, noise, timesteps, text, conditions=None):
        return (latents.mean((1, 2, 3, 4)) * self.weight + self.weight).mean()


def test_four_micro_steps_of_one_equal_one_step_of_four(drawn, tmp_path):
    norms = []
    for batch, accumulation in ((4, 1), (1, 4)):
        made = config(
            drawn,
            tmp_path,
            max_train_steps=1,
            train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        line = Line()
        stage = Stage(
            loss=line,
            parameters=dict(line.named_parameters()),
            embed=lambda captions: (torch.zeros(len(captions), 1, 1), None),
            file_name="line.safetensors",
        )
        vae = load_base("bundled:tiny").vae
        loop = Loop(made, stage, Clips(list_clips(made), made, None), vae)
        (step,) = loop.steps()
        norms.append(step.gradient_norm)
    # the VAE's posterior noise is drawn for each micro-step, and is small
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_frozen_base_and_a_file_of_the_trained_part_only(drawn, tmp_path):
    made = config(drawn, tmp_path, validation={"prompts": ["a"], "every": 2, "steps": 2})
    written = [e for e in run(made, tmp_path / "o") if isinstance(e, Written)]
    assert written[-1].final
    motion = load_motion_module(written[-1].path)
    assert (motion.config.version, motion.config.max_frames) == ("v3", 16)
    assert motion.config.betas == (0.00085, 0.012, "linear")
    assert all("motion_modules" in key for key in load_file(written[-1].path))
    names = {p.name for p in (tmp_path / "o").rglob("*") if p.is_file()}
    assert {"state.pt", "loss.csv", "loss.png", "step-2.gif", "step-4.gif"} <= names


def test_image_stage_writes_a_model_that_opens(drawn, tmp_path):
    made = config(drawn, tmp_path, stage="image", max_train_steps=2, train_batch_size=2)
    list(run(made, tmp_path / "o"))
    trained = load_file(tmp_path / "o" / "unet.safetensors")
    before = load_file(TINY / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == before.keys()
    assert (tmp_path / "o" / "base" / "model_index.json").is_file()
    motion = config(drawn, tmp_path, unet=str(tmp_path / "o" / "unet.safetensors"))
    assert steps_of(run(motion, tmp_path / "m"))


@pytest.mark.parametrize(("conv_rank", "pairs"), [(None, 56), (2, 86)])
def test_lora_stage_writes_what_generate_merges(drawn, tmp_path, conv_rank, pairs):
    made = config(
        drawn, tmp_path, stage="lora", lora_rank=4, lora_conv_rank=conv_rank, max_train_steps=6,
        learning_rate=0.02, weight_decay=0.0,
    )  # fmt: skip
    *_, written = run(made, tmp_path / "o")
    assert written.path == tmp_path / "o" / "lora.safetensors"
    base, plain = load_base(str(TINY / "base")), load_base(str(TINY / "base"))
    trained = load_file(written.path)
    assert apply_lora(base, written.path, 1.0) == len(trained) // 3 == pairs
    layers = LoraLayers(
        kohya_layers(plain.unet, bool(conv_rank)), 4, torch.Generator(), conv_rank or 0, KOHYA
    )
    with torch.no_grad():
        for key, matrix in layers.by_key().items():
            matrix.copy_(trained[key])
        x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 128)
        merged, beside = (m.unet(x, 300, text, return_dict=False)[0] for m in (base, plain))
        layers.remove()
        without = plain.unet(x, 300, text, return_dict=False)[0]
    assert torch.allclose(merged, beside, atol=1e-4)
    assert (merged - without).abs().max() > 1e-3


def test_dreambooth_trains_beside_pictures_of_the_base(drawn, tmp_path):
    made = config(
        drawn, tmp_path, stage="dreambooth", train_batch_size=2, max_train_steps=2,
        prior_prompts=["a red circle", "a blue star"], prior_images=3, prior_weight=0.0,
    )  # fmt: skip
    events = list(run(made, tmp_path / "o"))
    assert [e.done for e in events if isinstance(e, Prior)] == [2, 3]
    captions = [(tmp_path / "o" / "prior" / f"{n:04}.txt").read_text() for n in range(3)]
    assert captions == ["a red circle\n", "a blue star\n", "a red circle\n"]
    assert (tmp_path / "o" / "base" / "model_index.json").is_file()
    heavy = config(
        drawn, tmp_path, stage="dreambooth", train_batch_size=2, max_train_steps=2,
        prior_prompts=["a red circle", "a blue star"], prior_images=3, prior_weight=9.0,
    )  # fmt: skip
    (tmp_path / "o" / "prior").rename(tmp_path / "prior")
    (tmp_path / "p").mkdir()
    (tmp_path / "prior").rename(tmp_path / "p" / "prior")
    again = list(run(heavy, tmp_path / "p"))
    assert not [e for e in again if isinstance(e, Prior)]
    assert steps_of(again)[0].loss > 2 * steps_of(events)[0].loss


def test_every_second_sample_is_a_prior_picture(drawn, tmp_path):
    made = config(drawn, tmp_path)
    files = list_clips(made)
    clips = Clips(files[:3], made, None, prior=files[3:])
    captions = {clips[number].caption for number in range(0, 24, 2)} - {""}
    assert captions <= {file.caption for file in files[:3]}
    captions = {clips[number].caption for number in range(1, 24, 2)} - {""}
    assert captions <= {file.caption for file in files[3:]}


def test_textual_inversion_moves_only_the_words_own_vectors(drawn, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        write_image(np.full((32, 32, 3), 90 * number, np.uint8), folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a <look> circle")
    made = config(
        drawn, tmp_path, stage="textual-inversion", word="<look>", init_word="red", num_vectors=2,
        weight_decay=0.0, learning_rate=0.1, data={"video_folder": str(folder), "csv_path": None},
    )  # fmt: skip
    events = list(run(made, tmp_path / "o"))
    assert steps_of(events)[0].gradient_norm > 0
    ((word, vectors),) = load_file(events[-1].path).items()
    assert (word, tuple(vectors.shape)) == ("<look>", (2, 128))
    base = load_base(str(TINY / "base"))
    tokens = base.tokenizers[0]("red", add_special_tokens=False).input_ids
    red = base.text_encoders[0].get_input_embeddings().weight[tokens[0]]
    assert (vectors - red).abs().amax(1).min() > 0.05
    assert apply_embedding(base, events[-1].path) == "<look>"
    known = made.replace(word="red")
    with pytest.raises(TrainingError, match="the model knows 'red' already"):
        list(run(known, tmp_path / "p"))


def test_settings_of_another_stage_are_refused(drawn, tmp_path):
    with pytest.raises(TrainingError, match="max_frames: belongs to stage motion, this is st"):
        config(drawn, tmp_path, stage="image", max_frames=8)
    with pytest.raises(TrainingError, match="lora_rank: belongs to stage lora"):
        config(drawn, tmp_path, lora_rank=8)


def test_time_spent_waiting_for_data_is_told(drawn, tmp_path, asked, monkeypatch):
    config(drawn, tmp_path, max_train_steps=2)
    read, late, clock = Clips.__getitem__, [0.0], time.perf_counter

    def slowly(self, index):
        late[0] += 5
        return read(self, index)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    shares = []
    for folder in ("quick", "slow"):
        done = asked("train", "train.yaml", "-o", folder, "--json")
        assert done.exit_code == 0, done.stderr
        shares.append(json.loads(done.stdout)["idle"])
        monkeypatch.setattr(Clips, "__getitem__", slowly)
    assert 0 <= shares[0] < shares[1] < 1
    assert shares[1] > 0.5


def test_cached_latents_train_like_decoded_videos(drawn, tmp_path):
    plain = [s.loss for s in steps_of(run(config(drawn, tmp_path), tmp_path / "a"))]
    cached = config(drawn, tmp_path, data={"cache_folder": str(tmp_path / "latents")})
    losses = [s.loss for s in steps_of(run(cached, tmp_path / "b"))]
    assert losses == pytest.approx(plain, rel=0.02)
    assert len(list((tmp_path / "latents").iterdir())) == 6


def test_the_loss_falls(drawn, tmp_path):
    made = config(drawn, tmp_path, max_train_steps=20, caption_dropout=0.0, learning_rate=3e-3)
    losses = [s.loss for s in steps_of(run(made, tmp_path / "o"))]
    assert sum(losses[-7:]) < 0.95 * sum(losses[:7])


def held_out_loss(motion_file, videos) -> float:
    """Over windows of a video that training never saw, at fixed noise and timesteps."""
    base = load_base("bundled:tiny")
    motion = load_motion_module(motion_file)
    animated = inflate(base.unet, motion)
    text = encode(base, [""])[0]
    scheduler = training_scheduler(motion.config.betas, prediction_type=base.prediction_type)
    rng, generator, losses = random.Random(5), torch.Generator().manual_seed(5), []
    for timestep in range(100, 900, 100):
        pixels = read_window(videos[-1], 4, 2, (32, 32), rng)
        latents = base.vae.encode(pixels).latent_dist.mean.transpose(0, 1).unsqueeze(0)
        noise = torch.randn(latents.shape, generator=generator)
        with torch.no_grad():
            loss = motion_loss(animated, scheduler, latents, noise, torch.tensor([timestep]), text)
        losses.append(float(loss))
    return sum(losses) / len(losses)


def test_training_on_real_videos_lowers_the_loss_on_held_out_windows(tmp_path, videos):
    captions = ["people on bicycles", "a man in a car"]
    rows = [f"{v.stem},{c},real" for v, c in zip(videos[1:3], captions, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["videoid,name,page_dir", *rows]) + "\n")
    real = {
        "video_folder": str(videos[0].parent),
        "csv_path": str(tmp_path / "list.csv"),
        "cache_folder": str(tmp_path / "latents"),
    }
    start = TINY / "motion_module.safetensors"
    made = config(tmp_path, tmp_path, motion=str(start), max_train_steps=25, data=real)
    list(run(made, tmp_path / "o"))
    after = held_out_loss(tmp_path / "o" / "motion_module.safetensors", videos)
    assert after < 0.98 * held_out_loss(start, videos)


def test_the_base_models_own_noise_is_learned(drawn, tmp_path):
    """A model that ends in pure noise (zero SNR) and predicts velocity is trained as such."""
    base = load_base(str(TINY / "base"))
    base.scheduler_config |= {"rescale_betas_zero_snr": True}
    made = config(drawn, tmp_path, prediction_type="v_prediction", variant=None)
    base.scheduler_config["prediction_type"] = made.prediction_type
    scheduler = open_stage(made, base, offline=True).loss.scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[-1] < 1e-6
    with pytest.raises(CheckpointError, match="no weights of variant fp16"):
        list(run(config(drawn, tmp_path, variant="fp16"), tmp_path / "o"))


@pytest.mark.parametrize("stage", ["motion", "lora", "dreambooth"])
def test_a_base_with_two_text_encoders_is_trained_on_pooled_text_and_sizes(drawn, tmp_path, stage):
    write_sdxl(tmp_path / "base")
    further = {"prior_prompts": ["a thing"], "prior_images": 2} if stage == "dreambooth" else {}
    made = config(
        drawn, tmp_path, base=str(tmp_path / "base"), stage=stage, max_train_steps=1,
        train_batch_size=2, validation={"prompts": ["a red circle"], "steps": 1, "every": 1},
        **further,
    )  # fmt: skip
    events = list(run(made, tmp_path / "o"))
    assert [s.loss > 0 for s in steps_of(events)] == [True]
    assert (tmp_path / "o" / "validation").is_dir()


def test_a_run_can_start_from_a_module(drawn, tmp_path):
    start = TINY / "motion_module.safetensors"
    made = config(drawn, tmp_path, motion=str(start), max_train_steps=1, learning_rate=1e-9)
    list(run(made, tmp_path / "o"))
    one = load_motion_module(start)
    other = load_motion_module(tmp_path / "o" / "motion_module.safetensors")
    assert one.config == other.config
    for key, tensor in one.state_dict().items():
        assert torch.allclose(tensor, other.state_dict()[key], atol=1e-6)


def test_precision_that_this_machine_lacks_is_refused(drawn, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("fp16 works on this machine")
    with pytest.raises(TrainingError, match="mixed_precision fp16 does not work"):
        list(run(config(drawn, tmp_path, mixed_precision="fp16"), tmp_path / "o"))


def test_runs_of_one_process_may_differ_in_precision(drawn, tmp_path):
    for precision in ("bf16", "no"):
        made = config(drawn, tmp_path, mixed_precision=precision, max_train_steps=1)
        assert steps_of(run(made, tmp_path / precision))


def test_a_corrupt_video_is_named_and_skipped_within_the_budget(drawn, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(drawn / "clips", folder)
    (folder / "00002.mp4").write_bytes(b"broken")
    made = config(drawn, tmp_path, max_train_steps=6, data={"video_folder": str(folder)})
    skipped = [e.reason for e in run(made, tmp_path / "o") if isinstance(e, Skipped)]
    assert len(skipped) == 1
    assert "00002.mp4" in skipped[0]
    strict = config(
        drawn, tmp_path, max_train_steps=6,
        data={"video_folder": str(folder), "max_bad_files": 0},
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"00002\.mp4.*raise train_data.max_bad_files"):
        list(run(strict, tmp_path / "p"))


def test_dry_run_writes_nothing(drawn, tmp_path):
    (checked,) = run(config(drawn, tmp_path), tmp_path / "o", dry_run=True)
    assert isinstance(checked, Checked)
    assert (checked.clips, checked.decoded) == (6, 6)
    assert checked.memory > 0
    sparing = config(drawn, tmp_path, gradient_checkpointing="full")
    (spared,) = run(sparing, tmp_path / "o", dry_run=True)
    assert spared.loss == pytest.approx(checked.loss, rel=1e-5)
    assert 0 < spared.kept < checked.kept / 10
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"video_folder": "nowhere"}}, "no such folder"),
        ({"data": {"csv_path": "nowhere.csv"}}, "must name a CSV"),
        ({"data": {"sample_size": 30}}, "no multiple of 4"),
        ({"data": {"sample_n_frames": 17}}, "more than the module's 16 positions"),
    ],
)
def test_data_that_cannot_be_used_is_refused(drawn, tmp_path, change, message):
    with pytest.raises(TrainingError, match=message):
        list(run(config(drawn, tmp_path, **change), tmp_path / "o"))


def test_an_empty_folder_is_refused(drawn, tmp_path):
    (tmp_path / "empty").mkdir()
    made = config(drawn, tmp_path, data={"video_folder": str(tmp_path / "empty"), "csv_path": ""})
    with pytest.raises(TrainingError, match="no videos in this folder"):
        list(run(made, tmp_path / "o"))


def test_a_used_folder_needs_resume(drawn, tmp_path):
    made = config(drawn, tmp_path, max_train_steps=1)
    list(run(made, tmp_path / "o"))
    with pytest.raises(TrainingError, match="--resume"):
        list(run(made, tmp_path / "o"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: motion\nbase: x\ndata: {video_folder: v}\nlerning_rate: 1", "mean learning_rate"),
        ("stage: motoin\nbase: x\ndata: {video_folder: v}", "stage: must be image, motion"),
        ("stage: motion\ndata: {video_folder: v}", "base: is missing"),
        ("stage: motion\nbase: [x]\ndata: {video_folder: v}", "base: must be text"),
        ("stage: motion\nbase: x\ndata: {video_folder: v}\nmotion: 3", "motion: must be text"),
        ("stage: motion\nbase: x\ndata: {video_folder: v}\nprediction_type: v",
         "must be epsilon, v_prediction or"),
        ("stage: motion\nbase: x\ndata: {video_folder: v}\nmax_train_steps: 1.5", "a whole number"),
        ("stage: motion\nbase: x\ndata: {video_folder: v}\ncaption_dropout: 2",
         "caption_dropout: must be a number from 0 to 1, got 2"),
        ("stage: motion\nbase: x\ndata: {video_folder: v}\nis_debug: true", "use --dry-run"),
        ("stage: " + "[" * 2000, "nested too deeply"),
    ],
)  # fmt: skip
def test_wrong_configurations_are_told(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(TrainingError, match=message):
        load_train_config(tmp_path / "t.yaml")


def test_a_setting_that_is_no_yaml_is_told():
    with pytest.raises(TrainingError, match="--set betas: is nested too deeply"):
        parse_override("betas=" + "[" * 2000)


def test_official_training_file_is_understood(peer_prompts, tmp_path):
    official = peer_prompts.parent / "training" / "v1" / "training.yaml"
    (tmp_path / "t.yaml").write_text(official.read_text())
    made = load_train_config(tmp_path / "t.yaml", dict([parse_override("learning_rate=3e-5")]))
    assert (made.stage, made.motion_version, made.max_frames) == ("motion", "v1", 24)
    assert made.betas == (0.00085, 0.012, "linear")
    assert (made.data.sample_stride, made.data.sample_n_frames) == (4, 16)
    assert (made.mixed_precision, made.learning_rate) == ("fp16", 3e-5)
    assert (made.validation.every, made.validation.at) == (5000, (2, 50))
    assert made.output_dir == str(tmp_path / "outputs")
    image = load_train_config(official.with_name("image_finetune.yaml"))
    assert (image.stage, image.betas) == ("image", (0.00085, 0.012, "scaled_linear"))


def test_windows_stay_inside_and_short_videos_repeat_frames():
    rng = random.Random(0)
    for total in (1, 5, 16, 61, 400):
        for _ in range(20):
            indices = window(total, 16, 4, rng)
            assert len(indices) == 16
            assert 0 <= indices[0] <= indices[-1] < total
            assert indices == sorted(indices)


def test_pixels_cover_the_size_without_borders():
    frames = np.full((2, 50, 90, 3), 255, np.uint8)
    pixels = to_pixels(frames, (64, 32))
    assert pixels.shape == (2, 3, 64, 32)
    assert pixels.min() > 0.99


def test_learning_rate_warms_up_and_falls(drawn, tmp_path):
    made = config(drawn, tmp_path, lr_scheduler="cosine", lr_warmup_steps=2, max_train_steps=10)
    rates = [learning_rate(made, step) for step in range(10)]
    assert rates[0] == pytest.approx(5e-4)
    assert rates[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert rates[6] == pytest.approx(5e-4)  # half of the way down
    assert rates[2:] == sorted(rates[2:], reverse=True)

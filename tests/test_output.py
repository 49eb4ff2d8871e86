"""What a job's output is: files, sidecars, sheets, and clips that came out broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from diffusers.models import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import animatediff_core as ad
from animatediff_core.diffusion.decoding import decode
from animatediff_core.errors import ClipError, MediaError
from animatediff_core.jobs import Job, Output, job_from_options, parse_prompts
from animatediff_core.media.clip import write_clip
from animatediff_core.media.image import read_image
from animatediff_core.media.names import free_path
from animatediff_core.media.settings import read_settings
from animatediff_core.planning.jobs import plan
from animatediff_core.sampling.clip_checks import judge
from animatediff_core.sampling.output import write
from cli.app import app

QUICK = {"steps": 1, "frames": 4, "width": 32, "height": 32, "seed": 1}


def quick(**output: object) -> Job:
    return job_from_options({**QUICK, "prompt": "a red circle", "name": "a", "output": output})[0]


def test_every_format_carries_the_job_that_made_it(tmp_path):
    jobs = [
        quick(format="gif", dither="bayer", max_size=2000, sheet=True),
        quick(format="mp4", codec="h265", crf=30),
        quick(format="webm", ping_pong=True, interpolate=24.0),
        quick(format="webp", quality=70),
        quick(format="apng", fps=12.0),
        quick(format="png", sheet=True),
    ]
    results = list(ad.generate(jobs, output_dir=tmp_path))
    names = ["a-1.gif", "a-1-2.mp4", "a-1-3.webm", "a-1-4.webp", "a-1-5.apng", "a-1-6"]
    assert [r.path.name for r in results] == names
    sheets = {"a-1.sheet.png", "a-1-6.sheet.png"}
    sidecars = {f"{Path(name).stem}.yaml" for name in names}
    assert {p.name for p in tmp_path.iterdir()} == {*names, *sidecars, *sheets}
    for result in results:
        text = read_settings(result.path)
        assert parse_prompts(text, "clip", tmp_path) == [result.job]
        assert (tmp_path / f"{result.path.stem}.yaml").read_text() == text
        assert np.array_equal(result.frames, results[0].frames)
    made = yaml.safe_load((tmp_path / "a-1.yaml").read_text())["made_with"]
    assert results[0].path.stat().st_size <= 2000
    assert made["fitted"]["colours"] < 255
    with ad_video(results[2].path) as video:  # 6 frames forth and back at 8 a second
        assert (video.num_frames, video._stream.average_rate) == (18, 24)
    assert read_image(tmp_path / "a-1.sheet.png").shape == (34, 4 * 34, 3)
    assert len(list(results[5].path.iterdir())) == 4


def ad_video(path: Path):
    from animatediff_core.media.video import open_video

    return open_video(path)


def test_a_renamed_clip_without_its_sidecar_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    options = ["-L", "2", "--steps", "1", "-W", "32", "-H", "32", "--seed", "5", "--quiet"]
    first = run(app, ["generate", "--prompt", "a ring", *options, "--format", "apng"])
    assert first.output == "outputs/a-ring-5.apng\n"
    Path("elsewhere").mkdir()
    shutil.move("outputs/a-ring-5.apng", "elsewhere/holiday.apng")
    again = run(app, ["generate", "elsewhere/holiday.apng", "-o", "again", "--quiet"])
    assert again.output == "again/a-ring-5.apng\n"
    content = Path("elsewhere/holiday.apng").read_bytes()
    assert Path("again/a-ring-5.apng").read_bytes() == content
    Image.new("RGB", (8, 8)).save("foreign.webp")
    refused = run(app, ["generate", "foreign.webp"])
    assert refused.exit_code == 2
    assert "carries no settings and has no sidecar foreign.yaml" in " ".join(refused.stderr.split())


@pytest.fixture
def broken_vae(tmp_path):
    """A VAE whose last layer paints one value: what a broken file does."""
    folder = tmp_path / "vae"
    shutil.copytree(TINY / "base" / "vae", folder)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")

    def write(value: float) -> str:
        for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
            weights[name] = weights[name] * 0
        weights["decoder.conv_out.bias"] += value
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
        return str(folder)

    return write


@pytest.mark.parametrize(
    ("value", "told", "kept"),
    [
        (0.0, "every pixel of every frame is grey (#808080)", True),
        (-1.0, "every pixel of every frame is black (#000000)", True),
        (float("nan"), "x: the VAE gives values that are no numbers", False),
    ],
)
def test_a_broken_clip_fails_its_job_and_is_kept_under_a_name_that_says_so(
    tmp_path, broken_vae, value, told, kept
):
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["generate", "--prompt", "x", "--vae", broken_vae(value), "--steps", "1", "-L", "2",
              "-W", "32", "-H", "32", "--seed", "3", "-o", str(out)],
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (1, "")
    assert told in " ".join(done.stderr.split())
    names = {p.name for p in out.iterdir()} if out.is_dir() else set()
    assert names == ({"x-3.failed.gif", "x-3.failed.yaml"} if kept else set())


def overflowing_vae() -> AutoencoderKL:
    """A small VAE whose features are beyond fp16, but not beyond fp32."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
    ).eval()  # fmt: skip
    vae.decoder.conv_in.weight.data *= 2e5
    return vae.requires_grad_(False)


def test_a_half_precision_vae_that_overflows_decodes_again_in_fp32():
    vae, told = overflowing_vae(), []
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    vae.half()
    before = {name: weight.clone() for name, weight in vae.state_dict().items()}
    frames = decode(vae, latents, chunk=2, on_overflow=lambda: told.append(1))
    assert len(told) == 2  # once a chunk
    after = vae.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert np.array_equal(frames, decode(vae.float(), latents, chunk=2))
    assert np.ptp(frames) > 50
    vae.decoder.conv_out.bias.data += float("nan")
    with pytest.raises(ClipError, match="the VAE gives values that are no numbers"):
        decode(vae, latents)


def clip(value: float = 90, *, spread: int = 0, motion: int = 0, count: int = 4) -> np.ndarray:
    frames = np.full((count, 8, 8, 3), value, np.uint8)
    frames[:, :4] += np.uint8(spread)
    frames[1:, 0, 0] += np.uint8(motion)
    return frames


@pytest.mark.parametrize(
    ("frames", "fault", "doubt"),
    [
        (clip(), "every pixel of every frame is grey (#5a5a5a)", None),
        (clip(0, spread=2), "every pixel of every frame is black (#010101)", None),
        (clip(254), "every pixel of every frame is white (#fefefe)", None),
        (clip(spread=100), "all 4 frames are the same image", None),
        (clip(spread=100, motion=1), None, "the 4 frames are nearly the same image"),
        (clip(0, spread=9, motion=2), None, "nearly every pixel is black (#060606)"),
        (clip(spread=100, motion=30, count=3), "3 frames came out instead of 4", None),
        (clip(0, spread=60, motion=12), None, None),
        (clip(spread=100, motion=30), None, None),
    ],
)
def test_clips_are_judged_by_their_levels(frames, fault, doubt):
    verdict = judge(frames, 4)
    assert (verdict.fault, verdict.doubt) == (fault, doubt)


@pytest.mark.parametrize("ping_pong", [True, False])
def test_an_interpolated_clip_that_goes_forth_and_back_ends_on_the_way_to_its_beginning(
    tmp_path, ping_pong
):
    frames = np.full((4, 64, 64, 3), 30, np.uint8)
    for index in range(4):
        frames[index, 16:48, 6 * index : 6 * index + 32] = 220
    job = quick(format="png", ping_pong=ping_pong, interpolate=16.0, fps=8.0).replace(frames=4)
    folder = write(job, frames, {}, tmp_path)
    shown = np.stack([read_image(path) for path in sorted(folder.iterdir())]).astype(float)
    assert len(shown) == (12 if ping_pong else 8)
    gone_on = np.abs(shown[-1] - shown[-2]).mean()
    if ping_pong:  # from the second frame to the first one
        assert gone_on > 5
        assert np.abs(shown[-1] - shown[1]).mean() < 0.5 * gone_on
    else:
        assert gone_on < 1


def test_a_single_frame_need_not_move():
    assert judge(clip(spread=100, count=1), 1).fault is None


def test_outputs_that_cannot_work_are_refused_before_a_model_is_loaded(tmp_path):
    jobs = [
        quick(format="webm").replace(width=36, height=36, name="even"),
        quick(format="mp4", codec="h265").replace(width=8, height=8, name="small"),
        quick(interpolate=20.0).replace(frames=1, name="single"),
        quick(format="webp").replace(width=16400, name="wide"),
    ]
    with pytest.raises(MediaError) as caught:
        plan(jobs)
    told = str(caught.value).splitlines()
    assert len(told) == 3
    assert "ffmpeg cannot write this mp4 with h265" in told[0]
    assert "needs two frames or more" in told[1]
    assert "webp holds 16383 pixels a side at most, got 16400 x 32" in told[2]


def test_a_clip_that_cannot_fit_leaves_nothing(tmp_path):
    job = quick(max_size=1000).replace(frames=16)
    result = next(ad.generate([job], output_dir=tmp_path))
    assert "cannot be brought below max_size 1000 bytes" in str(result.error)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_frees_the_name(tmp_path, monkeypatch):
    from animatediff_core.sampling import output as writing

    def full(*_: object, **__: object) -> None:
        raise ClipError("no")

    monkeypatch.setattr(writing, "write_text", full)
    result = next(ad.generate([quick(sheet=True)], output_dir=tmp_path))
    assert str(result.error) == "no"
    assert not list(tmp_path.iterdir())
    assert free_path(tmp_path, "a-1", ".gif").name == "a-1.gif"
    assert Output(format="png").suffix == ""


@pytest.mark.parametrize(
    ("format", "plays", "written"),
    [("gif", 0, 0), ("gif", 1, None), ("gif", 3, 2), ("webp", 3, 3), ("apng", 3, 3)],
)
def test_a_clip_plays_as_often_as_it_is_asked_to(tmp_path, format, plays, written):
    path = tmp_path / f"clip.{format}"
    frames = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (0, 90, 200)])
    write_clip(frames, path, Output(format=format, loop=plays))
    with Image.open(path) as clip:
        assert clip.n_frames == 3
        assert clip.info.get("loop") == written  # a gif counts its repetitions
    with pytest.raises(ValueError, match="loop: is for gif, webp and apng alone"):
        Output(format="mp4", loop=1)


def test_a_dry_run_names_the_next_free_path(asked, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "x-5.yaml").write_text("")
    (tmp_path / "p.yaml").write_text("jobs: [{prompt: x, seed: 5}, {prompt: x, seed: 5}]")
    done = asked("generate", "p.yaml", "--dry-run", "--quiet")
    assert done.stdout == "outputs/x-5-2.gif\noutputs/x-5-3.gif\n"
    assert len(list((tmp_path / "outputs").iterdir())) == 1

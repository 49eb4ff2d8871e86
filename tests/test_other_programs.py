"""Prompt files of other programs become the jobs that those programs would run."""

import json
from pathlib import Path

import pytest
import yaml

from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import Adapter, Job, dump_job, load_prompt_file, peers
from animatediff_core.jobs import parse_prompts as parse


def jobs(content: object, folder: Path = Path(), **overrides: object) -> list[Job]:
    return parse(json.dumps(content), "f.json", folder, overrides=overrides)


def test_all_official_files_become_the_jobs_that_they_list(peer_prompts):
    files = sorted(peer_prompts.rglob("*.yaml"))
    assert len(files) == 11
    for file in files:
        expected = []
        for model in yaml.safe_load(file.read_text()):
            for index, prompt in enumerate(model["prompt"]):
                seeds = model["seed"] if isinstance(model["seed"], list) else [model["seed"]]
                negative = model["n_prompt"][index if len(model["n_prompt"]) > 1 else 0]
                seed = seeds[index if len(seeds) > 1 else 0]
                expected.append((prompt, negative, seed, model["guidance_scale"], model["steps"],
                                 model.get("W", 512), model.get("H", 512),
                                 bool(model.get("lora_model_path") or
                                      model.get("adapter_lora_path"))))  # fmt: skip
        made = load_prompt_file(file)
        got = [(job.prompt[0], job.negative_prompt[0], job.seed, job.guidance_scale, job.steps,
                job.width, job.height, bool(job.loras)) for job in made]  # fmt: skip
        drawn = [(*e[:2], g[2], *e[3:]) if e[2] == -1 else e
                 for e, g in zip(expected, got, strict=True)]  # fmt: skip
        assert got == drawn
        assert {(job.scheduler, job.frames) for job in made} == {("ddim", 16)}
        assert bool(made[0].sparse_controls) == (file.parent.name[0] == "3")
        assert parse(dump_job(made[0]), "sidecar", Path()) == made[:1]
    assert max(job.seed for file in files for job in load_prompt_file(file)) > 2**63


def test_official_details(peer_prompts):
    motion = load_prompt_file(next(peer_prompts.glob("2_*/*.yaml")))[0]
    assert motion.motion_loras == (Adapter(path="./models/MotionLoRA/v2_lora_ZoomIn.ckpt"),)
    assert (motion.seed, motion.motion_version) == (43242532350557906, "v2")
    sparse = load_prompt_file(peer_prompts / "3_sparsectrl" / "3_1_sparsectrl_i2v.yaml")[2]
    (control,) = sparse.sparse_controls
    assert control.path == "./models/SparseCtrl/v3_sd15_sparsectrl_rgb.ckpt"
    assert dict(control.images) == {
        0: "./__assets__/demos/image/interpolation_1.png",
        15: "./__assets__/demos/image/interpolation_2.png",
    }
    assert sparse.base.startswith("stable-diffusion-v1-5/")  # an empty dreambooth_path


def test_paths_of_official_files_are_found_above_or_under_the_root(tmp_path):
    for folder in ("repository/configs", "repository/models", "elsewhere/models"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "repository/models/a.ckpt").touch()
    (tmp_path / "elsewhere/models/b.ckpt").touch()
    text = "- {dreambooth_path: models/%s.ckpt, prompt: x}"
    here = tmp_path / "repository" / "configs"
    (a,) = parse(text % "a", "f", here)
    assert a.base == str(tmp_path / "repository" / "models" / "a.ckpt")
    (b,) = parse(text % "b", "f", here, tmp_path / "elsewhere")
    assert b.base == str(tmp_path / "elsewhere" / "models" / "b.ckpt")


def test_the_oldest_official_form():
    model = {"base": "", "path": "toonyou.safetensors", "motion_module": ["a.ckpt", "b.ckpt"],
             "seed": [1, 2], "steps": 9, "guidance_scale": 7, "prompt": ["x", "y"],
             "n_prompt": ["z"]}  # fmt: skip
    made = jobs({"ToonYou": model})
    assert [(j.motion, j.prompt[0], j.seed, j.negative_prompt[0]) for j in made] == [
        ("./a.ckpt", "x", 1, "z"), ("./a.ckpt", "y", 2, "z"),
        ("./b.ckpt", "x", 1, "z"), ("./b.ckpt", "y", 2, "z"),
    ]  # fmt: skip
    assert made[0].base == "./toonyou.safetensors"
    (on_base, *_) = jobs({"Lora": {**model, "base": "base.ckpt"}})
    assert on_base.base == "./base.ckpt"
    assert on_base.loras == (Adapter(path="./toonyou.safetensors", scale=0.8),)


MODEL = """
  inference_config: configs/inference/inference-v2.yaml
  motion_module: [mm_v2.ckpt]
  motion_module_lora_configs: [{path: zoom.ckpt, alpha: 0.5}]
  dreambooth_path: toonyou.safetensors
  lora_model_path: neon.safetensors
  seed: [10788741199826055526, -1]
  steps: 9
  guidance_scale: 7
  prompt: [x, y]
  n_prompt: ["", z]
"""


@pytest.mark.parametrize("written", ["ToonYou:", "-"], ids=["mapping of autumn 2023", "list"])
def test_a_model_is_the_same_in_a_list_and_under_a_name(written):
    first, second = parse(written + MODEL, "f", Path())
    assert (first.base, first.motion) == ("./toonyou.safetensors", "./mm_v2.ckpt")
    assert first.loras == (Adapter(path="./neon.safetensors", scale=0.8),)
    assert first.motion_loras == (Adapter(path="./zoom.ckpt", scale=0.5),)
    assert (first.motion_version, first.seed, first.steps) == ("v2", 10788741199826055526, 9)
    assert (second.prompt, second.negative_prompt) == ({0: "y"}, {0: "z"})


@pytest.mark.parametrize("written", ["ToonYou:", "-"])
def test_the_seeds_that_the_official_script_drew_make_its_clips_again(written):
    recorded = "  random_seed: [5, 6]\n  W: 384\n  H: 256\n  L: 12\n"
    made = parse(written + MODEL + recorded, "config.yaml", Path())
    assert [job.seed for job in made] == [5, 6]
    assert (made[0].width, made[0].height, made[0].frames) == (384, 256, 12)


def test_a_file_of_the_sdxl_branch_is_one_model():
    text = "motion_module_path: mm.ckpt\nseed: -1\nprompt: [a, b]\nn_prompt: ['', c]\n"
    made = parse(text, "f", Path())
    assert [(job.prompt[0], job.negative_prompt[0]) for job in made] == [("a", ""), ("b", "c")]
    assert (made[0].base, made[0].motion) == (peers.SDXL, "./mm.ckpt")
    assert (made[0].width, made[0].height, made[0].frames) == (1024, 1024, 16)
    assert (made[0].steps, made[0].guidance_scale, made[0].scheduler) == (100, 10, "euler")
    more = "base_model_path: vision\nlora_path: l\nlora_alpha: 0.5\nsteps: 30\nunet_additional_kwargs: {a: 1}\nnoise_scheduler_kwargs: {beta_start: 0.00085, beta_end: 0.02, beta_schedule: scaled_linear}\n"  # noqa: E501
    (written, _) = parse(text + more, "config.yaml", Path())
    assert (written.base, written.steps) == ("./vision", 30)
    assert written.loras == (Adapter(path="./l", scale=0.5),)
    assert written.betas == (0.00085, 0.02, "scaled_linear")
    (checkpoint, _) = parse(text + "base_model_path: v\nckpt_path: c.safetensors", "f", Path())
    assert checkpoint.base == "./c.safetensors"


def test_bundled_models_have_their_name_in_files_of_other_programs_too():
    tiny, motion = "bundled:tiny", "bundled:tiny/motion_module.safetensors"
    (official,) = parse(f"- {{dreambooth_path: {tiny}, motion_module: {motion}, prompt: a}}", "f",
                        Path(), Path("/root"))  # fmt: skip
    (travel,) = jobs({"path": tiny, "motion_module": motion, "prompts": ["a"]})
    assert {(job.base, job.motion) for job in (official, travel)} == {(tiny, motion)}


PLAIN = {"name": "sample", "path": "share/m.safetensors", "motion_module": "mm_sd_v15.ckpt"}
TRAVEL = {
    **PLAIN, "vae_path": "", "compile": False, "seed": [341774366206100],
    "scheduler": "k_dpmpp_sde", "steps": 20, "guidance_scale": 10, "clip_skip": 2,
    "prompt_fixed_ratio": 0.5,
    "head_prompt": "1girl", "prompt_map": {"0": "standing", "8": "walking", "64": "sitting"},
    "tail_prompt": "town", "n_prompt": ["(low quality:1.4)"], "lora_map": {"a.safetensors": 0.7},
    "motion_lora_map": {"zoom.ckpt": 0.5}, "lcm_map": {"enable": False},
    "controlnet_map": {"input_image_dir": "x", "controlnet_tile": {"enable": False}},
    "ip_adapter_map": {"enable": False, "input_image_dir": "x"}, "img2img_map": {"enable": False},
    "region_map": {}, "upscale_config": {"steps": 20}, "result": {"original_frames": "x"},
    "output": {"format": "hevc", "fps": 12, "encode_param": {"crf": 10}},
}  # fmt: skip


def test_prompts_of_animatediff_cli_take_negative_prompts_and_seeds_in_turn():
    content = {**PLAIN, "seed": [5, 6], "prompts": ["a", {"0": "b", "8": "c"}, "d"],
               "n_prompts": ["x", "y"]}  # fmt: skip
    made = jobs(content, width=256, frames=12)
    assert [(dict(j.prompt), j.negative_prompt[0], j.seed) for j in made] == [
        ({0: "a"}, "x", 5), ({0: "b", 8: "c"}, "y", 6), ({0: "d"}, "x", 5),
    ]  # fmt: skip
    assert {(j.name, j.scheduler, j.steps, j.guidance_scale, j.width, j.frames) for j in made} == {
        ("sample", "k_dpmpp_2m", 25, 7.5, 256, 12)
    }
    assert {j.travel for j in made} == {"linear"}
    assert {j.window.schedule for j in made} == {"standard_uniform"}  # no longer than a window


@pytest.mark.parametrize(("ratio", "last"), [(0, 0), (0.5, 4), (1, 7)])
def test_a_text_holds_for_its_share_of_the_way_and_ends_before_the_next(ratio, last):
    (job,) = jobs({**TRAVEL, "prompt_fixed_ratio": ratio}, frames=16)
    held = [frame for frame, text in job.prompt.items() if "standing" in text]
    assert held == sorted({0, last})
    assert job.prompt[8] == "1girl,walking,town"


def test_the_last_text_of_prompt_travel_goes_back_to_the_first_one_around_the_end():
    content = {**PLAIN, "prompt_map": {"4": "a", "20": "b"}, "prompt_fixed_ratio": 0.5}
    (job,) = jobs(content, frames=32, window={"length": 16})
    assert job.prompt == {4: "a", 12: "a", 20: "b", 26: "b"}
    assert job.travel_loop
    (alone,) = jobs({**PLAIN, "prompt_map": {"0": "a"}})
    assert alone.prompt == {0: "a"}


def test_a_head_alone_is_the_prompt():
    (job,) = jobs({**PLAIN, "head_prompt": "1girl", "tail_prompt": "town", "seed": [947435423.0]})
    assert (job.prompt, job.seed) == ({0: "1girl,town"}, 947435423)


@pytest.mark.parametrize(
    ("frames", "window", "schedule"),
    [(16, 16, "standard_uniform"), (17, 16, "looped_uniform"), (15, 16, "standard_uniform")],
)
def test_only_a_clip_longer_than_its_window_loops(frames, window, schedule):
    (job,) = jobs(TRAVEL, frames=frames, window={"length": window})
    assert job.window.schedule == schedule


def test_prompt_travel_becomes_one_job_with_texts_that_hold_half_the_way():
    (job,) = jobs(TRAVEL, frames=16, window={"length": 12})
    assert dict(job.prompt) == {
        0: "1girl,standing,town", 4: "1girl,standing,town", 8: "1girl,walking,town",
        12: "1girl,walking,town",
    }  # fmt: skip
    assert (job.travel, job.travel_loop, job.clip_skip) == ("slerp", True, 2)
    assert job.seed == 341774366206100
    assert (job.scheduler, job.vae, job.motion) == ("k_dpmpp_sde", None, "./mm_sd_v15.ckpt")
    assert job.loras == (Adapter(path="./a.safetensors", scale=0.7),)
    assert job.motion_loras == (Adapter(path="./zoom.ckpt", scale=0.5),)
    assert (job.window.length, job.window.overlap) == (12, 3)
    assert job.window.schedule == "looped_uniform"
    output = job.output
    assert (output.format, output.codec, output.fps, output.crf) == ("mp4", "h265", 12, 10)
    assert parse(dump_job(job), "sidecar", Path()) == [job]


def test_a_path_beside_a_base_is_a_lora():
    made = jobs({**PLAIN, "base": "b.ckpt", "lora_alpha": 0.6, "lora_map": {"c": 1},
                 "prompts": ["a"]})  # fmt: skip
    assert made[0].base == "./b.ckpt"
    assert made[0].loras == (
        Adapter(path="./share/m.safetensors", scale=0.6), Adapter(path="./c", scale=1),
    )  # fmt: skip


def test_paths_of_prompt_travel_are_found_in_its_data_folder(tmp_path):
    (tmp_path / "data" / "share").mkdir(parents=True)
    (tmp_path / "config" / "prompts").mkdir(parents=True)
    (tmp_path / "data" / "share" / "m.safetensors").touch()
    (job,) = jobs({**PLAIN, "prompts": ["a"]}, tmp_path / "config" / "prompts")
    assert job.base == str(tmp_path / "data" / "share" / "m.safetensors")


def test_enabled_control_maps_become_typed_fields(tmp_path):
    images = tmp_path / "faces"
    images.mkdir()
    for frame in (0, 8):
        (images / f"{frame:04}.png").touch()
    net = {"enable": True, "use_preprocessor": True, "controlnet_conditioning_scale": 0.8,
           "control_guidance_end": 0.6}  # fmt: skip
    (job,) = jobs({
        **TRAVEL,
        "controlnet_map": {"input_image_dir": "no-such-maps", "controlnet_canny": net},
        "ip_adapter_map": {"enable": True, "input_image_dir": str(images), "is_plus": True},
        "img2img_map": {"enable": True, "init_img_dir": "i", "denoising_strength": 0.4},
        "region_map": {"0": {"enable": True, "mask_dir": "m",
                             "condition": {"prompt_map": {"0": "a cat"}}}},
    })  # fmt: skip
    (control,) = job.controlnets
    assert (control.path, control.canny is None) == ("lllyasviel/control_v11p_sd15_canny", False)
    assert (control.strength, control.end) == (0.8, 0.6)
    assert control.images.path == "./no-such-maps/controlnet_canny"
    (adapter,) = job.ip_adapters
    assert adapter.path == "h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors"
    assert {frame: Path(path).stem for frame, path in adapter.images.items()} == {
        0: "0000", 4: "0000", 8: "0008", 12: "0008",
    }  # fmt: skip
    assert (job.start.strength, job.regions[0].prompt) == (0.4, {0: "a cat"})
    assert parse(dump_job(job), "sidecar", Path()) == [job]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt_map": {}}, r"promt_map: unknown key; did you mean prompt_map\?"),
        ({"prompts": ["a"]}, "prompts: does not go with prompt_map, head_prompt or tail_prompt"),
        ({"lcm_map": {"enable": True}}, "lcm_map: is not supported; set its enable to false"),
        ({"compile": True}, "compile: True is not supported; False is"),
        ({"context_schedule": "composite"}, "context_schedule: 'composite' is not supported"),
        ({"lora_map": {"a": {"region": ["0"]}}}, "lora_map.a: a scale by frame or region"),
        ({"output": {"preview_steps": [3]}}, "output.preview_steps: is not supported"),
        ({"output": {"encode_parm": {}}}, r"encode_parm: unknown key; did you mean encode_param\?"),
        ({"controlnet_map": {"controlnet_ref": {"enable": True}}}, "controlnet_ref: is not supp"),
        ({"controlnet_map": {"controlnet_openpose": {"enable": True}}}, "give ready conditions"),
        ({"controlnet_map": {"controlnet_ip2p": {"guess_mode": True}}}, "guess_mode: True is not"),
        ({"ip_adapter_map": {"input_image_dir": "nowhere"}}, "has no images named by their"),
        ({"region_map": {"0": {"is_init_img": True}}}, "is_init_img: True is not supported"),
        ({"region_map": [1]}, "region_map: must be a mapping"),
        (
            {"prompt_map": {"a": "b"}},
            "prompt_map: must be a mapping of a whole number of 0 or more to text, got the key 'a'",
        ),
        ({"steps": "many"}, "steps: must be a whole number of 1 or more, got 'many'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change, message):
    with pytest.raises(PromptFileError, match=message) as caught:
        jobs({**TRAVEL, **change})
    assert str(caught.value).startswith("f.json: ")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{prompt: [a, b], n_prompt: [x, y, z]}", "n_prompt: has 3 values for 2 prompts"),
        ("{prompt: a, controlnet_path: x}", "controlnet_image_indexs: has 1 frames for 0"),
        ("{prompt: a, controlnet_images: [x]}", "controlnet_path: is missing"),
        ("{prompt: a, motion_module_lora_configs: [{alpha: 1}]}", r"configs\[0\].path: is missing"),
        ("{prompt: a, random_seed: [1, 2]}", "random_seed: has 2 values for 1 prompts"),
        ("{prompt: a, init_image: x.png}", "init_image: is not supported; remove it"),
        ("{prompt: a, control: {canny: x}}", "control: is not supported; remove it"),
        ("{prompt: a, domain_lora_scale: 0.5}", "domain_lora_scale: 0.5 is not supported; 1.0 is"),
        ("just text", r"\[0\]: prompt: is missing"),
        ("{prompt: a, guidance: 7}", r"guidance: unknown key; did you mean guidance_scale\?"),
    ],
)
def test_wrong_official_files(model, message):
    with pytest.raises(PromptFileError, match=message):
        parse(f"- {model}", "f", Path())

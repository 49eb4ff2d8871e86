"""The hub: ids, what is fetched, tokens, revisions, variants, and life without a connection.

A small hub on this machine serves a small random model that diffusers' own save_pretrained wrote.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import new_motion, new_unet, weight_pairs
from fake_hub import Hub, Repository, commit_of, serve
from huggingface_hub import constants
from safetensors.torch import save_file
from small_model import LEVELS, write_half, write_model

from animatediff_core.checkpoints.loading import load_base
from animatediff_core.checkpoints.motion_adapter import motion_adapter
from animatediff_core.errors import CheckpointError, MachineError, PromptFileError
from animatediff_core.jobs import dump_job, job_from_options, load_prompt_file
from animatediff_core.planning.jobs import spec_of
from animatediff_core.weights import hub as hub_files
from animatediff_core.weights.hub import HubId, hub_id
from animatediff_core.weights.places import local_path, looks_local


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with plain and fp16 weights, and much that no run needs."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    write_model(folder)
    for part in ("unet", "vae", "text_encoder"):
        write_half(folder / part)
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors",
                folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")  # fmt: skip
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    torch.save({}, folder / "text_encoder" / "pytorch_model.bin")
    for name in ("v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "README.md", "unet/model.onnx",
                 "unet/flax_model.msgpack", "unet/openvino_model.bin", "text_encoder/tf_model.h5",
                 "safety_checker/model.safetensors", "safety_checker/config.json",
                 "feature_extractor/config.json", "vae_decoder/model.onnx"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    return folder


USED = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder/model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub that the library asks, and a cache of its own."""
    hub = Hub()
    server = serve(hub)
    cache = str(tmp_path / "cache")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    """A connection would fail the test."""

    def connect(*_):
        pytest.fail("a connection was opened")

    def cut():
        for name in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, name, connect)
        monkeypatch.setattr(socket, "getaddrinfo", connect)

    return cut


def same(part, other):
    return all(torch.equal(a, b) for _, a, b in weight_pairs(part, other))


@pytest.mark.parametrize(
    ("source", "meaning"),
    [
        ("org/model", HubId("org/model", None, None)),
        ("org/model@v1.5", HubId("org/model", "v1.5", None)),
        ("org/model@refs/pr/7", HubId("org/model", "refs/pr/7", None)),
        ("org/model@feature%2Fx/m.pt", HubId("org/model", "feature/x", "m.pt")),
        ("org/model/m.safetensors", HubId("org/model", None, "m.safetensors")),
        ("org/model@main/a/b/m.ckpt", HubId("org/model", "main", "a/b/m.ckpt")),
        ("org/model/../m.ckpt", None),
        ("org/model//m.ckpt", None),
        ("org/mo\x1bdel", None),
        ("model", None),
        ("org/model@", None),
    ],
)
def test_an_id_names_repository_revision_and_file(source, meaning):
    assert hub_id(source) == meaning


def test_what_begins_with_a_folder_that_is_here_is_no_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "styles").mkdir()
    assert looks_local("styles/neon/x.safetensors")
    assert not looks_local("other/neon/x.safetensors")
    assert not looks_local("other/neon/deep/er/x.safetensors")
    assert looks_local("other/x.safetensors")
    assert looks_local("x" * 5000)


def test_only_what_is_used_is_fetched_and_once(hub, model):
    hub.add("org/model", model)
    place = local_path("org/model", "base", offline=False)
    assert hub.fetched() == USED
    base = load_base("org/model")
    assert hub.fetched() == USED
    assert base.folder == place
    assert same(base.unet, new_unet(LEVELS))


def test_a_variant_is_fetched_alone_and_found_again(hub, model, no_network):
    hub.add("org/model", model)
    local_path("org/model", "base", variant="fp16", offline=False)
    halves = [name.replace(".safetensors", ".fp16.safetensors") for name in USED]
    assert hub.fetched() == sorted(halves)
    no_network()
    base = load_base("org/model", variant="fp16", offline=True)
    assert same(base.unet, new_unet(LEVELS).half().float())
    message = "only weights of variant fp16; ask for it with --variant fp16.*--offline is set"
    with pytest.raises(MachineError, match=message):
        local_path("org/model", "base", offline=True)


def test_a_variant_that_no_part_has_is_refused(hub, model):
    hub.add("org/model", model)
    with pytest.raises(CheckpointError, match="has no weights of variant bf16; leave the variant"):
        local_path("org/model", "base", variant="bf16", offline=False)
    assert hub.fetched() == []


def test_a_part_without_the_variant_is_taken_as_it_is(hub, model):
    files = hub.add("org/model", model).revisions["main"]
    del files["vae/diffusion_pytorch_model.fp16.safetensors"]
    local_path("org/model", "base", variant="fp16", offline=False)
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched()
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.fetched()


def test_a_repository_of_only_a_variant_names_it(hub, model):
    files = hub.add("org/model", model).revisions["main"]
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
                 "diffusion_pytorch_model.non_ema.safetensors"):  # fmt: skip
        del files[f"unet/{name}"]
    with pytest.raises(CheckpointError, match="unet/ has only weights of variant fp16; ask for it"):
        local_path("org/model", "base", offline=False)


@pytest.mark.parametrize("source", ["bundled:tiny", "org/model/x.ckpt"])
def test_a_variant_has_no_meaning_for_single_files_and_bundled_models(hub, source):
    with pytest.raises(CheckpointError, match="which has no variants; leave variant fp16 out"):
        local_path(source, "base", variant="fp16", offline=False)
    assert hub.requests == []


def test_revisions_are_fetched_and_found_again(hub, model, no_network):
    repository = hub.add("org/model", model)
    first = repository.revisions["main"]
    other = {**first, "unet/diffusion_pytorch_model.safetensors":
             first["unet/diffusion_pytorch_model.non_ema.safetensors"] + b""}  # fmt: skip
    other["scheduler/scheduler_config.json"] = json.dumps({"prediction_type": "sample"}).encode()
    repository.revisions |= {"feature/x": other, "v1": first}
    by_branch = local_path("org/model@feature%2Fx", "base", offline=False)
    by_commit = local_path(f"org/model@{commit_of(first)}", "base", offline=False)
    assert load_base("org/model@feature%2Fx").prediction_type == "sample"
    with pytest.raises(CheckpointError, match="has no revision v9; name a branch, tag or commit"):
        local_path("org/model@v9", "base", offline=False)
    no_network()
    assert local_path("org/model@feature%2Fx", "base", offline=True) == by_branch
    assert local_path(f"org/model@{commit_of(first)}", "base", offline=True) == by_commit
    with pytest.raises(MachineError, match="not in the local cache and --offline is set"):
        local_path("org/model@v1", "base", offline=True)


def test_files_deep_in_a_repository_are_fetched_at_a_revision(hub, no_network):
    repository = hub.add("org/files", **{"styles/neon/x.safetensors": b"one"})
    repository.revisions["v2"] = {"styles/neon/x.safetensors": b"two"}
    name = "styles/neon/x.safetensors"
    assert local_path(f"org/files/{name}").read_bytes() == b"one"
    assert local_path(f"org/files@v2/{name}").read_bytes() == b"two"
    with pytest.raises(CheckpointError, match="no such file; did you mean styles/neon/x.safet"):
        local_path("org/files/styles/neon/y.safetensors")
    no_network()
    assert local_path(f"org/files@v2/{name}", offline=True).read_bytes() == b"two"
    with pytest.raises(MachineError, match="not in the local cache and --offline is set"):
        local_path("org/files/other.safetensors", offline=True)


def test_the_environment_forbids_connections_too(hub, no_network, monkeypatch):
    no_network()
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    with pytest.raises(MachineError, match="and HF_HUB_OFFLINE is set; connect to the hub"):
        local_path("org/files/x.safetensors")


def test_a_repository_of_pickles_is_opened(hub, model):
    files = hub.add("org/model", model).revisions["main"]
    for name in [name for name in files if name.endswith(".safetensors")]:
        del files[name]
    for part, kind in (("unet", new_unet(LEVELS)), ("vae", None), ("text_encoder", None)):
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        whole = load_base(str(model))
        kind = kind or (whole.vae if part == "vae" else whole.text_encoders[0])
        torch.save(kind.state_dict(), model.parent / "x.bin")
        files[f"{part}/{stem}.bin"] = (model.parent / "x.bin").read_bytes()
    base = load_base("org/model")
    assert [n for n in hub.fetched() if n.endswith(".bin")] == [
        "text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
    ]  # fmt: skip
    assert same(base.unet, new_unet(LEVELS))
    assert same(base.text_encoders[0], whole.text_encoders[0])


def test_weights_in_shards_are_fetched_and_opened(hub, model, tmp_path, no_network):
    shutil.copytree(model, tmp_path / "sharded")
    shutil.rmtree(tmp_path / "sharded" / "unet")
    new_unet(LEVELS).save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="1MB")
    hub.add("org/model", tmp_path / "sharded")
    local_path("org/model", "base", offline=False)
    shards = [name for name in hub.fetched() if name.startswith("unet/diffusion")]
    assert len(shards) > 2
    assert shards[-1] == "unet/diffusion_pytorch_model.safetensors.index.json"
    no_network()
    assert same(load_base("org/model", offline=True).unet, new_unet(LEVELS))


LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def test_gated_and_private_repositories_say_how_to_log_in(hub, model, monkeypatch):
    hub.add("org/gated", model).gated = True
    hub.add("org/private", model).private = True
    with pytest.raises(CheckpointError, match=f"is gated; accept its terms at .*, then {LOG_IN}"):
        local_path("org/gated", "base", offline=False)
    with pytest.raises(CheckpointError, match=f"has no such model, or it is private; .* {LOG_IN}"):
        local_path("org/private", "base", offline=False)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(CheckpointError, match=f"refuses access with this token; {LOG_IN}"):
        local_path("org/private", "base", offline=False)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    for name in ("org/gated", "org/private"):
        assert (local_path(name, "base", offline=False) / "unet" / "config.json").is_file()
    with pytest.raises(CheckpointError, match="org/nothing: the hub has no such model"):
        local_path("org/nothing", "base", offline=False)
    with pytest.raises(CheckpointError, match="x.ckpt: no such local file exists, and the hub"):
        local_path("models/loras/deep/x.ckpt")


def test_an_unreachable_hub_is_told_at_once_and_the_cache_goes_on(hub, model, monkeypatch, caplog):
    hub.add("org/model", model)
    place = local_path("org/model", "base", offline=False)
    closed = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    closed.close()
    start = time.perf_counter()
    for find in (local_path, lambda name: local_path(name, "base", offline=False)):
        with pytest.raises(MachineError, match="the hub cannot be reached .*refused"):
            find("org/other/x.safetensors")
    assert time.perf_counter() - start < 3
    with caplog.at_level(logging.WARNING, logger="animatediff_core"):
        assert local_path("org/model", "base", offline=False) == place
    assert "the files that were fetched before are used" in caplog.text


def test_a_hub_that_fails_is_the_surroundings_fault(hub):
    hub.failing = True
    with pytest.raises(MachineError, match=r"the hub fails \(HTTP status 500\)"):
        local_path("org/model/x.safetensors")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub):
    content = os.urandom(24 << 20)  # the library writes 10 MiB at a time
    hub.add("org/files", **{"x.safetensors": content})
    hub.cut.add("x.safetensors")
    assert local_path("org/files/x.safetensors").read_bytes() == content
    assert any(one.endswith(f"bytes={10 << 20}-") for one in hub.requests)


def test_a_repository_that_is_no_model_says_what_it_holds(hub):
    hub.add("org/files", **{"v3_sd15_mm.ckpt": b"x"})
    with pytest.raises(CheckpointError, match=r"no unet/; name one of its files, .*v3_sd15_mm.c"):
        local_path("org/files", "base", offline=False)


def test_vaes_and_motion_adapters_have_repositories_of_their_own(hub, model, tmp_path):
    hub.add("org/vae", model / "vae")
    assert hub_names(local_path("org/vae", "vae", offline=False)) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert local_path("org/vae", "vae", offline=True).is_dir()
    motion_adapter(new_motion(LEVELS)).save_pretrained(tmp_path / "adapter")
    hub.add("org/adapter", tmp_path / "adapter")
    assert hub_names(local_path("org/adapter", "motion", offline=False)) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    hub.add("org/inside", model)
    assert local_path("org/inside", "vae", offline=False).name == "vae"


def hub_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_control_models_and_image_encoders_come_from_the_hub(hub, tmp_path, no_network):
    (tmp_path / "control").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "notes.md"):
        (tmp_path / "control" / name).write_bytes(name.encode())
    hub.add("lab/control", tmp_path / "control")
    encoder = tmp_path / "adapters" / "models" / "image_encoder"
    encoder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (encoder / name).write_bytes(name.encode())
    hub.add("lab/adapters", tmp_path / "adapters")
    control = local_path("lab/control", "control", offline=False)
    vision = local_path("lab/adapters/models/image_encoder", "image encoder", offline=False)
    assert hub.fetched() == [
        "config.json", "diffusion_pytorch_model.safetensors",
        "models/image_encoder/config.json", "models/image_encoder/model.safetensors",
    ]  # fmt: skip
    assert (vision / "model.safetensors").is_file()
    with pytest.raises(CheckpointError, match="the hub has no image encoder there"):
        local_path("lab/control/deeper", "image encoder", offline=False)
    no_network()
    assert local_path("lab/control", "control", offline=True) == control
    assert local_path("lab/adapters/models/image_encoder", "image encoder", offline=True) == vision


def test_a_job_names_the_variant_and_another_base_drops_it(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(
        "base: org/model\nvariant: fp16\n"
        "jobs: [{prompt: a}, {prompt: b, base: org/other}, {prompt: c, variant: bf16}]"
    )
    assert [job.variant for job in load_prompt_file(file)] == ["fp16", None, "bf16"]
    overridden = load_prompt_file(file, overrides={"base": "org/third"})
    assert [job.variant for job in overridden] == [None] * 3
    (job,) = job_from_options({"preset": "sd15-v3", "variant": "fp16", "prompt": "x"})
    assert spec_of(job).variant == "fp16"
    (tmp_path / "side.yaml").write_text(dump_job(job))
    assert load_prompt_file(tmp_path / "side.yaml") == [job]
    file.write_text("variant: 16\njobs: [a]")
    with pytest.raises(PromptFileError, match="variant: must be text, got 16"):
        load_prompt_file(file)


@pytest.fixture
def program(hub, tmp_path, monkeypatch):
    """The installed command, asking the small hub; with `sealed`, a connection ends it."""
    seal = tmp_path / "seal"
    seal.mkdir()
    (seal / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, _):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname'):\n"
        "        os.write(2, b'a connection was opened'); os._exit(99)\n"
        "sys.addaudithook(hook)\n"
    )

    def run(*arguments, sealed=False, **more):
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **more}
        if sealed:
            env["PYTHONPATH"] = str(seal)
        return subprocess.run(
            [Path(sys.executable).with_name("animatediff"), *map(str, arguments)],
            capture_output=True, text=True, cwd=tmp_path, timeout=180, env=env,
        )  # fmt: skip

    return run


def serve_animatelcm(hub, model, folder):
    """All that the preset animatelcm names, small."""
    hub.add("emilianJR/epiCRealism", model)
    motion = new_motion(LEVELS, norm_num_groups=32)
    torch.save(motion.state_dict(), folder / "m.ckpt")
    lora = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{kind}.weight": value
            for kind, value in (("A", torch.ones(2, 32)), ("B", torch.ones(32, 2)))}  # fmt: skip
    save_file(lora, folder / "l.safetensors")
    hub.repositories["wangfuyun/AnimateLCM"] = Repository({"main": {
        "AnimateLCM_sd15_t2v.ckpt": (folder / "m.ckpt").read_bytes(),
        "AnimateLCM_sd15_t2v_lora.safetensors": (folder / "l.safetensors").read_bytes(),
    }})  # fmt: skip


@pytest.mark.parametrize(
    "file",
    ["unet/diffusion_pytorch_model.safetensors", "AnimateLCM_sd15_t2v_lora.safetensors"],
)
def test_a_hub_that_fails_amid_several_files_goes_on_next_time(
    hub, model, asked, tmp_path, monkeypatch, file
):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    serve_animatelcm(hub, model, tmp_path)
    hub.broken.add(file)
    failed = asked("download", "animatelcm")
    assert (failed.exit_code, failed.stdout) == (3, "")
    *_, told = failed.stderr.splitlines()
    assert told.startswith("error: animatelcm: ")
    assert failed.stderr.count("error") == 1
    assert "the hub fails (HTTP status 500); try again, it goes on where it stopped" in told
    hub.broken.clear()
    before = [name for name in hub.fetched() if name != file]
    done = asked("download", "animatelcm", "--json")
    assert done.exit_code == 0, done.stderr
    assert all(Path(one["path"]).exists() for one in json.loads(done.stdout)["files"])
    assert before
    assert all(hub.fetched().count(name) == 1 for name in before)


@pytest.mark.slow
def test_presets_are_downloaded_once_and_run_without_a_connection(program, hub, model, tmp_path):
    serve_animatelcm(hub, model, tmp_path)
    done = program("download", "animatelcm", "--variant", "fp16", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert [file["role"] for file in record["files"]] == ["base", "motion", "lora"]
    assert all(Path(file["path"]).exists() for file in record["files"])
    assert "unet/diffusion_pytorch_model.safetensors" not in hub.fetched()
    fetched = hub.fetched()
    again = program("download", "animatelcm", "--variant", "fp16", "--offline", sealed=True)
    assert again.stdout.split() == [file["path"] for file in record["files"]]
    request = ["generate", "--preset", "animatelcm", "--variant", "fp16", "--prompt", "x", "--seed",
               1, "--steps", 1, "-L", 2, "-W", 16, "-H", 16, "-o", "out"]  # fmt: skip
    clip = program(*request, "--offline", sealed=True)
    assert (clip.returncode, clip.stdout) == (0, "out/x-1.gif\n"), clip.stderr
    assert "variant: fp16" in (tmp_path / "out" / "x-1.yaml").read_text()
    by_sidecar = program("generate", "out/x-1.yaml", "-o", "b", sealed=True, HF_HUB_OFFLINE="1")
    assert by_sidecar.stdout == "b/x-1.gif\n", by_sidecar.stderr
    one, other = (tmp_path / folder / "x-1.gif" for folder in ("out", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert hub.fetched() == fetched


@pytest.mark.slow
def test_a_hub_out_of_reach_is_exit_code_three(program, hub):
    hub.url = "http://127.0.0.1:9"
    done = program("download", "sd15-v3")
    assert done.returncode == 3
    assert "the hub cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_base_model_may_lie_in_a_folder_of_its_own(tmp_path):
    (tmp_path / "model" / "base" / "unet").mkdir(parents=True)
    assert local_path(str(tmp_path / "model"), "base") == tmp_path / "model" / "base"
    assert local_path(str(tmp_path / "model")) == tmp_path / "model"


def test_a_repository_is_no_weight_file(no_network):
    no_network()
    with pytest.raises(CheckpointError, match="org/model: no such file; check the path"):
        local_path("org/model")


def test_a_lora_of_peft_is_fetched_with_its_settings(tmp_path, monkeypatch):
    chosen = []

    def fetch(source, choose, *, offline):
        chosen.extend(choose(["a/adapter_model.safetensors", "a/adapter_config.json", "b.bin"]))
        return tmp_path

    monkeypatch.setattr(hub_files, "fetch", fetch)
    found = hub_files.fetch_file("some/one/a/adapter_model.safetensors", offline=False)
    assert found == tmp_path / "a" / "adapter_model.safetensors"
    assert chosen == ["a/adapter_model.safetensors", "a/adapter_config.json"]

"""A weight file is opened once: what it lists, whose its tensors are, and one comparison."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from control_things import write_things
from safetensors.torch import load_file, save_file

from animatediff_core.errors import CheckpointError
from animatediff_core.weights import pickles
from animatediff_core.weights.match import check_tensors, shapes_of
from animatediff_core.weights.weight_file import close_weights, open_weights


@pytest.fixture
def loads(monkeypatch):
    """The files that torch.load has read, in order."""
    read, load = [], torch.load

    def counted(path, *args, **kwargs):
        read.append(Path(path).name)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", counted)
    return read


def test_both_containers_list_the_same(tmp_path):
    tensors = {"b.weight": torch.rand(2, 3), "a": torch.rand(4).half(), "c": torch.arange(3)}
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    torch.save({"state_dict": tensors, "epoch": 3, "name": "cat"}, tmp_path / "m.ckpt")
    for name, container in (("m.safetensors", "safetensors"), ("m.ckpt", "pickle")):
        file = open_weights(tmp_path / name)
        assert (file.path, file.container) == (tmp_path / name, container)
        assert file.shapes == {"b.weight": (2, 3), "a": (4,), "c": (3,)}
        assert file.dtypes["b.weight"] == "fp32"
        assert (file.dtypes["a"], file.dtype, file.parameters) == ("fp16", "fp32, fp16", 13)
        found = file.tensors()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
        assert file.tensors("b.", "c").keys() == {"b.weight", "c"}
    assert open_weights(tmp_path / "m.safetensors").metadata == {"format": "pt"}
    assert open_weights(tmp_path / "m.ckpt").metadata == {"epoch": "3", "name": "cat"}


def test_dictionaries_inside_a_pickle_have_dotted_names(tmp_path):
    vectors = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 3))})
    nested = {"image_proj": {"norm": torch.ones(2)}, "deep": {"a": {"b": {"c": torch.ones(1)}}}}
    torch.save({**nested, "string_to_param": vectors, "list": [1]}, tmp_path / "m.pt")
    file = open_weights(tmp_path / "m.pt")
    assert list(file.shapes) == ["image_proj.norm", "deep.a.b.c", "string_to_param.*"]
    assert not file.tensors("string_to_param.")["string_to_param.*"].requires_grad


@pytest.mark.parametrize("wrappers", [["controlnet"], ["state_dict", "controlnet"]])
def test_wrappers_are_taken_off(tmp_path, wrappers):
    content = {"a.b": torch.ones(2)}
    for wrapper in wrappers:
        content = {wrapper: content, "epoch": 1}
    torch.save(content, tmp_path / "m.pt")
    assert open_weights(tmp_path / "m.pt").shapes == {"a.b": (2,)}


def test_a_pickle_is_loaded_once_for_its_names_and_its_tensors(tmp_path, loads):
    torch.save({"a.x": torch.ones(2), "b.x": torch.ones(3)}, tmp_path / "m.ckpt")
    for _ in range(10):
        assert open_weights(tmp_path / "m.ckpt").shapes == {"a.x": (2,), "b.x": (3,)}
    assert open_weights(tmp_path / "m.ckpt").tensors("a.").keys() == {"a.x"}
    assert open_weights(tmp_path / "m.ckpt").tensors("b.").keys() == {"b.x"}
    assert loads == ["m.ckpt"]


@pytest.mark.parametrize("zipped", [True, False])
def test_no_two_callers_share_the_memory_of_a_pickle(tmp_path, loads, zipped):
    path = tmp_path / "m.ckpt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    first = open_weights(path).tensors()["a"]
    first += 5
    assert open_weights(path).tensors()["a"].tolist() == [1, 1]
    assert loads == ["m.ckpt"] * (2 if zipped else 3)


def test_a_file_that_changed_is_opened_again(tmp_path):
    path = tmp_path / "m.safetensors"
    for shape in ((2,), (3,)):
        save_file({"a": torch.ones(shape)}, path)
        assert open_weights(path).shapes == {"a": shape}
        assert open_weights(path) is open_weights(path)
    first = open_weights(path)
    close_weights()
    assert open_weights(path) is not first


def test_a_pickle_that_loses_tensors_while_it_is_in_use_is_named(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(2)}, path)
    file = open_weights(path)
    file.tensors()
    torch.save({"b": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"m\.pt: changed while it was in use"):
        file.tensors()


EXPECTED = {"in.weight": (2, 3), "mid.weight": (4,), "out.bias": (5,)}
NO_FIT = {
    "missing": ({"in.weight": (2, 3)}, "lacks 2 of 3 tensors (mid.weight, out.bias)"),
    "unknown": (
        {**EXPECTED, **{f"x{number}": (1,) for number in range(5)}},
        "has 5 unknown tensors (x0, x1, x2, …)",
    ),
    "misshapen": (
        {**EXPECTED, "in.weight": (3, 2)},
        "has 1 tensors of another shape (first in.weight: (3, 2), not (2, 3))",
    ),
    "all": (
        {"in.weight": (3, 2), "mid.weight": (4,), "x": (1,)},
        "it lacks 1 of 3 tensors (out.bias), has 1 unknown tensors (x), has 1 tensors of another",
    ),
}


@pytest.mark.parametrize("name", NO_FIT)
def test_every_tensor_must_match(name):
    found, message = NO_FIT[name]
    with pytest.raises(CheckpointError) as raised:
        check_tensors(EXPECTED, found, Path("m.pt"), "UNet", "use another")
    assert str(raised.value).startswith("m.pt: does not fit the UNet: it ")
    assert message in str(raised.value)
    assert str(raised.value).endswith("; use another")


def test_others_may_be_allowed():
    check_tensors(EXPECTED, EXPECTED, "m.pt", "UNet", "use another")
    more = {**EXPECTED, "optimizer": (1,)}
    check_tensors(EXPECTED, more, "m.pt", "UNet", "use another", others_allowed=True)


def test_shapes_are_those_of_a_model_or_of_named_tensors():
    linear = torch.nn.Linear(3, 2)
    assert shapes_of(linear) == {"weight": (2, 3), "bias": (2,)}
    assert shapes_of(dict(linear.state_dict())) == {"weight": (2, 3), "bias": (2,)}


def test_a_run_of_ten_jobs_opens_a_pickled_controlnet_once(asked, tmp_path, loads, monkeypatch):
    """Once in a dry run, and once in a real run, in which it is loaded too."""
    checks, check = [], pickles._check_archive

    def counted(path):
        checks.append(path.name)
        check(path)

    monkeypatch.setattr(pickles, "_check_archive", counted)
    write_things(tmp_path)
    weights = load_file(tmp_path / "controlnet" / "diffusion_pytorch_model.safetensors")
    torch.save(weights, tmp_path / "edges.ckpt")
    control = {"path": "edges.ckpt", "images": "film", "canny": True}
    jobs = [
        {"prompt": f"ball {n}", "seed": n, "controlnets": [control], "frames": 2, "steps": 1}
        for n in range(10)
    ]
    (tmp_path / "ten.yaml").write_text(yaml.safe_dump({"jobs": jobs}))
    for options in (["--dry-run"], ["-o", tmp_path / "clips"]):
        loads.clear()
        checks.clear()
        close_weights()
        done = asked("generate", tmp_path / "ten.yaml", "--device", "cpu", *options)
        assert done.exit_code == 0, done.output
        sys.stdout.write(f"{options[0]}: {len(loads)} torch.load, {len(checks)} check\n")
        assert (loads, checks) == (["edges.ckpt"], ["edges.ckpt"])
    assert len(list((tmp_path / "clips").glob("ball*.gif"))) == 10


@pytest.mark.parametrize("suffix", ["safetensors", "zip", "old"])
def test_on_the_meta_device_tensors_come_from_the_header(tmp_path, suffix):
    tensors = {"a": torch.ones(2, 3, dtype=torch.bfloat16), "b.c": torch.ones(1).long()}
    path = tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(tensors | {"d": torch.ones(4).to(torch.float8_e5m2)}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == "zip")
    with torch.device("meta"):
        found = open_weights(path).tensors()
    kinds = {name: (t.device.type, tuple(t.shape), str(t.dtype)) for name, t in found.items()}
    assert kinds.pop("d", kinds["a"])[0] == "meta"
    assert kinds == {
        "a": ("meta", (2, 3), "torch.bfloat16"), "b.c": ("meta", (1,), "torch.int64"),
    }  # fmt: skip
    assert torch.equal(open_weights(path).tensors("a")["a"], tensors["a"])

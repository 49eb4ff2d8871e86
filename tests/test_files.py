"""Weight files and configurations that were made to hurt: one sentence, quickly, without memory."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from animatediff_core.errors import CheckpointError
from animatediff_core.weights.files import printable, read_config_json
from animatediff_core.weights.weight_file import open_weights

F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def write_header(path, header, values=b"\0" * 64, length=None):
    """A safetensors file by its specification: eight bytes of length, JSON, values."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + values)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BROKEN = "truncated or damaged"
HEADERS = {
    "longer than the file": (b"{}", b"", 2**63, BROKEN),
    "longest number": (b"{}", b"", 2**64 - 1, BROKEN),
    "large": (b"{" + b" " * (17 << 20) + b"}", b"", None, "a header of 17 MiB"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", None, BROKEN),
    "no JSON": (b'{"a": nothing}', b"", None, BROKEN),
    "no text": (b'{"\xff\xfe": 1}', b"", None, BROKEN),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, None, BROKEN),
    "same place": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 4, None, BROKEN),
    "same name": (b'{"a":%b,"a":%b}' % ((json.dumps(F4).encode(),) * 2), b"\0" * 8, None, BROKEN),
    "past the end": ({"a": entry([4], 0, 16)}, b"\0" * 4, None, BROKEN),
    "backwards": ({"a": entry([1], 8, 4)}, b"\0" * 8, None, BROKEN),
    "gap": ({"a": F4, "b": entry([1], 8, 12)}, b"\0" * 12, None, BROKEN),
    "huge shape": ({"a": entry([2**31, 2**31, 4], 0, 4)}, b"\0" * 4, None, BROKEN),
    "shape beyond numbers": ({"a": entry([10**30], 0, 4)}, b"\0" * 4, None, BROKEN),
    "negative shape": ({"a": entry([-1], 0, 4)}, b"\0" * 4, None, BROKEN),
    "unknown dtype": ({"a": entry([1], 0, 4, "F1024")}, b"\0" * 4, None, BROKEN),
    "metadata of numbers": ({"__metadata__": {"a": [1]}, "b": F4}, b"\0" * 4, None, BROKEN),
    "metadata as text": ({"__metadata__": "a", "b": F4}, b"\0" * 4, None, BROKEN),
    "control characters": ({"a\x1b[31m\n": F4}, b"\0" * 4, None, r"names a tensor 'a\x1b[31m\n'"),
    "reversed text": ({"a\u202ecod": F4}, b"\0" * 4, None, r"names a tensor 'a\u202ecod'"),
    "long name": ({"a" * 5000: F4}, b"\0" * 4, None, f"names a tensor '{'a' * 77}...'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ["bytes after the end", "numbers in the metadata"])
def test_two_faults_of_published_files_are_forgiven(tmp_path, fault):
    metadata = {"steps": 500, "loss": 0.5} if fault.startswith("numbers") else {"steps": "500"}
    header = {"__metadata__": metadata, "a": F4}
    text = json.dumps(header).encode()
    values = struct.pack("<f", 2.5) + (b"more" if fault.startswith("bytes") else b"")
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    found = open_weights(path)
    assert found.metadata["steps"] == "500"
    assert found.tensors()["a"].tolist() == [2.5]
    path.write_bytes(len(text).to_bytes(8, "little") + text + values[:3])
    with pytest.raises(CheckpointError, match=BROKEN):
        open_weights(path)


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_safetensors_header_ends_in_one_sentence(tmp_path, name):
    header, values, length, message = HEADERS[name]
    path = tmp_path / "m.safetensors"
    write_header(path, header, values, length)
    assert message in refusal(open_weights, path)


def refusal(read, path):
    """The sentence of a refusal, which must come quickly and be fit for a terminal."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as told:
        read(path)
    assert time.process_time() - start < 2
    message = str(told.value)
    assert message.isprintable()
    assert len(message) < 500 + len(str(path))
    return message


def many(count):
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return f"{{{','.join(one % number for number in range(count))}}}".encode()


def test_hundreds_of_thousands_of_tensors_are_refused_and_thousands_are_not(tmp_path):
    write_header(tmp_path / "m.safetensors", many(200_000), b"")
    assert "more than 20000 tensors" in refusal(open_weights, tmp_path / "m.safetensors")
    save_file({f"{i}": torch.zeros(1) for i in range(5000)}, tmp_path / "n.safetensors")
    assert len(open_weights(tmp_path / "n.safetensors").shapes) == 5000


def test_names_that_look_like_paths_are_only_names(tmp_path):
    names = ["../../outside", "/etc/passwd", "C:\\x", "a/../b"]
    (tmp_path / "in").mkdir()
    save_file({name: torch.ones(1) for name in names}, tmp_path / "in" / "m.safetensors")
    assert sorted(open_weights(tmp_path / "in" / "m.safetensors").tensors()) == sorted(names)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "m.safetensors"]


def test_names_are_shown_short_and_without_control_characters():
    assert printable("unet.conv_in.weight") == "unet.conv_in.weight"
    assert printable("\x1b[2J") == r"\x1b[2J"
    assert printable("é") == "é"
    assert len(printable("x" * 10**6)) == 80


# Pickles. Operations are written out as the pickle protocol has them (pickletools names them).


def archive(path, data, records=(b"\0" * 4,), extra=(), compression=zipfile.ZIP_STORED):
    """A zip archive in torch's layout around a data.pkl."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "little")
        for number, record in enumerate(records):
            file.writestr(f"archive/data/{number}", record)
        file.writestr("archive/version", "3\n")
        for name, content in extra:
            file.writestr(name, content)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def integer(number):
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


def numbers(*values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(shape, stride, stored, offset=0, key="0"):
    """The call that rebuilds a float32 tensor from `stored` numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(stored) + b"tQ"
            + integer(offset) + numbers(*shape) + numbers(*stride) + b"\x89"
            + b"ccollections\nOrderedDict\n)RtR")  # fmt: skip


def of(**tensors):
    body = b"".join(text(name) + content for name, content in tensors.items())
    return b"\x80\x02}(" + body + b"u."


ONE = struct.pack("<qf", 1, 0.5)
"""A storage of one number as the plain form has it: count, then numbers."""


def plain(path, data, values=ONE):
    """torch's form before 1.6: magic number, protocol, system, content, keys, values.

    After a storage's length it says of which other one this is a view: here of none.
    """
    keys = ["0"] if b"tQ" in data else []
    data = data.replace(b"tQ", b"NtQ")
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    start = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    path.write_bytes(start + data + pickle.dumps(keys, protocol=2) + values)


def nested(opening, count):
    return b"\x80\x02" + b"K\x00" + opening * count + b"."


DEEP_KEY = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s."
"""A tuple in a tuple in a tuple …, used as a key: hashing it would end Python itself."""
CODE = "could run code"
PICKLED = {
    "stride 0": (of(a=tensor([2**40], [0], 1)), "claims 4398046511104 bytes for a tensor of 4"),
    "outside": (of(a=tensor([1], [1], 1, offset=10)), BROKEN),
    "larger than stored": (of(a=tensor([1000], [1], 1000)), "room for|damaged"),
    "huge storage": (of(a=tensor([2**45], [1], 2**45)), "claims|damaged"),
    "negative shape": (of(a=tensor([-1], [1], 1)), BROKEN),
    "negative stride": (of(a=tensor([2], [-1], 1)), BROKEN),
    "deep tuples": (nested(b"\x85", 100_000), "more than 50 deep"),
    "deep lists": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "more than 50 deep"),
    "deep key": (DEEP_KEY, "more than 50 deep"),
    "many steps": (b"\x80\x02]" + b"(" + b"]" * 5_000_000 + b"e.", "too many steps"),
    "long text": (b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.", BROKEN),
    "code": (b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R.", CODE),
    "memory": (b"\x80\x02cbuiltins\nbytearray\n" + integer(2**40) + b"\x85R.", CODE),
    "allocation": (b"\x80\x02ctorch\nTensor\n" + integer(2**40) + b"\x85R.", CODE),
    "stack only": (b"\x80\x02u.", BROKEN),
    "no end": (b"\x80\x02}", BROKEN),
    "a number": (b"\x80\x02K\x01.", "no named tensors"),
    "other operations": (pickle.dumps({"a": 1}, protocol=4), CODE),
    "circle": (b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.", None),
}  # fmt: skip


@pytest.mark.parametrize("write", [archive, plain])
@pytest.mark.parametrize("name", PICKLED)
def test_a_hostile_pickle_ends_in_one_sentence(tmp_path, name, write):
    data, message = PICKLED[name]
    path = tmp_path / "m.ckpt"
    write(path, data)
    if message is None:
        assert open_weights(path).tensors() == {}
        return
    told = refusal(open_weights, path)
    assert any(one in told for one in message.split("|")), told


def test_the_handmade_pickles_above_are_real_ones(tmp_path):
    values = struct.pack("<4f", 1, 2, 3, 4)
    data = of(a=tensor([2, 2], [2, 1], 4), b=tensor([2], [1], 4, offset=1))
    archive(tmp_path / "a.pt", data, [values])
    plain(tmp_path / "b.pt", data, values=struct.pack("<q", 4) + values)
    for name in ("a.pt", "b.pt"):
        tensors = open_weights(tmp_path / name).tensors()
        assert tensors["a"].tolist() == [[1, 2], [3, 4]]
        assert tensors["b"].tolist() == [2, 3]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_in_both_of_its_forms(tmp_path, zipped):
    content = {
        "state_dict": OrderedDict(
            weight=torch.arange(6.0).reshape(2, 3).t(),
            half=torch.ones(3, dtype=torch.float16),
            brain=torch.ones(3, dtype=torch.bfloat16),
            counts=torch.tensor([1, 2]),
            parameter=torch.nn.Parameter(torch.ones(2)),
            one=torch.ones(1).expand(1, 1),
            nothing=torch.zeros(0, 4),
        ),
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "groups": [(1, 2.5, None)]},
    }
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    tensors = open_weights(tmp_path / "m.pt").tensors()
    assert tensors.keys() == content["state_dict"].keys()
    for name, saved in content["state_dict"].items():
        assert torch.equal(tensors[name], saved)
        assert tensors[name].dtype == saved.dtype
    assert open_weights(tmp_path / "m.pt").metadata["epoch"] == "3"


def test_the_first_textual_inversions_are_read_and_checked(tmp_path):
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 3))})
    torch.save({"string_to_param": words, "name": "cat"}, tmp_path / "m.pt")
    file = open_weights(tmp_path / "m.pt")
    assert torch.equal(file.tensors()["string_to_param.*"], words["*"])
    assert file.metadata["name"] == "cat"
    words["*"] = torch.nn.Parameter(torch.ones(1).expand(10**9))
    torch.save({"string_to_param": words}, tmp_path / "m.pt")
    assert "claims 4000000000 bytes for a tensor of 4" in refusal(open_weights, tmp_path / "m.pt")


def test_two_thousand_six_hundred_tensors_of_a_pickle_are_read(tmp_path):
    torch.save({f"model.diffusion_model.{i}": torch.zeros(1) for i in range(2600)},
               tmp_path / "m.ckpt")  # fmt: skip
    assert len(open_weights(tmp_path / "m.ckpt").shapes) == 2600


@pytest.mark.parametrize("write", [archive, plain])
def test_many_views_of_one_storage_are_no_way_to_claim_more_than_the_file(tmp_path, write):
    data = of(**{f"k{i}": tensor([10_000], [1], 10_000) for i in range(100)})
    values = bytes(40_000)
    if write is archive:
        archive(tmp_path / "m.pt", data, [values])
    else:
        plain(tmp_path / "m.pt", data, values=struct.pack("<q", 10_000) + values)
    assert "claims more values than it has room for" in refusal(open_weights, tmp_path / "m.pt")


SMALL = of(a=tensor([1], [1], 1))
ARCHIVES = {
    "compressed": ({"compression": zipfile.ZIP_DEFLATED}, "has compressed members"),
    "climbing": ({"extra": [("archive/../../evil", "x")]}, "point out of it"),
    "absolute": ({"extra": [("/etc/evil", "x")]}, "point out of it"),
    "TorchScript": ({"extra": [("archive/constants.pkl", "x")]}, "is a TorchScript program"),
    "two contents": ({"extra": [("other/data.pkl", "x")]}, "zip archive without weights"),
    "many members": ({"extra": [(f"archive/{i}", "") for i in range(21_000)]}, "has 2100"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_torch_would_not_write_is_refused(tmp_path, name):
    changes, message = ARCHIVES[name]
    archive(tmp_path / "m.pt", SMALL, **changes)
    assert message in refusal(open_weights, tmp_path / "m.pt")


def test_more_archives_that_torch_would_not_write(tmp_path):
    path = tmp_path / "m.pt"
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, SMALL, extra=[("archive/data.pkl", SMALL)])
    assert "stand twice" in refusal(open_weights, path)
    archive(path, SMALL + b"\0" * (9 << 20))
    assert "describes its tensors in 9 MiB" in refusal(open_weights, path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.safetensors", b"x")
    assert "unpack it first" in refusal(open_weights, path)
    archive(path, SMALL)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert BROKEN in refusal(open_weights, path)
    path.write_bytes(whole + b"appended")
    assert BROKEN in refusal(open_weights, path)
    claimed = whole.replace(struct.pack("<II", 4, 4), struct.pack("<II", 2**31, 2**31))
    path.write_bytes(claimed)
    assert "more content than its own length" in refusal(open_weights, path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", SMALL)
        with file.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(64):
                record.write(bytes(1 << 20))
    assert "has compressed members" in refusal(open_weights, tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_scripted_models_and_tar_archives_are_named(tmp_path):
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    scripted.save(tmp_path / "m.pt")
    assert "is a TorchScript program" in refusal(open_weights, tmp_path / "m.pt")
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2).decode("latin-1")
    with tarfile.open(tmp_path / "t.pt", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo(magic), io.BytesIO())
    assert (tmp_path / "t.pt").read_bytes().startswith(magic.encode("latin-1"))
    assert "is a tar archive" in refusal(open_weights, tmp_path / "t.pt")


def test_unprintable_names_in_a_pickle_are_refused(tmp_path):
    torch.save({"a\x07": torch.zeros(1)}, tmp_path / "m.pt")
    assert r"names a tensor 'a\x07'" in refusal(open_weights, tmp_path / "m.pt")


def test_arrays_of_numpy_are_refused_as_code(tmp_path):
    torch.save({"a": np.zeros(3)}, tmp_path / "m.pt")
    assert CODE in refusal(open_weights, tmp_path / "m.pt")


def test_refusals_take_no_memory(tmp_path):
    """All of the files above, in a process that may not grow by more than 300 MiB."""
    for number, (header, values, length, _) in enumerate(HEADERS.values()):
        write_header(tmp_path / f"{number}.safetensors", header, values, length)
    write_header(tmp_path / "many.safetensors", many(200_000), b"")
    for number, (data, _) in enumerate(PICKLED.values()):
        archive(tmp_path / f"{number}.ckpt", data)
        plain(tmp_path / f"{number}.bin", data)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from animatediff_core.weights.weight_file import open_weights\n"
        "from animatediff_core.errors import CheckpointError\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: open_weights(path).tensors()\n"
        "    except CheckpointError: pass\n"
        "print((peak() - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300


def test_what_is_no_plain_file_is_named(tmp_path):
    (tmp_path / "dangling.pt").symlink_to("nowhere.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    messages = {"dangling.pt": "is a link to nothing", "loop.pt": "is a link to nothing",
                "pipe.pt": "is no plain file", "zero.pt": "is no plain file"}  # fmt: skip
    for name, message in messages.items():
        for read in (open_weights, read_config_json):
            assert message in refusal(read, tmp_path / name)
    assert "cannot be read" in refusal(open_weights, tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"x")
    (tmp_path / "m.pt").chmod(0)
    assert "check its permissions" in refusal(open_weights, tmp_path / "m.pt")


def test_links_to_files_are_followed(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors")
    (tmp_path / "link.safetensors").symlink_to("m.safetensors")
    assert open_weights(tmp_path / "link.safetensors").shapes == {"a": (1,)}


CONFIGS = {
    "not JSON": (b"layers: 2", "is no JSON"),
    "no text": (b"\xff\xfe{}", "is no JSON"),
    "a list": (b"[1]", "no object of named settings"),
    "deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is no JSON"),
    "long": (b'{"a":"' + b"x" * (2 << 20) + b'"}', "has 2048 KiB"),
    "long number": (b'{"a":' + b"9" * 10_000 + b"}", "is no JSON"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_no_object_ends_in_one_sentence(tmp_path, name):
    content, message = CONFIGS[name]
    (tmp_path / "config.json").write_bytes(content)
    assert message in refusal(read_config_json, tmp_path / "config.json")

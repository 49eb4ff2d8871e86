"""Messages: faults of YAML and JSON, keys that belong elsewhere, odd values, signs as typed."""

import logging
from pathlib import Path

import pytest

from animatediff_core.errors import Problem, PromptFileError
from animatediff_core.jobs import documents, extending, job_from_options, parse_prompts
from animatediff_core.jobs.documents import parsed
from animatediff_core.jobs.wildcards import chosen
from animatediff_core.media.settings import sidecar_of
from cli import render


def wrong(text: str, file: str = "f.yaml", folder: Path = Path()) -> list[str]:
    with pytest.raises(PromptFileError) as caught:
        parse_prompts(text, file, folder)
    return str(caught.value).removeprefix(f"{file}: ").split(f"\n{file}: ")


MERGED = "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{below}'] * 9)}]}}\n"
    for below, name in zip("abcdefg", "bcdefgh", strict=True)
)
ALIASES = "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n"
    for below, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  // model\n  "path": "m"}',
         "no valid JSON in line 2: comments are no JSON; remove them"),
        ('{\n"a": 1\n"b": 2}', "no valid JSON in line 3: Expecting ',' delimiter"),
        ('[{"prompt": "a"]', "no valid JSON in line 1: Expecting ',' delimiter"),
        ("{a: 1", "no valid YAML in line 1: expected ',' or '}', but got '<stream end>'"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice in one mapping"),
        ("a: " + "9" * 5000, "Exceeds the limit (4300 digits) for integer string conversion: "
                             "value has 5000 digits"),
        ("a: !!bool abc", "has a value that does not suit its !! tag"),
        ("a: !!timestamp abc", "has a value that does not suit its !! tag"),
        ('{"a": "\\ud800"}', r"'\ud800' is no Unicode text; retype it"),
        ('base: "a\\0b"', r"'a\x00b' is no Unicode text; retype it"),
        ("[" * 3000, "is nested too deeply"),
        ("a: &a {x: 1, y: 2}\n" + MERGED,
         "no valid YAML in line 5: merge keys make a mapping of more than 10,000 keys"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_read(text, message):
    with pytest.raises(PromptFileError) as caught:
        parsed(text, "f")
    assert str(caught.value) == f"f: {message}"


def test_aliases_of_aliases_end(monkeypatch):
    monkeypatch.setattr(documents, "_MOST", 10_000)
    with pytest.raises(PromptFileError, match="f: has more than 10,000 values, counting aliases"):
        parsed("a: &a [1, 2]\n" + ALIASES, "f")


def test_a_json_file_that_is_flow_yaml_has_jsons_fault():
    with pytest.raises(PromptFileError, match="p.json: no valid JSON in line 1: Expecting prop"):
        parsed("{a: 1", "p.json")
    assert parsed('{"a": [1, 2,],\n}', "p.json") == {"a": [1, 2]}  # taken as YAML


def test_a_flat_file_names_the_place_of_its_settings_once():
    text = "prompt: a\nfps: 8\ncfg: 7\nmotion_module_path: m\nfoo: 1\nvideo_length: 9\n"
    assert wrong(text.replace("motion_module_path", "base_model")) == [
        "base_model: unknown key; did you mean base?",
        "foo: unknown key; docs/settings.md has all",
        "settings of clips belong under defaults, or in a job under jobs: prompt, "
        "fps as output.fps, cfg as guidance_scale, video_length as frames",
        "jobs: must be a list of at least one job",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fps: 8", "fps: unknown key; did you mean output.fps?"),
        ("cfg: 7", "cfg: unknown key; did you mean guidance_scale?"),
        ("CFG scale: 7", "CFG scale: unknown key; did you mean guidance_scale?"),
        ("video_length: 8", "video_length: unknown key; did you mean frames?"),
        ("L: 8", "L: unknown key; did you mean frames?"),
        ("motion_module_path: m", "motion_module_path: unknown key; did you mean motion?"),
        ("overlap: 4", "overlap: unknown key; did you mean window.overlap?"),
        ("output: {steps: 4}",
         "output.steps: unknown key here; steps stands outside of this record"),
        ("frames: 1" + "0" * 400, "frames: must be at most 1.84467e+19"),
        ("upscale: 1e308", "upscale.scale: must be at most 1.84467e+19"),
        ("motion_positions: {offset: 1.0e+300}",
         "motion_positions.offset: must be at most 1.84467e+19"),
        ("xyz: 1", "xyz: unknown key; docs/settings.md has all"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_its_place(setting, message):
    assert wrong(f"jobs: [{{prompt: a, {setting}}}]") == [f"jobs[0]: {message}"]


def test_a_message_has_no_control_characters_and_at_most_500_characters():
    assert str(Problem("no \a \x1b[31m \u202e\n\ud800")) == r"no \x07 \x1b[31m \u202e\n\ud800"
    typed = "\U0001f469\u200d\U0001f680, 日本 \xa0"
    assert str(Problem(typed)) == typed
    long = str(Problem("x" * 600 + "; use y", "key", "file"))
    assert len(long) == 500
    assert long.startswith("file: key: xxx")
    assert long.endswith("xxx; use y")


def test_signs_stay_as_typed(capsys):
    render.error("[cat:dog:0.5] and no:fire:file.yaml")
    record = logging.LogRecord("a", logging.WARNING, "", 0, "<lora:smile:0.8>\a", None, None)
    render._Handler().emit(record)
    render.console.print(render.Table("[b]a[/b] :cat:"))
    said = capsys.readouterr().err
    assert said.startswith("error: [cat:dog:0.5] and no:fire:file.yaml\n")
    assert "warning: <lora:smile:0.8>\\x07\n" in said
    assert "[b]a[/b] :cat:" in said


def test_wildcards_that_lead_to_thousands_of_others_end(tmp_path):
    for number in range(8):
        (tmp_path / f"w{number}.txt").write_text(f"__w{number + 1}__ " * 12)
    (tmp_path / "w8.txt").write_text("a")
    with pytest.raises(PromptFileError, match="leads back to itself, or to more than 1000 others"):
        chosen("__w0__", 1, "prompt/0", [tmp_path])
    with pytest.raises(PromptFileError, match="__aaa.*aaa.txt beside the prompt file"):
        chosen("__" + "a" * 300 + "__", 1, "prompt/0", [tmp_path])


def test_a_long_chain_of_extended_files_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(extending, "_LONGEST_CHAIN", 5)
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\njobs: [a]")
    (message,) = wrong((tmp_path / "0.yaml").read_text(), folder=tmp_path)
    assert message.endswith("is in a chain of more than 5 files")


def test_bytes_of_another_encoding_on_the_command_line():
    with pytest.raises(PromptFileError, match=r"options: 'caf\\udce9' is no Unicode text"):
        job_from_options({"prompt": "caf\udce9"})


def test_a_folder_without_a_name_has_a_sidecar_too(tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path / "clip")
    assert sidecar_of(Path()) == Path("clip.yaml")
    assert sidecar_of(Path("/")) == Path("/.yaml")

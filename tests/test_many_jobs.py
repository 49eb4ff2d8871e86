"""One file, many jobs: matrix, wildcards, files that extend others, names of clips."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from animatediff_core.errors import AnimateDiffError, PromptFileError
from animatediff_core.jobs import Job, dump_job, load_prompt_file, output_name, parse_prompts
from animatediff_core.planning.jobs import plan

ROOT = Path(__file__).parent.parent


def jobs(text: str, folder: Path = Path()) -> list[Job]:
    return parse_prompts(text, "f.yaml", folder)


def test_a_matrix_makes_every_combination_in_order():
    made = jobs(
        "matrix: {steps: [2, 3], output.fps: [4, 8], prompt: [a, b]}\n"
        "jobs: [{seed: 1, output: {format: mp4}}]"
    )
    assert [(j.steps, j.output.fps, j.prompt[0]) for j in made] == [
        (steps, fps, text) for steps in (2, 3) for fps in (4, 8) for text in "ab"
    ]
    assert {j.output.format for j in made} == {"mp4"}


def test_a_jobs_matrix_goes_over_the_files_and_seeds_multiply():
    made = jobs(
        "matrix: {steps: [2, 3]}\n"
        "jobs: [{prompt: a, seed: [1, 2], matrix: {steps: [5], width: [8, 16]}}, {prompt: b}]"
    )
    assert [(j.steps, j.width, j.seed) for j in made[:4]] == [
        (5, 8, 1), (5, 8, 2), (5, 16, 1), (5, 16, 2),
    ]  # fmt: skip
    assert [j.steps for j in made[4:]] == [2, 3]


COLOURS = "red\n# a comment\n\nblue\n__dark__ green\n"


@pytest.fixture
def wild(tmp_path):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "colour.txt").write_text(COLOURS)
    (tmp_path / "wildcards" / "dark.txt").write_text("deep\nnight\n")
    return tmp_path


def test_wildcards_are_chosen_by_the_seed_alone(wild):
    text = "jobs: [{prompt: {0: a __colour__ ring, 8: a __colour__ star}, seed: %s}]"
    made = jobs(text % list(range(300)), wild)
    again = [jobs(text % seed, wild)[0] for seed in range(0, 300, 50)]
    assert [made[job.seed] for job in again] == again
    counts = Counter(job.prompt[0].split()[1] for job in made)
    assert counts.keys() == {"red", "blue", "deep", "night"}
    assert all(70 < counts[colour] < 130 for colour in ("red", "blue"))
    assert 0 < sum(j.prompt[0].split()[1] != j.prompt[8].split()[1] for j in made) < 300
    assert jobs(dump_job(made[7]), Path("/")) == [made[7]]


def test_prompts_of_regions_have_wildcards_and_count_frames_from_the_end_too(wild):
    (job,) = jobs(
        "jobs: [{prompt: a, seed: 1, frames: 8, regions: "
        "[{prompt: {0: a __colour__ ring, -1: b}, mask: m.png}]}]", wild
    )  # fmt: skip
    assert job.regions[0].prompt[0] in ("a red ring", "a blue ring", "a deep green ring",
                                        "a night green ring")  # fmt: skip
    assert job.regions[0].prompt[7] == "b"


def test_the_expansion_is_the_same_everywhere(wild):
    """Written down, so that another machine or version would be noticed."""
    made = jobs("jobs: [{prompt: __colour__ __colour__ __colour__, seed: [1, 2, 3, 4]}]", wild)
    assert [job.prompt[0] for job in made] == [
        "red blue blue", "blue red red", "night green red deep green", "red red blue",
    ]  # fmt: skip


def test_files_extend_others_and_own_keys_win(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").touch()
    (tmp_path / "base" / "colour.txt").write_text("teal\n")
    (tmp_path / "base" / "first.yaml").write_text(
        "base: model.safetensors\nmotion: mm.ckpt\n"
        "defaults: {steps: 7, output: {fps: 12, format: mp4}}\nmatrix: {width: [8, 16]}\n"
        "jobs: [{prompt: a __colour__ ring, seed: 1}]"
    )
    (tmp_path / "second.yaml").write_text(
        "extends: base/first.yaml\ndefaults: {output: {fps: 6}, guidance_scale: 2}"
    )
    (tmp_path / "third.yaml").write_text("extends: second.yaml\nmatrix: {width: [24]}")
    made = load_prompt_file(tmp_path / "third.yaml")
    assert [(j.width, j.steps, j.output.fps, j.output.format, j.guidance_scale) for j in made] == [
        (24, 7, 6, "mp4", 2)
    ]
    assert made[0].base == str(tmp_path / "base" / "model.safetensors")
    assert (made[0].motion, made[0].prompt[0]) == ("mm.ckpt", "a teal ring")
    (tmp_path / "other.yaml").write_text("extends: second.yaml\npreset: tiny\njobs: [b]")
    (other, _) = load_prompt_file(tmp_path / "other.yaml")
    assert (other.base, other.prompt[0], other.steps) == ("bundled:tiny", "b", 7)


def test_names_of_clips_from_a_template():
    made = jobs(
        "preset: tiny\nmatrix: {steps: [2, 3]}\n"
        "defaults: {output: {name: '{preset}/{name}-{output.format}-{steps:03}-{index:02}'}}\n"
        "jobs: [{name: A b, prompt: x, seed: [1, 2]}]"
    )
    assert [output_name(job) for job in made] == [
        f"tiny/a-b-gif-{steps:03}-{index:02}"
        for index, steps in enumerate((2, 2, 3, 3), start=1)
    ]  # fmt: skip
    assert [output_name(jobs(dump_job(job))[0]) for job in made] == [output_name(j) for j in made]
    (plain,) = jobs("jobs: [{prompt: 'Über  all: die/Ringe…', seed: 1}]")
    assert output_name(plain) == "über-all-die-ringe-1"


@pytest.mark.parametrize("text", ["../{name}", "/{name}", "a//b", "a/../b", ".{name}", "c:{name}",
                                  "a\\b", "{name", "{loras}", "{name:03}", "{output.seed}",
                                  "{nmae}", "", "-"])  # fmt: skip
def test_names_stay_in_the_folder_and_name_what_is_there(text):
    settings = {"jobs": [{"prompt": "a", "seed": 1, "output": {"name": text}}]}
    with pytest.raises(PromptFileError, match=r"output\.name"):
        jobs(yaml.safe_dump(settings))


def test_a_value_cannot_lead_out_of_the_folder():
    (job,) = jobs(
        "jobs: [{prompt: ../../x, seed: 1, base: /etc/x, output: {name: '{prompt}{base}'}}]"
    )
    assert output_name(job) == "xetc-x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrix: {stpes: [1]}", r"matrix.stpes: unknown key; did you mean steps\?"),
        ("matrix: {output.fsp: [1]}", r"matrix.output.fsp: unknown key; did you mean fps\?"),
        ("matrix: {steps: 3}", "matrix.steps: must be a list of at least one value"),
        ("matrix: {steps: []}", "matrix.steps: must be a list of at least one value"),
        ("matrix: [steps]", "matrix: must be a mapping of fields to lists"),
        ("matrix: {steps: [a]}", r"jobs\[0\]: steps: must be a whole number of 1 or more, got 'a'"),
        (f"matrix: {{steps: {list(range(1, 200))}, seed: {list(range(200))}}}", "at most 10000"),
        (
            "defaults: {prompt: a __nothing__}",
            r"jobs\[0\] .x.: prompt: the wildcard __nothing__ has no",
        ),
        ("defaults: {prompt: __round__}", "the wildcard __round__ leads back to itself"),
        ("defaults: {prompt: __empty__}", "has no line for the wildcard __empty__"),
        ("defaults: {negative_prompt: __nothing__}", "negative_prompt: the wildcard __nothing__"),
        ("extends: nowhere.yaml", "extends: .*nowhere.yaml: no such file"),
        ("extends: [a]", "extends: must be the path of one prompt file"),
        ("extends: loop.yaml", "extends: .*loop.yaml leads back to itself"),
        ("extends: list.yaml", "list.yaml: must be a mapping, as in our own prompt files"),
        ("extends: wrong.yaml", "wrong.yaml: defaults.stpes: unknown key; did you mean steps"),
    ],
)
def test_wrong_files_are_told_what_and_where(tmp_path, text, message):
    (tmp_path / "round.txt").write_text("__round__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "loop.yaml").write_text("extends: ./loop.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "wrong.yaml").write_text("defaults: {stpes: 1}")
    (tmp_path / "f.yaml").write_text(f"{text}\njobs: [{{seed: 1, prompt: x}}]")
    if "prompt" in text:
        (tmp_path / "f.yaml").write_text(f"{text}\njobs: [{{seed: 1, name: x}}]".replace(
            "name: x", "prompt: x" if "negative" in text else "name: x"))  # fmt: skip
    with pytest.raises(PromptFileError, match=message) as caught:
        load_prompt_file(tmp_path / "f.yaml")
    assert str(caught.value).startswith(str(tmp_path / "f.yaml: "))


def test_the_same_file_gives_the_same_jobs_in_another_process(wild):
    (wild / "f.yaml").write_text(
        "matrix: {steps: [2, 3]}\nextends: g.yaml\n"
        "jobs: [{prompt: a __colour__ ring, seed: [4, 5], loras: [colour.txt]}]"
    )
    (wild / "g.yaml").write_text("defaults: {noise: mixed, output: {name: '{index}-{seed}'}}")
    code = (
        "import sys; from animatediff_core.jobs import load_prompt_file;"
        "print(*map(repr, load_prompt_file(sys.argv[1])), sep='\\n')"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, wild / "f.yaml"], check=True, capture_output=True,
            text=True, cwd=place, env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale,
                                       "PYTHONPATH": str(ROOT)},
        ).stdout
        for place, seed, locale in ((ROOT, "1", "C"), (wild.parent, "2", "C.UTF-8"))
    }  # fmt: skip
    assert told == {"\n".join(map(repr, load_prompt_file(wild / "f.yaml"))) + "\n"}


def test_a_missing_model_hides_no_other_problem_of_its_job(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("""
        jobs:
          - {prompt: x, base: nowhere.safetensors, steps: 101, scheduler: lcm, noise: freenoise,
             start: {images: none.png}, output: {format: mp4}, width: 33}
    """)
    made = load_prompt_file(path)
    with pytest.raises(AnimateDiffError) as found:
        plan(made)
    assert [problem.key for problem in found.value.problems] == [
        "base", "scheduler", "noise.type", "output", "start.images"
    ]  # fmt: skip
    assert {problem.where for problem in found.value.problems} == {f"{path}: jobs[0]"}

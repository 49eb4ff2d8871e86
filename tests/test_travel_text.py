"""Prompts in the syntax of other tools: read where it has a meaning here, else rejected by name."""

import pytest

from animatediff_core.diffusion.prompt_syntax import check_prompt, parse_prompt
from animatediff_core.errors import PromptFileError
from animatediff_core.jobs import job_from_options


def prompts(prompt: object, **settings: object) -> tuple[dict[int, str], dict[int, str]]:
    (job,) = job_from_options({"prompt": prompt, "frames": 32, **settings})
    return dict(job.prompt), dict(job.negative_prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("girl,\n0: in jungle\n8: in car", {0: "girl, in jungle", 8: "girl, in car"}),
        ("8: in car\n4: in jungle, wet\n\nbest\nsharp,", {4: "in jungle, wet, best, sharp",
                                                        8: "in car, best, sharp"}),
        ("12: a cat", {12: "a cat"}),
        ('"0": "a cat",\n"8": "(a dog:1.2)",\n', {0: "a cat", 8: "(a dog:1.2)"}),
        ('{"0": "a: b, c", "8": "d"}', {0: "a: b, c", 8: "d"}),
        ("a 16:9 film\n4:3 too", {0: "a 16:9 film\n4:3 too"}),
    ],
)  # fmt: skip
def test_texts_by_frame_of_other_tools_become_key_frames(prompt, expected):
    assert prompts(prompt)[0] == expected


def test_a_region_and_a_negative_prompt_take_them_too():
    (job,) = job_from_options({
        "prompt": "a", "negative_prompt": "0: x\n4: y",
        "regions": [{"prompt": '"2": "b", "6": "c"', "mask": "m.png"}],
    })  # fmt: skip
    assert (job.negative_prompt, job.regions[0].prompt) == ({0: "x", 4: "y"}, {2: "b", 6: "c"})


@pytest.mark.parametrize(
    ("prompt", "negative", "expected"),
    [
        ("a cat --neg blurred", "", ({0: "a cat"}, {0: "blurred"})),
        ("a cat --neg blurred, wet", "ugly", ({0: "a cat"}, {0: "ugly, blurred, wet"})),
        ('"0": "a --neg b", "8": "c"', "d", ({0: "a", 8: "c"}, {0: "d, b", 8: "d"})),
        ({0: "a", -1: "c --neg e"}, "", ({0: "a", 31: "c"}, {0: "", 31: "e"})),
    ],
)
def test_what_stands_behind_neg_is_the_negative_prompt(prompt, negative, expected):
    assert prompts(prompt, negative_prompt=negative) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("0: a\n0: b", "prompt: names frame 0 twice"),
        ("0: a\nb\n4: c", "must have its lines by frame together, got '0: a' apart"),
        ('"0": "a", "0": "b"', "the schedule: the key '0' occurs twice"),
        ('"0": "a", "max_f": "b"', "names a frame by 'max_f'; expressions are not read"),
        ('"0": "a", "40": "b"', "names frame 40, but the clip has 32"),
        ('"0": "a" "8": "b"', "the schedule: no valid JSON in line 1"),
    ],
)
def test_wrong_schedules(prompt, message):
    with pytest.raises(PromptFileError, match=message):
        prompts(prompt)


def test_negatives_by_frame_and_neg_do_not_go_together():
    with pytest.raises(PromptFileError, match="prompt: has --neg, and there is a negative_prompt"):
        prompts("a --neg b", negative_prompt={0: "c", 4: "d"})


OTHERS = {
    "a cat AND a dog :0.5": "'AND'.* two prompts",
    "a {red|blue} ball": r"'\{red\|blue\}'.* a choice; use a wildcard",
    "a {2$$red|blue|green} ball": "a choice",
    "embedding:EasyNegative, b": "'embedding:EasyNegative,'.* under embeddings",
    "(a:`sin(t)`) cat": "'`sin\\(t\\)`'.* an expression",
    "sky ADDCOL sea": "'ADDCOL'.* regions",
    '("a", "b").blend(0.5, 0.5)': r"'\)\.blend\(0.5, 0.5\)'.* two prompts",
    "a cat --ar 16:9": "'--ar'.* an option",
    "a cat\n8: a dog": "'8: a dog'.* a text by frame",
    "a <lora:style:0.8> cat": "'<lora:style:0.8>'.* under loras",
}


@pytest.mark.parametrize(("prompt", "message"), OTHERS.items())
def test_other_syntax_is_rejected_by_name(prompt, message):
    with pytest.raises(PromptFileError, match=message):
        check_prompt(prompt)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        (r"cats \AND dogs", "cats AND dogs"),
        (r"\{red|blue\}", "{red|blue}"),
        (r"embedding\:x", "embedding:x"),
        (r"\`a`", "`a`"),
        (r"8\: a dog", "8: a dog"),
        (r"a \--ar", "a --ar"),
        (r"\<lora:x:1>", "<lora:x:1>"),
        (r"path\to", r"path\to"),
    ],
)
def test_escaped_syntax_is_plain_text(written, plain):
    check_prompt(written)
    assert [piece.text for part in parse_prompt(written) for piece in part] == [plain]


def test_plain_text_needs_no_escape():
    for prompt in ("sand and sea", "{one}", "a - b -- c", "embedding of a sea", "well-known a|b"):
        check_prompt(prompt)

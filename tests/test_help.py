"""Help of a screen and a half, names of options of other programs, completion."""

import json

import pytest
from typer.main import get_command

from cli.app import app


def test_the_help_of_generate_fits_a_screen_and_a_half(asked):
    done = asked("generate", "--help")
    lines = done.stdout.rstrip().splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= 80
    titles = [line.split()[1] for line in lines if line.startswith("╭")]
    assert titles == [
        "Arguments", "Options", "Model", "Clip", "Context", "Sampling", "Output", "Machine", "Run",
    ]  # fmt: skip
    assert "bool" not in done.stdout


def test_options_have_other_programs_names_too(asked):
    names = ("--cfg", "5", "--num-frames=6", "--sampler", "euler_a", "--num-inference-steps", "7")
    done = asked("generate", "--prompt", "a red circle", *names, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["guidance_scale"], plan["frames"]) == (5, 6)
    assert (plan["scheduler"], plan["steps"]) == ("euler_a", 7)
    done = asked("inject", "--cfg", "5")
    assert done.exit_code == 2
    assert "--cfg" in done.stderr


@pytest.mark.parametrize(
    ("option", "choice"),
    [("preset", "sd15-v3"), ("output_format", "webm"), ("window_fuse", "flat")],
)
def test_choices_are_completed(option, choice):
    command = get_command(app).commands["generate"]
    (parameter,) = [one for one in command.params if one.name == option]
    with command.make_context("generate", [], resilient_parsing=True) as context:
        found = [one.value for one in parameter.shell_complete(context, choice[:2])]
    assert choice in found
    assert all(one.startswith(choice[:2]) for one in found)

"""A plain clip imports no more than the classes that make it."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from transformers.models.clip import CLIPTextModel, CLIPTokenizer
needed = set(sys.modules)
from cli.app import app
arguments = ["generate", "--prompt", "a red circle", "--steps", "1", "-L", "2", "--seed", "1"]
try:
    app(arguments)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(set(sys.modules) - needed)))
"""
OURS = {"animatediff_core", "cli"}
COMMAND_LINE = {
    "typer", "rich", "yaml", "shellingham", "markdown_it", "mdurl", "pygments", "annotated_doc",
    "annotated_types", "pydantic", "pydantic_core", "typing_inspection",
}  # fmt: skip
"""typer brings pydantic where it is installed."""
FRAMES = {"PIL", "av", "imageio", "imageio_ffmpeg"}


def test_a_plain_clip_imports_nothing_heavy_besides_the_classes_that_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    path, modules = done.stdout.splitlines()
    assert path.endswith(".gif")
    more = json.loads(modules)
    roots = {name.partition(".")[0] for name in more} - set(sys.stdlib_module_names)
    known = OURS | COMMAND_LINE | FRAMES | {"diffusers"}
    assert {root for root in roots - known if not root.startswith("_")} == set()
    diffusers = {name for name in more if name.startswith("diffusers.")}
    assert {name for name in diffusers if not name.startswith("diffusers.schedulers.")} == set()
    rooms = {".".join(name.split(".")[:2]) for name in more if name.startswith("animatediff_core.")}
    assert not rooms & {"animatediff_core.training", "animatediff_core.tiny"}

"""The screen of a terminal of 80 columns while clips are made."""

import io

import pyte
import pytest
from rich.console import Console

from animatediff_core.diffusion.step_info import StepInfo
from animatediff_core.jobs import Job
from animatediff_core.runs.generate import JobStep, Loading, Result, Writing
from cli import generate, render


class Terminal(io.StringIO):
    """stdout and stderr of one terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        screen = pyte.Screen(80, 12)
        pyte.Stream(screen).feed(self.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in screen.display if line.strip()]


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    terminal = Terminal()
    console = Console(file=terminal, force_terminal=True, width=80, height=12, highlight=False)
    monkeypatch.setattr(render, "console", console)
    render.configure()
    return terminal


def test_paths_stay_above_the_bars_which_tell_job_stage_and_time(terminal, monkeypatch):
    first = Job(name="knight", prompt={0: "a"}, seed=1)
    second = Job(name="a long name of a job that no column of a terminal has room for",
                 prompt={0: "b"}, seed=2)  # fmt: skip
    seen = {}

    def events(jobs, **how):
        def step(job, done, window=0):
            return JobStep(job, StepInfo(step=done, steps=4, window=window, windows=2))

        def look(name):
            render._bars[0].refresh()
            seen[name] = terminal.lines()

        yield Loading("sd15.safetensors", 2, 1_312_400_000, "cuda:1", "float16")
        look("loading")
        yield step(first, 1, window=1)
        look("step")
        yield step(first, 4)
        look("decoding")
        yield Writing(first)
        look("writing")
        yield Result(first, "outputs/knight-1.gif", None, None)
        yield step(second, 1)
        look("second")
        yield Result(second, "outputs/second-2.gif", None, None)

    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("animatediff_core.runs.generate.run", events)
    generate._run([first, second], "outputs", None, None, {})
    model = "model: sd15.safetensors, 1,312 million parameters, float16 on cuda:1"
    assert seen["loading"][0] == model
    assert seen["loading"][-1].startswith("loading sd15.safetensors ")
    assert seen["step"][1].startswith("job 1 of 2  knight  ")
    assert seen["step"][2].startswith("step 2 of 4  ")
    assert seen["decoding"][2].startswith("decoding ")
    assert seen["writing"][2].startswith("writing ")
    _, path, run, stage = seen["second"]
    assert path == "outputs/knight-1.gif"
    assert run.startswith("job 2 of 2  a long name of a job that")
    assert stage.startswith("step 2 of 4 ")
    assert stage.endswith("--:--")  # the job's clock starts anew
    assert terminal.lines() == [model, "outputs/knight-1.gif", "outputs/second-2.gif"]


def test_paths_go_to_stdout_where_only_stderr_is_a_terminal(terminal, monkeypatch):
    stdout = io.StringIO()
    monkeypatch.setattr("sys.stdout", stdout)
    job = Job(name="a", prompt={0: "a"}, seed=1)
    monkeypatch.setattr(
        "animatediff_core.runs.generate.run",
        lambda jobs, **how: iter([Result(job, "outputs/a-1.gif", None, None)]),
    )
    generate._run([job], "outputs", None, None, {})
    assert stdout.getvalue() == "outputs/a-1.gif\n"
    assert terminal.lines() == []

"""Clips are written while the next ones are made, and nothing is lost or told out of order."""

import threading
from pathlib import Path

import pytest

from animatediff_core.errors import ClipError
from animatediff_core.jobs import Job, job_from_options
from animatediff_core.runs import generate as generating
from animatediff_core.runs.generate import JobStep, Loading, Result, run

written = generating.write


def _jobs(count: int) -> list[Job]:
    settings = {"prompt": "a red circle", "steps": 2, "frames": 2, "seed": 1}
    return job_from_options(settings, count)


def test_the_next_clip_is_begun_while_one_is_written(tmp_path, monkeypatch):
    begun, where = threading.Event(), []

    def patient(job, *rest):
        where.append(threading.current_thread())
        if job.seed == 1:
            assert begun.wait(60), "nothing was done meanwhile"
        return written(job, *rest)

    monkeypatch.setattr(generating, "write", patient)
    order = []
    for event in run(_jobs(2), output_dir=tmp_path):
        if isinstance(event, JobStep) and event.job.seed == 2:
            begun.set()
        if not isinstance(event, Loading):
            order.append((type(event), event.job.seed))
    assert order.index((JobStep, 2)) < order.index((Result, 1)) < order.index((Result, 2))
    assert len(set(where)) == 1
    assert where[0] is not threading.main_thread()
    assert not where[0].is_alive()


def test_results_keep_the_order_of_the_jobs_where_one_fails(tmp_path, monkeypatch):
    jobs, failed = _jobs(4), threading.Event()

    def sampled(job, *rest, **named):
        if job.seed == 2:
            failed.set()
            raise ClipError("no such clip")
        return sample(job, *rest, **named)

    def patient(job, *rest):
        if job.seed == 1:
            assert failed.wait(60)
        if job.seed == 3:
            raise MemoryError
        return written(job, *rest)

    sample = generating.sample
    monkeypatch.setattr(generating, "sample", sampled)
    monkeypatch.setattr(generating, "write", patient)
    results = [event for event in run(jobs, output_dir=tmp_path) if isinstance(event, Result)]
    assert [result.job.seed for result in results] == [1, 2, 3, 4]
    errors = [str(result.error) for result in results]
    assert errors[0] == errors[3] == "None"
    assert errors[1] == "no such clip"
    assert "not enough memory to write it; lower the size or the frames" in errors[2]
    assert sorted(tmp_path.glob("*.gif")) == [results[0].path, results[3].path]


def test_an_unexpected_error_fails_its_job_alone_and_says_where_to_report_it(tmp_path, monkeypatch):
    def sampled(job, *rest, **named):
        if job.seed == 2:
            raise TypeError("forward() got an unexpected keyword\nand more")
        return sample(job, *rest, **named)

    def patient(job, *rest):
        if job.seed == 3:
            raise ZeroDivisionError("division by zero")
        return written(job, *rest)

    sample = generating.sample
    monkeypatch.setattr(generating, "sample", sampled)
    monkeypatch.setattr(generating, "write", patient)
    results = [e for e in run(_jobs(4), output_dir=tmp_path) if isinstance(e, Result)]
    errors = [result.error for result in results]
    assert errors[0] is errors[3] is None
    assert str(errors[1]) == (
        f"{results[1].job.name}: TypeError: forward() got an unexpected keyword; this is a bug: "
        "please open an issue in the project's repository, with the output of --debug"
    )
    assert "ZeroDivisionError: division by zero" in str(errors[2])
    for error, raised in ((errors[1], 'raise TypeError("forward()'), (errors[2], "raise Zero")):
        assert raised in error.stack
        assert error.__traceback__ is None
        assert error.exit_code == 1
    assert sorted(tmp_path.glob("*.gif")) == [results[0].path, results[3].path]


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_goes_on_after_an_unexpected_error(asked, tmp_path, monkeypatch, debug):
    def broken(job, *rest, **named):
        if job.seed == 1:
            raise TypeError("a changed library")
        return sample(job, *rest, **named)

    sample = generating.sample
    monkeypatch.setattr(generating, "sample", broken)
    small = ("--prompt", "x", "-W", 16, "-H", 16, "-L", 2, "--steps", 1, "--set", "seed=[1,2]")
    done = asked("generate", *small, "-o", "out", *["--debug"] * debug)
    assert done.exit_code == 1
    assert "TypeError: a changed library; this is a bug" in done.stderr
    assert ("in broken" in done.stderr) is debug
    assert len(list((tmp_path / "out").glob("*.gif"))) == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_interruption_lets_the_clip_in_work_be_written(tmp_path, monkeypatch, ending):
    going = threading.Event()

    def sampled(job, *rest, **named):
        for event in sample(job, *rest, **named):
            if job.seed == 2:
                going.set()
                raise ending
            yield event

    def patient(*given):
        assert going.wait(60)
        return written(*given)

    sample = generating.sample
    monkeypatch.setattr(generating, "sample", sampled)
    monkeypatch.setattr(generating, "write", patient)
    results: list[Result] = []
    with pytest.raises(ending):
        results.extend(e for e in run(_jobs(3), output_dir=tmp_path) if isinstance(e, Result))
    names = _names(tmp_path)
    assert [path.suffix for path in names] == [".gif", ".yaml"]
    assert [result.path for result in results] == names[:1]


def test_who_stops_listening_leaves_a_whole_clip(tmp_path, monkeypatch):
    stopped = threading.Event()

    def patient(*given):
        assert stopped.wait(60)
        return written(*given)

    monkeypatch.setattr(generating, "write", patient)
    events = run(_jobs(2), output_dir=tmp_path)
    for event in events:
        if isinstance(event, JobStep) and event.job.seed == 2:
            break
    stopped.set()
    events.close()
    assert [path.suffix for path in _names(tmp_path)] == [".gif", ".yaml"]


def _names(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())

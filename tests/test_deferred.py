"""Modules that wait until something of them is used, whoever uses it first."""

import gc
import importlib
import sys
import threading
from types import SimpleNamespace

import pytest

import cli.app  # noqa: F401  # defers from here on
from cli.deferred import MODULES, _Deferral, importing


@pytest.fixture
def deferred(tmp_path, monkeypatch):
    """Imports a module of this text that waits."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, text: str):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(MODULES, name, _Deferral())
        return importlib.import_module(name)

    return make


def test_a_second_thread_waits_until_the_first_has_loaded_it(deferred, monkeypatch):
    place = SimpleNamespace(begun=threading.Event(), end=threading.Event())
    monkeypatch.setitem(sys.modules, "waiting_place", place)
    module = deferred(
        "slowly_made",
        "from waiting_place import begun, end\nmade = []\nbegun.set()\nassert end.wait(60)\n"
        "made.append(1)\nlate = 5\n",
    )
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(module.late)) for _ in range(2)]
    threads[0].start()
    assert place.begun.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert seen == []
    place.end.set()
    for thread in threads:
        thread.join(60)
    assert (seen, module.made) == ([5, 5], [1])


def test_a_module_that_puts_another_in_its_place_stands_for_that_one(deferred):
    module = deferred(
        "moved_away",
        "import sys\nfrom types import ModuleType\nclass Other(ModuleType):\n"
        "    def __getattr__(self, name):\n        return name.upper()\n"
        "sys.modules[__name__] = Other(__name__)\n",
    )
    assert (module.first, module.second) == ("FIRST", "SECOND")


def test_a_module_that_fails_can_be_tried_again(deferred):
    module = deferred("failing", "import failing_given\nassert failing_given.works\nvalue = 3\n")
    given = deferred("failing_given", "works = False\n")
    with pytest.raises(AssertionError):
        _ = module.value
    given.works = True
    assert module.value == 3
    with pytest.raises(AttributeError, match="absent"):
        _ = module.absent


def test_imports_are_made_without_looking_for_garbage_and_that_goes_on_after_them(deferred):
    before, states = gc.get_freeze_count(), []
    with importing():
        states.append(gc.isenabled())
    assert (states, gc.isenabled(), gc.get_freeze_count()) == ([False], True, before)
    with importing():
        deferred("new_here", "")
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()

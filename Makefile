.PHONY: install demo test test-slow mutants settings docs lint format typecheck check tiny measure bench bench-full bench-gpu clean
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools -e . pytest pytest-xdist ruff mypy types-PyYAML types-psutil scikit-video pyte
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/animatediff generate --prompt "a red circle moving right on a blue background" --seed 1 -o outputs

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants $(ONLY)

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

typecheck: $(STAMP)
	$(BIN)/mypy

check: lint typecheck test

settings: $(STAMP)
	$(BIN)/python -m tests.settings_page

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs-material
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir build/site

tiny: $(STAMP)
	$(BIN)/python -m animatediff_core.tiny

measure: $(STAMP)
	$(BIN)/python -m animatediff_core.tiny measure
	$(BIN)/python -m animatediff_core.tiny measure-control

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py

bench-full: $(STAMP)
	$(BIN)/python benchmarks/bench.py --full

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf .venv outputs .pytest_cache .ruff_cache .mypy_cache *.egg-info

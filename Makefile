# Every target sets up what it needs: a virtual environment in .venv with the package and its tools.

VENV   := .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN    := $(VENV)/bin
JOBS   ?= 2
# For pytest; --first-parameters runs each test once.
OPTIONS ?=
# The Python of the machine that wheels are for.
WHEELS_PYTHON ?= 3.12

.PHONY: digits test thorough sklearn check accuracy bench language wheels lint types clean

digits: $(VENV)/.installed  ## the main job: softmax regression on handwritten digits
	$(BIN)/xentjax fit configs/digits.toml --force

test: $(VENV)/.installed  ## the test suite, docstring examples included: thirteen minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not fast and not thorough" $(OPTIONS)
	COMPILED_FAST=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "fast and not thorough" $(OPTIONS)

thorough: $(VENV)/.installed  ## further tests: solvers and fits in all variants, estimators
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "thorough and not fast" $(OPTIONS)
	COMPILED_FAST=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "thorough and fast" $(OPTIONS)

sklearn: $(VENV)/.installed  ## scikit-learn's contract of estimators, and its own tests of its logistic regression, on ours
	COMPILED_FAST=1 XENTJAX_SKLEARN_OWN=1 SCIPY_ARRAY_API=1 $(BIN)/python -m pytest -n $(JOBS) \
		tests/test_sklearn.py tests/test_sklearn_own.py

check: $(VENV)/.installed  ## every hand-derived derivative against automatic differentiation
	$(BIN)/xentjax check

accuracy: $(VENV)/.installed  ## the worst error of each function, and its peers', for the README
	$(BIN)/xentjax accuracy --markdown > accuracy.tmp
	mv accuracy.tmp benchmarks/results/accuracy.md
	$(BIN)/python -m benchmarks report

bench: $(VENV)/.installed  ## every function's and every regression's time beside its peers', for the README
	$(BIN)/python -m pip install --quiet -e '.[bench,peers]'
	$(BIN)/python -m benchmarks core
	$(BIN)/python -m benchmarks regression
	$(BIN)/python -m benchmarks linear
	$(BIN)/python -m benchmarks report

wheels: $(VENV)/.installed  ## peers of linear cross-entropy as files in wheels/, for a GPU machine without a registry
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version $(WHEELS_PYTHON) \
		--implementation cp $(foreach v,2_28 2_17,--platform manylinux_$(v)_x86_64) --platform manylinux2014_x86_64 \
		--dest wheels --requirement benchmarks/wheels.txt

RESULTS := import jax, benchmarks.machine as m; print("benchmarks/results/" + m.device_name(jax.devices()[0]))

language: $(VENV)/.installed  ## the language model on Python's own source, for the README
	$(BIN)/xentjax fit configs/bytes_lm.toml --force
	cp runs/bytes_lm/summary.json "$$($(BIN)/python -c '$(RESULTS)')/bytes_lm.json"
	$(BIN)/python -m benchmarks report

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "xentjax needs Python 3.11 or later; none is on PATH (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) lacks venv: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	@touch $@

# The commands of README.md. Each one makes .venv by itself when that is missing or
# when setup.cfg, pyproject.toml or the constraints changed.
VENV ?= .venv
# The Python that an environment has already is the one that counts.
PYTHON ?= $(or $(wildcard $(VENV)/bin/python),python3)
VERSION := $(or $(shell $(PYTHON) -c \
             'import sys; print("%d.%d" % sys.version_info[:2])'),nothing)
CONSTRAINTS := constraints/python$(VERSION).txt
VERSIONS := $(patsubst constraints/python%.txt,%,$(wildcard constraints/python*.txt))
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed-$(VERSION)
SHELL_SCRIPTS = $(wildcard egs2/*/*/*.sh conf/presets/*.sh conf/presets/*/*.sh) .ci/run

.PHONY: help venv demo test test-all test-cpus test-gpu bench bench-gpu docs lint constraints espnet-tree clean

help:
	@echo "make demo      run the whole recipe on the embedded corpus (CPU, minutes)"
	@echo "make test      quick tests          make test-all  all tests"
	@echo "make test-cpus quick tests as on older CPUs, with one thread and with two"
	@echo "make test-gpu  tests on a real GPU; skipped, with the reason, where there is none"
	@echo "make bench     measure speed and memory, write benchmarks/RESULTS.md"
	@echo "make bench-gpu ten minutes on a GPU, one page: benchmarks/GPU.md"
	@echo "make docs      build the manual: docs/_build/html/index.html"
	@echo "make lint      ruff and shellcheck  make venv      only the environment"
	@echo "make espnet-tree DIR=~/espnet   lay the recipes into an ESPnet checkout; with"
	@echo "               PR=~/lamer  write what ESPnet would be sent, in two folders there"
	@echo "make constraints  pin the newest versions for PYTHON"
	@echo "make clean     remove build products and caches, not .venv, data or results"
	@echo "Options: PYTHON=python3.12  RUN_ARGS='--stage 3'  PYTEST_ARGS='-k router'"
	@echo "         BENCH_ARGS='--only layer'"

venv: $(INSTALLED)

# The environment is updated in place and never deleted. `python -m venv` runs again
# over one that was interrupted before pip was there, and completes it.
$(INSTALLED): setup.cfg pyproject.toml $(CONSTRAINTS)
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' || { \
	  echo "$(VENV) holds another Python than $(PYTHON), which is $(VERSION): remove it, or" \
	    "keep both: make VENV=.venv-$(VERSION) PYTHON=$(PYTHON)" >&2; exit 1; }
	$(BIN)/python -m pip install -c $(CONSTRAINTS) -e '.[test,lint,docs]'
	@touch $@

constraints/python%.txt:
	@echo "$(PYTHON) is Python $(VERSION), expected one of $(VERSIONS). Name one:" \
	  "make PYTHON=/path/to/python3.12" >&2; exit 1

# Newest versions that fit, for the Python named: make constraints PYTHON=python3.12
constraints:
	$(PYTHON) -m venv --clear build/constraints
	build/constraints/bin/python -m pip install -e '.[test,lint,docs]'
	{ echo "# What this repository was tested with on Python $(VERSION), Linux x86_64."; \
	  echo "# Made by: make constraints PYTHON=python$(VERSION)"; \
	  build/constraints/bin/python -m pip freeze --all --exclude-editable \
	    | sed '/^pip==/d; s/+.*//'; } > build/constraints.txt
	mv build/constraints.txt $(CONSTRAINTS)

demo: $(INSTALLED)
	cd egs2/lamer_ssl/ssl1 && ./run.sh --python "$(BIN)/python" $(RUN_ARGS)

# Two files at a time; `PYTEST_ARGS="-n 0"` runs them one after the other.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(INSTALLED)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(INSTALLED)
	$(PYTEST) $(PYTEST_ARGS)

# What oneDNN, ATen and MKL compute with on CPUs that have AVX2, and on older ones.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
OLDER := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default \
         MKL_ENABLE_INSTRUCTIONS=SSE4_2

test-cpus: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(AVX2) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)
	HF_HUB_OFFLINE=1 $(AVX2) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)
	HF_HUB_OFFLINE=1 $(OLDER) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-gpu: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu -rs $(PYTEST_ARGS)

bench: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-gpu: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu $(BENCH_ARGS)

# -n: a name that leads nowhere is a warning; -W: a warning is an error.
docs: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html

# The shellcheck flags are ESPnet's.
lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck -x -e SC2001 -e SC1091 -e SC2086 $(SHELL_SCRIPTS)

# Run again, it brings there what changed here; files of others are left alone. With PR
# the checkout is only read.
espnet-tree: $(INSTALLED)
	@test -n "$(DIR)" || { echo "make espnet-tree DIR=/path/to/espnet" >&2; exit 2; }
	$(BIN)/python -m espnet2_lamer.bin.espnet_tree --checkout "$(DIR)" \
	  $(if $(PR),--pull_request "$(PR)")

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache docs/_build docs/api
	find espnet2_lamer benchmarks local tests -name __pycache__ -type d -prune -exec rm -rf {} +

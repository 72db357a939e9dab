# Each target does its own set-up in .venv; `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PROFILE ?= profiles/small
TARGETS ?=
OPTIONS ?=
OVERLAY ?=
RECIPE ?= cpu
FIGURE := results/small/spill_matrix.png
SUMMARY := results/small/language_spill/analysis/summary.md

REPORT ?= results/small/report.html
CONFIGS ?=

BIN := .venv/bin
# `python` in a rule is then the one of .venv; the plugins folder holds the one-line-a-job logger
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)/workflow/plugins"
SNAKEMAKE := $(RUN) $(BIN)/python workflow/scripts/local_snakemake.py
SMALL := --profile profiles/small --cores all
WORKFLOW = $(SNAKEMAKE) --profile $(PROFILE) $(if $(CONFIGS),--configfile $(CONFIGS))

# On a few shared cores torch's own threads wait for each other: 20 training steps took 33 s with two, 1.6 s with one.
export OMP_NUM_THREADS := 1

.PHONY: help
help:  ## list the targets
	@echo "Usage: make TARGET [PYTHON=python3.11]"
	sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: environment  ## a measured spill matrix on this machine: no GPU, model download or key needed
	@$(SNAKEMAKE) $(FIGURE) $(SUMMARY) $(SMALL) --logger progress
	echo "The spill matrix: $(FIGURE)"
	echo "What it shows:    $(SUMMARY)"

.PHONY: demo-seeds
demo-seeds: environment  ## the same over three seeds: the evidence behind the summary
	@$(SNAKEMAKE) results/small-seeds/spill_matrix.png results/small-seeds/language_spill/analysis/summary.md \
		$(SMALL) --configfile config/small.yaml config/small_seeds.yaml --logger progress
	echo "The spill matrix: results/small-seeds/spill_matrix.png"
	echo "What it shows:    results/small-seeds/language_spill/analysis/summary.md"

.PHONY: demo-all
demo-all: environment  ## all five experiments at small scale, one seed: about an hour on 2 cores
	@$(SNAKEMAKE) all $(SMALL) --configfile config/small.yaml config/small_all.yaml $(OVERLAY) --logger progress
	[ "$(OVERLAY)" ] || echo "The dose response: results/small/language_spill/analysis/dose_response.png"

.PHONY: demo-marker-seeds
demo-marker-seeds: environment  ## the marker sweep over three seeds
	@$(SNAKEMAKE) results/small-marker-seeds/marker_sweep.png \
		results/small-marker-seeds/marker_sweep/analysis/summary.md $(SMALL) --logger progress \
		--configfile config/small.yaml config/small_all.yaml config/small_marker_seeds.yaml
	echo "The sweep:     results/small-marker-seeds/marker_sweep.png"
	echo "What it shows: results/small-marker-seeds/marker_sweep/analysis/summary.md"

.PHONY: base
base: environment  ## train the small world's base model anew: RECIPE=full on a GPU, cpu on a laptop
	@$(SNAKEMAKE) base_model $(SMALL) --config 'model={"recipe": "$(RECIPE)"}' --logger progress
	echo "The base model: results/small/base_model (model: {name: rebuilt} in config/small.yaml selects it)"

.PHONY: test
test: lint  ## everything that must hold before a change is kept: lint, then all tests
	@$(BIN)/python -m pytest -n 2 $(OPTIONS)

.PHONY: slurm-test
slurm-test: environment  ## the small world on a one-node Slurm that comes up for it (Debian: slurm-wlm munge); 5 minutes
	@$(BIN)/python -m pytest -rs -m slurm tests/test_slurm.py $(OPTIONS)

BENCHMARKS := results/benchmarks

.PHONY: bench
bench: environment  ## the benchmarks that this machine can run, into results/benchmarks (benchmarks/README.md)
	@run() { echo "$$*"; PATH="$(CURDIR)/$(BIN):$$PATH" "$$@"; }
	gpus=$$({ nvidia-smi --list-gpus 2> /dev/null || true; } | wc -l)
	run python benchmarks/extraction/run.py --prompts small_world --out $(BENCHMARKS)/extraction/small_world
	if [ $$gpus -ge 1 ]; then
		for name in training regularisers extraction; do
			run python benchmarks/$$name/run.py --out $(BENCHMARKS)/$$name
		done
		run python benchmarks/extraction/run.py --prompts personas --out $(BENCHMARKS)/extraction/personas
		if [ -x .venv-vllm/bin/python ]; then
			for name in evaluation marker_grid small_world_engines; do
				run .venv-vllm/bin/python benchmarks/$$name/run.py --out $(BENCHMARKS)/$$name
			done
		else
			echo "Left out: evaluation, marker_grid and small_world_engines need make env-vllm"
		fi
	else
		echo "Left out, since they need a GPU: training, regularisers, evaluation, marker_grid, extraction at full size"
	fi
	if [ $$gpus -ge 2 ]; then
		run python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/full_parameter/run.py \
			--out $(BENCHMARKS)/full_parameter
	else
		echo "Left out, since it needs two GPUs: full_parameter"
	fi

.PHONY: lint
lint: environment  ## style and workflow checks only
	@$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet . || { echo "make format puts these files in order"; exit 1; }
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(SNAKEMAKE) --profile profiles/small --quiet all --lint

.PHONY: format
format: environment  ## put Python and workflow files into the project's form
	@$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	$(BIN)/snakefmt Snakefile workflow/rules

.PHONY: audit
audit: environment  ## what would run, why and at what cost (PROFILE=... CONFIGS=... TARGETS=... OPTIONS=--json)
	@$(RUN) $(BIN)/python workflow/scripts/audit.py --profile $(PROFILE) $(if $(CONFIGS),--configfile $(CONFIGS)) \
		$(OPTIONS) -- $(TARGETS)

.PHONY: report
report: environment  ## one offline page with the answers, and pages to read every completion in (CONFIGS=overlays)
	@$(WORKFLOW) --logger progress -- $(REPORT)
	$(WORKFLOW) --report $(dir $(REPORT))workflow_report.html --quiet all -- $(REPORT)
	echo "The report: $(REPORT)"

.PHONY: status
status: environment  ## how far: runs done, running and failed, time left, money spent (PROFILE=... CONFIGS=... TARGETS=...)
	@$(RUN) $(BIN)/python workflow/scripts/status.py --profile $(PROFILE) $(if $(CONFIGS),--configfile $(CONFIGS)) \
		$(OPTIONS) -- $(TARGETS) || true  # a failed job is told in the text

.PHONY: code-inputs
code-inputs: environment  ## write workflow/code_inputs.yaml anew from the programs' imports
	@$(BIN)/python tests/test_code_inputs.py

.PHONY: clean-venv
clean-venv:  ## remove .venv; the next target installs it again
	@rm -rf .venv

.PHONY: env-vllm
env-vllm:  ## the environment of vLLM, .venv-vllm, for generation on a GPU (several gigabytes; Linux, driver for CUDA 13)
	@$(call install,.venv-vllm,requirements-vllm.txt)

.PHONY: environment
environment:
	@$(call install,.venv,requirements.txt)

# $(call install,FOLDER,REQUIREMENTS): the stamp holds the checksum of the requirements that were installed completely:
# a changed file, an interrupted installation and a folder made by hand are all mended by running pip once more.
define install
checksum() { "$$1" -c 'import hashlib; print(hashlib.sha256(open("$(2)", "rb").read()).hexdigest())'; }
stamp=$(1)/.requirements.sha256
if [ -x $(1)/bin/python ] && [ -f $$stamp ] && [ "$$(checksum $(1)/bin/python)" = "$$(cat $$stamp)" ]; then exit 0; fi
if ! command -v $(PYTHON) > /dev/null || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
	echo "Python 3.11 or 3.12 is needed and '$(PYTHON)' is not: name one with make PYTHON=/path/to/python3.11" >&2
	exit 1
fi
if ! $(1)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
	rm -rf $(1)
	$(PYTHON) -m venv $(1) || { echo "No virtual environment could be made (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
fi
rm -f $$stamp
echo "Installing the packages of $(2) into $(1): a few minutes, once"
if ! $(1)/bin/python -m pip install --disable-pip-version-check --quiet -r $(2) > $(1)/install.log 2>&1; then
	tail -n 20 $(1)/install.log >&2
	echo "The installation failed; the whole log is $(1)/install.log" >&2
	exit 1
fi
checksum $(1)/bin/python > $$stamp
endef

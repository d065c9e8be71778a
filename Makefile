PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := 3  # processes that share the tests, one more than cores, since many wait; each has a Ray of its own
# The auditor checks a home that somebody names, sameness two versions of the code, and gpu.py needs a GPU.
BENCHMARKS := $(filter-out benchmarks/auditor.py benchmarks/gpu.py benchmarks/sameness.py,$(sort $(shell grep -l __main__ benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: help study test lint bench gpu

help: ## say what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

study: $(VENV)/.stamp ## run studies/quickstart.toml: a first study of four minutes that needs no data
	$(BIN)/cs330ray run studies/quickstart.toml

test: $(VENV)/.stamp ## run the tests that need no GPU, cluster, download or weights
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.stamp ## check style, format, types, and what imports what
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.stamp ## run every benchmark: each prints a table, and one JSON object as its last line
	@failed=; for file in $(BENCHMARKS); do echo "$$file"; $(BIN)/python "$$file" || failed="$$failed $$file"; done; \
	if [ -n "$$failed" ]; then echo "these did not end well:$$failed" >&2; exit 1; fi

gpu: $(VENV)/.stamp ## show on one CUDA GPU, in at most eight minutes, what only a GPU can
	$(BIN)/python benchmarks/gpu.py

# Made anew by hand where Python itself has changed: rm -r .venv
$(VENV)/.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $(PYTHON): downloads and installs of about 2 GB, a few minutes the first time"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, but got {v}; make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lm,postgres,cluster,dev]'
	@touch $@

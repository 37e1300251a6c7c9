# `make demo` runs the whole pipeline once, `make up` keeps it at hand, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo analyse up down doctor test lint unit bench clean lock

help:
	@echo "make demo [RAW=folder]  run ingest, train and infer on this machine"
	@echo "make analyse            SQL over the predictions [PREDICTIONS=folder]"
	@echo "make up | make down     start or stop servers and workers on this machine"
	@echo "make doctor             check this machine and what it reaches"
	@echo "make test               lint, types, import rules and all tests"
	@echo "make lint | make unit   each half of make test"
	@echo "make bench [RAW=folder] time a job against its peers; BENCH=infer, training, quality, tables, gpu"
	@echo "make lock               resolve requirements.lock anew"
	@echo "make clean              remove .venv and outputs"

demo: $(READY)
	@$(BIN)/python -m flows.demo $(if $(RAW),--raw "$(RAW)")

up down: $(READY)
	@$(BIN)/python -m flows.local $@

doctor: $(READY)
	@$(BIN)/python -m flows.doctor

test: lint unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

analyse: $(READY)
	@$(BIN)/python -m analysis.shell $(if $(PREDICTIONS),--predictions "$(PREDICTIONS)")

bench: $(READY)
	$(BIN)/python benchmarks/$(or $(BENCH),ingest).py $(if $(RAW),--raw "$(RAW)") $(if $(MODEL),--model "$(MODEL)")

unit: $(READY)
	$(BIN)/pytest

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"error: Python 3.11 to 3.13 is needed, found {v[0]}.{v[1]}; name one with make PYTHON=python3.12")'
	@echo "setting up .venv from requirements.lock: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv outputs

# `make demo` runs the whole pipeline once, `make up` runs it as services, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo flink-demo analyse up down doctor serve test lint unit unit-fast soak bench clean clean-outputs stop lock images

help:
	@echo "make demo [RAW=folder]  run ingest, train and infer once, on this machine"
	@echo "make flink-demo         both jobs on a Flink cluster of this machine [RAW=folder]"
	@echo "make analyse            SQL over the predictions [PREDICTIONS=folder]"
	@echo "make up [RAW=folder]    start servers and workers on this machine; RAW is what the nightly run reads"
	@echo "                        NOTIFY=https://... is a webhook for failed runs; NOTIFY=off removes it"
	@echo "make down               stop them"
	@echo "make doctor             check this machine and the services that it uses"
	@echo "make serve              answer HTTP requests with a model [MODEL=models:/lyft-unet@champion] [PORT=5001]"
	@echo "make test               lint, types, import rules and all tests"
	@echo "make lint | make unit   each half of make test; make unit-fast leaves slow tests out"
	@echo "make soak               the long tests: random kills, 10,000 damaged PNGs"
	@echo "make bench [RAW=folder] time a job against its peers; BENCH=infer, training, quality, tables, scale, metadata, rows, flink, gpu, gpu_training, numbering, doubts;"
	@echo "                        MODEL=file, ARGS='more arguments'"
	@echo "make images             build the container images [BUILDER=buildah] [IMAGES=cpu] [PIP_CONF=file]"
	@echo "make lock               resolve requirements.lock and docker/locks again"
	@echo "make clean              stop what make up started, remove .venv and tools' caches; outputs stay"
	@echo "make clean-outputs      stop what make up started, remove outputs: every dataset, model and table"

demo: $(READY)
	@$(BIN)/python -m flows.demo $(if $(RAW),--raw "$(RAW)")

flink-demo: $(READY)
	@$(BIN)/python -m flows.flink_demo $(if $(RAW),--raw "$(RAW)")

up: $(READY)
	@$(BIN)/python -m flows.local up $(if $(RAW),--raw "$(RAW)") $(if $(NOTIFY),--notify "$(NOTIFY)")

down: $(READY)
	@$(BIN)/python -m flows.local down

doctor: $(READY)
	@$(BIN)/python -m flows.doctor

test: lint unit

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

analyse: $(READY)
	@$(BIN)/python -m analysis.shell $(if $(PREDICTIONS),--predictions "$(PREDICTIONS)")

# MLflow looks for its web server on PATH.
PORT ?= 5001
serve: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///outputs/mlflow/mlflow.db}" \
	  $(BIN)/mlflow models serve --env-manager=local --host=127.0.0.1 --port=$(PORT) \
	  --model-uri="$(or $(MODEL),models:/lyft-unet@champion)"

# The benchmarks gpu, tables, metadata and rows generate their own input; gpu_training is given a dataset.
BENCH ?= ingest
bench: $(READY)
	$(BIN)/python benchmarks/$(BENCH).py $(if $(filter-out gpu gpu_training tables metadata rows,$(BENCH)),$(if $(RAW),--raw "$(RAW)")) \
	  $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# Two for each of two cores: tests with servers wait half of their time.
WORKERS ?= 4
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --no-loadscope-reorder

unit: $(READY)
	$(PYTEST)

unit-fast: $(READY)
	$(PYTEST) -m "not slow and not soak"

soak: $(READY)
	$(BIN)/pytest -m soak -rA --durations=0

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	  f"error: Python 3.11 to 3.13 is needed, found {v[0]}.{v[1]}; name one with make PYTHON=python3.12")'
	@echo "setting up .venv from requirements.lock: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
	  -r requirements.lock
	@# pip compiles in one process; files that are not of this Python's version do not compile.
	@$(BIN)/python -m compileall -q -j 0 -x /tests/ .venv/lib > /dev/null || true
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

# The images install the same versions as requirements.lock.
COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
  --no-header --no-annotate
CONSTRAINED := $(COMPILE) --python-version 3.12 --constraint requirements.lock

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements.lock
	$(CONSTRAINED) pyproject.toml -o docker/locks/cpu.lock
	$(CONSTRAINED) --extra gpu --constraint docker/locks/cpu.lock pyproject.toml -o docker/locks/gpu.lock \
	  $$(sed -nE 's/^([a-z0-9._-]+)==.*/--no-emit-package \1/p' docker/locks/cpu.lock)
	$(CONSTRAINED) docker/servers.in -o docker/locks/servers.lock
	echo 'setuptools>=77' | $(CONSTRAINED) - -o docker/locks/build.lock
	rm -rf .venv-lock

# PIP_CONF names a pip.conf with another index; it is mounted while pip runs and not stored in any layer.
BUILDER ?= docker
comma := ,
IMAGES ?= cpu gpu flink worker servers
TAG ?= latest
BUILD_FLAGS ?=

images:
	@for image in $(IMAGES); do \
	  echo "building lyft-unet-pipeline/$$image:$(TAG)"; \
	  $(BUILDER) build --file docker/Dockerfile --target $$image --tag lyft-unet-pipeline/$$image:$(TAG) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	    $(if $(PIP_CONF),--secret id=pip$(comma)src=$(PIP_CONF)) $(BUILD_FLAGS) . || exit 1; \
	done

# A killed make flink-demo leaves its cluster here.
DEMO_CLUSTER := outputs/flink-demo/cluster

# Before files are removed, which the servers would miss.
stop:
	@if [ -x $(BIN)/python ]; then \
	  $(BIN)/python -m flows.local down && $(BIN)/python -m flows.flink down && \
	  { [ ! -d $(DEMO_CLUSTER) ] || $(BIN)/python -m flows.flink down --root=$(DEMO_CLUSTER); }; fi

clean: stop
	rm -rf .venv .venv-lock build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info

clean-outputs: stop
	rm -rf outputs

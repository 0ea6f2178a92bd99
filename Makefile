# make demo    set up .venv and train examples/demo.yaml; its output goes to runs/demo/
# make test    set up .venv, then lint, type check and test
# make lint    only lint and type check
# make proto   write proto/generated/ again after a change of a .proto
# make clean   remove .venv and every cache; runs/ stays
#
# PYTHON=python3.12     another interpreter, 3.11 or 3.12
# TORCH_INDEX=URL       where torch comes from (a CPU or CUDA build); otherwise pip's own configuration decides

PYTHON ?= python3
TORCH_INDEX ?=
TORCH := torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
FAILED := $(VENV)/.failed

.PHONY: help demo test lint proto clean begin environment environment-demo environment-test demo-steps test-steps \
	lint-steps proto-steps
.NOTPARALLEL:

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# A step says what it does, and is passed over once a step has failed. The last line of a goal is its verdict.
# $(call step,what it does,command,what to do if it fails)
define step
@if [ ! -s $(FAILED) ]; then echo "== $(1)"; ( $(2) ) || echo "$(1) -- failed (exit code $$?). $(3)" >$(FAILED); fi
endef
# $(call verdict,goal,last line)
verdict = $(if $(shell cat $(FAILED) 2>/dev/null),$(error $(1): $(shell cat $(FAILED))))@echo "make $(1): $(2)"

demo: demo-steps
	$(call verdict,demo,done. See runs/demo/report.json and runs/demo/picture.png)

test: test-steps
	$(call verdict,test,all checks and tests passed)

lint: lint-steps
	$(call verdict,lint,no complaints)

proto: proto-steps
	$(call verdict,proto,proto/generated is up to date)

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "make clean: done; runs/ is as it was"

demo-steps: environment-demo
	$(call step,training examples/demo.yaml,$(BIN)/quantarion train examples/demo.yaml,The line above says why; docs/architecture.md lists the exit codes)

test-steps: lint-steps
	$(call step,running the tests that share the machine,$(BIN)/python -m pytest -q -n 2 -m "not long and not alone",The summary above names the tests that failed)
	$(call step,running the tests that want it for themselves,$(BIN)/python -m pytest -q -m "not long and alone",The summary above names the tests that failed)

lint-steps: environment-test
	$(call step,linting (ruff check),$(BIN)/ruff check .,Mend what stands above; $(BIN)/ruff check --fix . mends some of it)
	$(call step,looking at the format (ruff format),$(BIN)/ruff format --check .,Run $(BIN)/ruff format .)
	$(call step,checking the types (mypy),$(BIN)/mypy,Mend what stands above)

proto-steps: environment-test
	$(call step,compiling the .proto sources,$(BIN)/python proto/generate.py,Mend what protoc refused above)

begin:
	@mkdir -p $(VENV) && rm -f $(FAILED)

environment: begin
	$(call step,looking for Python 3.11 or 3.12 ($(PYTHON)),$(PYTHON) -c 'import sys; sys.exit(not (3$(comma) 11) <= sys.version_info[:2] <= (3$(comma) 12))',Install Python 3.11 or 3.12 and name it: make PYTHON=python3.11)
	$(call step,making the environment $(VENV),[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV),Install the venv module of $(PYTHON) (Debian: apt install python3-venv) and run make again)
	$(call step,installing $(TORCH)$(if $(TORCH_INDEX), from $(TORCH_INDEX)),$(install_torch),Check the network and the index and run make again; TORCH_INDEX=URL names another index)

environment-demo: environment
	$(call step,installing quantarion,$(call install_project,demo,digits$(comma)picture),$(advice_pip))

environment-test: environment
	$(call step,installing quantarion and the tools of its tests,$(call install_project,test,digits$(comma)picture$(comma)tensorboard$(comma)test),$(advice_pip))

comma := ,
advice_pip := Check the network and run make again; make clean starts from nothing

# torch stays as it is unless it is missing or another index is asked for.
install_torch = if [ ! -e $(VENV)/.torch ] || { [ -n "$(TORCH_INDEX)" ] && [ "$$(cat $(VENV)/.torch)" != "$(TORCH_INDEX)" ]; }; then \
	$(BIN)/pip install $(if $(TORCH_INDEX),--force-reinstall --index-url "$(TORCH_INDEX)") "$(TORCH)" && echo "$(TORCH_INDEX)" >$(VENV)/.torch; \
	else echo "already there"; fi

# $(call install_project,stamp,extras): again when pyproject.toml is newer than the stamp.
install_project = if [ $(VENV)/.$(1) -nt pyproject.toml ] && [ $(VENV)/.$(1) -nt $(VENV)/.torch ]; then echo "already there"; \
	else $(BIN)/pip install -e ".[$(2)]" "$(TORCH)" && touch $(VENV)/.$(1); fi

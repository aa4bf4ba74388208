# `make demo` and `make test` do everything on a fresh Debian or Ubuntu machine; .venv/ is the only thing they leave here.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
# ansible-lint checks the syntax without an inventory, which ansible.cfg otherwise makes an error.
NO_INVENTORY := ANSIBLE_INVENTORY_UNPARSED_FAILED=false ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED=false
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help venv demo demo-clean test test-slow lint unit bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml tools/venv.sh
	tools/venv.sh $(VENV)
	@touch $@

demo: venv ## Two lab hosts, the real SGLang on their CPUs, deployed over SSH, asked a question (root: for the lab)
	$(SUDO) tools/demo.sh $(BIN)

demo-clean: venv ## Remove what `make demo` started
	$(SUDO) $(BIN)/sglang-ops lab down

test: venv lint ## The tests: lint, unit, roles, command line, and the lab's real hosts (root: for the lab)
	$(SUDO) tools/browser.sh
	$(SUDO) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" tests/cli tests/roles tests/unit
	$(SUDO) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests/lab

test-slow: venv ## The long ones: real driver packages, matrices of faults, many races, forty hosts (root: for the lab)
	$(SUDO) $(BIN)/python -m pytest -m slow tests/unit
	$(SUDO) $(BIN)/python -m pytest -m slow tests/lab

lint: venv ## ruff, mypy, ansible-lint
	$(BIN)/ruff check .
	$(BIN)/mypy
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && TMPDIR="$$scratch" PATH="$(abspath $(BIN)):$$PATH" \
	  $(NO_INVENTORY) $(BIN)/ansible-lint --offline --strict playbooks roles

unit: venv ## The tests that need neither root nor a lab (seconds)
	$(BIN)/python -m pytest -m "not lab" tests/cli tests/roles tests/unit

bench: venv ## The figures that the README quotes, over eight lab hosts (root: for the lab)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[bench]'
	$(SUDO) $(BIN)/python -m bench

clean: demo-clean ## Remove the demo and the Python environment
	rm -rf $(VENV)

# Two commands set everything up on a machine that has Python 3.10-3.13 with pip, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test check benchmark clean

demo: $(VENV)/.demo   ## install, then run the whole job on the built-in example
	rm -rf embedtune-demo
	$(BIN)/embedtune demo --out embedtune-demo

test: $(VENV)/.dev    ## install, then run all checks and tests
	$(MAKE) --no-print-directory check

check:                ## all checks and tests, in the environment there is
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal

benchmark: $(VENV)/.demo   ## time embedtune beside its peers on the built-in example (some minutes on two cores)
	$(BIN)/python -m benchmarks train --batch-size 32 --rounds 2

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) embedtune-demo

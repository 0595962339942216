# Two commands on a fresh machine: `make demo` and `make test`.  The rest is for those who change the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
export RAY_AUTH_MODE ?= disabled

.PHONY: demo setup fix check test bench clean

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

setup: $(VENV)/.demo $(VENV)/.test  ## a virtual environment with everything that demo, test and check need

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[bundled]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[bundled,test,check]'
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[bundled,bench]'
	touch $@

demo: $(VENV)/.demo  ## the real job on examples/corpus with the bundled model, three searches, a second run
	rm -rf $(DEMO)
	$(BIN)/python jobs/embed.py --config jobs/presets/demo.yaml
	$(BIN)/python jobs/search.py --table $(DEMO)/docs --limit 3 --query '怎么估计打雷的地方离我多远？'
	$(BIN)/python jobs/search.py --table $(DEMO)/docs --limit 3 --query '签一年合同，公司最多能让我试用多久？'
	$(BIN)/python jobs/search.py --table $(DEMO)/docs --limit 3 --query '黄河枯得最厉害那年河口停流多少天？'
	@echo 'The same run again: nothing is new, so nothing is embedded.'
	$(BIN)/python jobs/embed.py --config jobs/presets/demo.yaml

fix: $(VENV)/.test  ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(VENV)/.test  ## style, types, and imports that point one way
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(VENV)/.test  ## all checks, then all tests
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.bench  ## ratios to sentence-transformers and to the usual pipeline, on this CPU (about three minutes)
	$(BIN)/python -m benchmarks.cpu

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info

# Needs make and Python 3.11 or newer; everything else goes to .venv.

PYTHON ?= python3
MINUTES ?= 3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := runs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make the environment .venv (another Python: make install PYTHON=python3.12)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "torchrsm needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1 || true)" >&2; \
		echo "Name another one, for instance: make install PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## train "balls" from nothing for MINUTES=3, score it, draw it; a former runs/demo is deleted
	rm -rf $(DEMO)
	$(BIN)/torchrsm train balls --out $(DEMO) --minutes $(MINUTES)
	$(BIN)/torchrsm evaluate $(DEMO) --json $(DEMO)/scores.json --strip $(DEMO)/strip.png
	@echo
	@echo "model    $(DEMO)"
	@echo "scores   $(DEMO)/scores.json"
	@echo "picture  $(DEMO)/strip.png (prediction red, truth blue, both magenta)"

test: $(STAMP) ## check style and types, run the tests with their coverage
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --cov --cov-fail-under=90

clean: ## delete the environment and all caches; runs are kept
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Needs make and Python 3.11 or newer; everything else goes to .venv.

PYTHON ?= python3
MINUTES ?= 30
TRY ?=
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := runs/demo
TRAINED := runs/balls
ifneq ($(wildcard $(TRAINED)/run.json),)
RESUME := --resume
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo train serve docs test browser types compiled covered versions clean

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

demo: $(STAMP) ## score the shipped model on the test sequences, let it dream, draw both; a former runs/demo is deleted
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(BIN)/torchrsm dream balls --sequences 2 --out $(DEMO)/dream.mp4
	$(BIN)/torchrsm dream balls --out $(DEMO)/dream.png
	$(BIN)/torchrsm evaluate balls --rollout-steps 150 --json $(DEMO)/scores.json --strip $(DEMO)/strip.png --plot $(DEMO)/physics.png
	@echo
	@echo "In $(DEMO): dream.mp4 and dream.png (prediction red, truth blue, both magenta),"
	@echo "scores.json (the table above and more), strip.png (next frames), physics.png (the dreams, step by step)."

train: $(STAMP) ## make the shipped model again from nothing in runs/balls, in MINUTES=30 on two cores, and score it
	$(BIN)/torchrsm train balls --out $(TRAINED) --minutes $(MINUTES) --threads 2 --seed 0 $(RESUME)
	$(BIN)/torchrsm evaluate $(TRAINED) --rollout-steps 150 --json $(TRAINED)/scores.json

serve: $(STAMP) ## a page to watch and play with models, at http://127.0.0.1:8000
	$(BIN)/torchrsm serve

# The page is tested in Debian's Chromium; where that cannot be had, those tests are skipped and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		echo "installing chromium, to test the page in"; \
		APT="apt-get -q -o Dpkg::Use-Pty=0"; [ "$$(id -u)" = 0 ] || APT="sudo -n $$APT"; \
		$$APT update >/dev/null && DEBIAN_FRONTEND=noninteractive $$APT install -y --no-install-recommends chromium >/dev/null; \
	} || echo "no chromium: the tests of the page in a browser will be skipped" >&2

types: $(STAMP)
	$(BIN)/mypy

# What two processes of tests would else compile at the same time: kernels to machine code, assertions to bytecode. It is
# three times slower where coverage watches. What fails here fails in the tests again, which say why.
compiled: export PYTHONDONTWRITEBYTECODE :=
compiled: $(STAMP)
	@$(BIN)/pytest --collect-only --quiet >/dev/null 2>&1 || true

# Some tests wait for processes or pages; the check of types, which goes on beside them, has the core meanwhile.
covered: compiled
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-fail-under=90

test: export PYTHONDONTWRITEBYTECODE :=
test: ## check style and types, run the tests with their coverage
	@$(MAKE) --no-print-directory --jobs 2 $(STAMP) browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs 2 types covered

docs: $(STAMP) ## build the documentation, in runs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open runs/site/index.html"

versions: ## try the oldest and the newest Python and packages that pyproject.toml allows (TRY=--help lists the options)
	$(PYTHON) benchmarks/versions.py $(TRY)

clean: ## delete the environment and all caches; runs are kept
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

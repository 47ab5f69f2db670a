# Everything starts here. A fresh machine needs Python >= 3.11 with its venv module, and make.
PYTHON ?= python3
# Address of a further package index for torch, e.g. the one with CPU-only builds; empty: the default index.
TORCH_INDEX ?=
# What `make prove` runs: an area, one part of it, a small sample of it, everything again.
AREA ?=
ONLY ?=
SAMPLE ?=
FRESH ?=

BIN := .venv/bin
READY := .venv/.ready
EXTRAS := hf,plot,cli,highs,docs,dev
# Numbers of threads follow the cores of the machine; pip and mkdocs print notices that help nobody here.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types docs tests browser prove wheel clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1@/p' $(MAKEFILE_LIST) | awk -F@ '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv and install everything into it (done by the others when needed)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Janus needs Python >= 3.11 and $(PYTHON) is older; name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "$(PYTHON) lacks its venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "== set-up: .venv (about 0.8 GB to download with the CPU build of torch, several GB with CUDA)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch -e '.[$(EXTRAS)]'
	@touch $@

demo: $(READY) ## a small model served by separate attention and expert processes on this machine
	@$(BIN)/python examples/demo --out out/demo

test: lint types docs tests ## everything a change has to pass, the quickest first
	@echo "== all passed: lint, types, docs, tests"

lint: $(READY) ## ruff: rules and format
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## pyright
	@echo "== types"
	@$(BIN)/pyright --pythonpath $(BIN)/python

# never --quiet: it hides the warnings that strict counts
docs: $(READY) ## build the documentation, strictly, into site/
	@echo "== docs"
	@$(BIN)/mkdocs build --strict

# those that watch the time, then the others side by side; both are run, whatever the first gives
tests: $(READY) ## pytest
	@echo "== tests"
	@$(BIN)/python -m pytest --durations=10 -m alone; one=$$?; \
	  $(BIN)/python -m pytest --durations=10 -m 'not alone' -n 2 --dist loadfile && exit $$one

browser: ## headless Chromium, with which a test looks at the planner's reports (Debian, Ubuntu, as root; else nothing)
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  timeout 55 sh -c 'i="apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core"; $$i || { apt-get update -qq && $$i; }' \
	    >/dev/null 2>&1; } || echo "== no chromium here: the test of the reports in a browser will be skipped"

prove: $(READY) ## measure what the documentation claims: make prove AREA=path [ONLY=name] [SAMPLE=1] [FRESH=1]
	@$(BIN)/python benchmarks/prove.py $(AREA) $(if $(ONLY),--only $(ONLY)) $(if $(SAMPLE),--sample) $(if $(FRESH),--fresh)

wheel: $(READY) ## build the wheel and the source archive, and try them in a clean environment
	@echo "== wheel"
	@rm -rf build dist src/*.egg-info # a stale list of files there would hide one that is missing
	@$(BIN)/python -m build --no-isolation --outdir dist . > .venv/build.log 2>&1 || { cat .venv/build.log; exit 1; }
	@$(BIN)/python tools/check_wheel.py dist

clean: ## remove what was built and measured (.venv stays; remove it by hand)
	rm -rf build dist site out .prove .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Each target sets up what it lacks (scripts/bootstrap): Debian packages when root, a virtual environment in .venv.
SHELL := /bin/bash
BIN := .venv/bin
REPORTS := build/reports
PYTEST = mkdir -p $(REPORTS) && $(BIN)/python -m pytest --junitxml=$(REPORTS)/$@.xml
# tests that start, stop and time real processes, or take minutes: one after the other
SERIAL := live or kills or soak
# make matching
SEEDS ?= 1000 1100

.PHONY: help setup setup-test lint format unit live fleet test-fleet setup-fleet setup-all corpus corpus-quick test test-wine bench-wine matching bench demo demo-fleet clean lock reference
.DEFAULT_GOAL := help

help: ## show this list
	@echo "Two commands do everything on a fresh Debian 12: make demo, make test. All targets:"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '  %-13s%s\n' "$$target" "$$text"; done

demo: ## a real server loses a real vulnerability under load, then a fleet does; ends with its console (8 minutes)
	@scripts/bootstrap demo
	@$(BIN)/python demo/run.py
	@$(MAKE) --no-print-directory demo-fleet

demo-fleet: ## the second part alone: a server, three devices, a bad patch stopped by itself (3 minutes; root)
	@scripts/bootstrap demo-fleet console
	@$(BIN)/python -m demo.fleet.run

# What follows the fast tests waits more than it computes: three of these at a time, each shown when it ends.
LANES := live test-wine fleet corpus-quick

test: setup-all lint unit ## everything that CI runs: lint, types, import rules, all tests (under 30 minutes)
	@echo "now $(LANES), three at a time; what they print comes when each has ended"
	@$(MAKE) --no-print-directory --keep-going -j 3 --output-sync=target $(LANES)

lint: ## ruff, mypy --strict, import-linter
	@scripts/bootstrap
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup-test ## the fast tests, two at a time
	$(PYTEST) -n 2 -m "not corpus and not bench and not wine and not fleet and not ($(SERIAL))"

test-wine: ## the tests on Windows programs, run by a Windows Python under Wine
	@scripts/bootstrap wine
	@$(BIN)/python -m tests.wine.build
	mkdir -p $(REPORTS) && scripts/wine -m pytest tests/wine -p no:cacheprovider --junitxml=$(REPORTS)/$@.xml
	$(BIN)/python -m pytest tests/wine/test_fleet.py --junitxml=$(REPORTS)/$@-fleet.xml

bench-wine: ## stopped time by thread count on Windows programs under Wine, for both trampolines
	@scripts/bootstrap wine
	@$(BIN)/python -m tests.wine.build
	@scripts/wine -c "import sys; sys.path.insert(0, '.'); from bench.windows import main; main()"

live: setup-test ## the tests on live processes: scenarios, kills at every step, soak
	$(PYTEST) -m "($(SERIAL)) and not corpus and not fleet"

fleet: setup-fleet ## the fleet as a whole: server, agents in namespaces, database, nginx, browser, systemd
	$(PYTEST) -m fleet

test-fleet: setup-fleet ## all tests of the fleet alone: trust, agent, server, console, and the whole
	$(PYTEST) -n 2 -m "not fleet and not ($(SERIAL))" tests/trust tests/agent tests/server
	$(BIN)/python -m pytest --junitxml=$(REPORTS)/$@-serial.xml -m "fleet or $(SERIAL)" tests/trust tests/agent tests/server tests/fleet

corpus: ## real CVEs in real Debian packages, patched live; CASE=package/CVE: one (all: an hour)
	@scripts/bootstrap test corpus corpus-all
	$(PYTEST) tests/corpus -m corpus $(if $(CASE),--case '$(CASE)')

corpus-quick: setup-test ## those of them that build in seconds
	$(PYTEST) tests/corpus -m "corpus and quick"

matching: setup-test ## run-pre matching on generated programs, for SEEDS="FIRST LAST" (hours, if you like)
	$(BIN)/python -m tests.forge.matching.campaign $(SEEDS)

bench: ## the benchmarks: tables, and JSON below build/bench
	@scripts/bootstrap bench
	@$(BIN)/python -m bench

format: ## let ruff format the sources
	@scripts/bootstrap
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: ## write docs/reference/cli.md anew, from the commands
	@scripts/bootstrap
	@$(BIN)/python -m scripts.cli_reference

lock: ## pin the newest versions of the Python packages anew
	@scripts/bootstrap
	$(BIN)/uv pip compile -q --upgrade pyproject.toml --all-extras --group dev --python-version 3.11 --universal --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o requirements.lock
	$(BIN)/uv pip compile -q --upgrade scripts/wine.in --python-version 3.11 \
	    --python-platform x86_64-pc-windows-msvc --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --no-annotate --no-header -o scripts/wine.lock
	echo uv | $(BIN)/uv pip compile -q --upgrade - --python-version 3.11 --universal --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --no-annotate --no-header -o scripts/uv.lock

clean: ## remove everything that was made here, the virtual environment and fetched sources too
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup setup-test:
	@scripts/bootstrap test corpus

setup-fleet:
	@scripts/bootstrap test fleet

setup-all: # before anything runs: nothing is to be installed while programs are built and compared
	@scripts/bootstrap test corpus wine fleet

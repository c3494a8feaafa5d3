# Each target makes the virtual environment that it needs; a second run finds it there and costs nothing.
#
#   make test PYTHON=python3.13 VENV=.venv-3.13     another interpreter, in an environment of its own
#   make bench BENCHMARKS="lookup open"             some of the questions
#   make bench-full BENCHMARKS=memory               one of a long run again; the others' results are kept
#   make demo DIR=play                              in a directory that stays
#
# Works with GNU Make 3.81 (macOS) and later.

PYTHON     ?=
VENV       ?= .venv
JOBS       ?= 2
WAITING    ?= 4
BENCHMARKS ?=
BENCH_ARGS ?= --quick
DIR        ?=

# WAITING: processes of `make integration`, whose tests wait for servers and times more than they compute.
# What `make test` runs over both implementations; `make integration` does so with all of format, storage and cache.
TWICE := tests/format tests/cache/test_mapping_contract.py tests/cache/test_cache_tiers.py tests/cache/test_cache_counts.py \
         tests/storage/test_round_trip.py tests/storage/test_typed_keys.py tests/storage/test_overlay.py

BIN     := $(VENV)/bin
CORE    := pyproject.toml tools/core_build.py $(wildcard core/*)
TYPED   := $(wildcard mmcache tools benchmarks tests examples)
INSTALL := $(BIN)/python -m pip install --quiet
PURE    := $(BIN)/python -c 'import mmcache, sys; sys.exit(mmcache.implementation != "pure")' && echo "as above: there is no core"
ONLY    := $(if $(BENCHMARKS),--only "$(BENCHMARKS)")

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What is compiled once serves every process of the tests, and lies in the virtual environment, not between the sources.
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo docs test check integration bench bench-full guard nightly clean distclean

help:  ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## see it work: a bank of test patterns, four workers, one file
	@$(BIN)/python -m examples.demo $(if $(DIR),--dir "$(DIR)")

test: check  ## check, then the tests: what continuous integration runs, with the guard
	@echo "==> tests"
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
	@echo "==> tests of what the compiled core does, in pure Python"
	@$(PURE) || MMCACHE_PURE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(TWICE)

check: $(VENV)/.dev  ## format, lint, types, import layers and words
	@echo "==> format"
	@$(BIN)/ruff format --quiet --check . || { echo "run $(BIN)/ruff format ." >&2; exit 1; }
	@echo "==> lint"
	@$(BIN)/ruff check --quiet .
	@echo "==> types"
	@$(BIN)/mypy --no-error-summary $(TYPED)
	@echo "==> import layers"
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report" >&2; exit 1; }
	@echo "==> words"
	@! grep -rniwIE "nobody|somebody|whoever|whom|he|his" mmcache docs README.md || { echo "name the component" >&2; exit 1; }

integration: $(VENV)/.integration  ## tests that need a server, root or a download (torch, programs); what the machine lacks is skipped, and listed
	@echo "==> integration"
	@$(BIN)/python -m pytest -q -n $(WAITING) --dist worksteal -m "integration and not nightly"
	@echo "==> tests of format, storage and caches, in pure Python"
	@$(PURE) || MMCACHE_PURE=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests/format tests/storage tests/cache

docs: $(VENV)/.docs  ## the documentation, into site/: strictly, offline, every link and anchor followed
	@echo "==> documentation"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site

bench: $(VENV)/.bench  ## quick benchmarks, beside everything that one would take instead, on the same records
	@$(BIN)/python -m benchmarks $(BENCH_ARGS) $(ONLY)

bench-full: $(VENV)/.bench  ## all benchmarks at full size, for an hour; writes docs/benchmarks
	@$(BIN)/python -m benchmarks --full $(ONLY) --json-dir benchmarks/.data/full --write docs/benchmarks

guard: $(VENV)/.bench  ## has anything become slower since the guard was recorded?
	@$(BIN)/python -m benchmarks.guard

nightly: $(VENV)/.dev  ## all tests with many more examples, and the long campaigns of faults
	@echo "==> all tests, nightly profile"
	@HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n $(JOBS) -m "" -o timeout=7200

clean:  ## remove what the tools leave behind
	@rm -rf build dist htmlcov site mmcache/_core.*.so .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the virtual environment
	@if [ -e $(VENV)/.venv ]; then rm -rf $(VENV); fi

# One environment, with as much in it as was asked for so far. The stamps are made again when pyproject.toml or the core changes.

$(VENV)/.demo: $(CORE) | $(VENV)/.venv
	@echo "==> installing mmcache with its command line into $(VENV)"
	@$(INSTALL) --editable '.[cli]'
	@touch $@

$(VENV)/.bench: $(CORE) | $(VENV)/.venv
	@echo "==> installing mmcache and the peers it is measured against into $(VENV)"
	@$(INSTALL) --editable '.[cli]' --group bench
	@touch $@

$(VENV)/.docs: $(CORE) | $(VENV)/.venv
	@echo "==> installing mmcache and what builds the documentation into $(VENV)"
	@$(INSTALL) --editable . --group docs
	@touch $@

$(VENV)/.dev: $(CORE) | $(VENV)/.venv
	@echo "==> installing mmcache and the development tools into $(VENV)"
	@$(INSTALL) --editable '.[cli]' --group dev
	@touch $@ $(VENV)/.demo $(VENV)/.bench $(VENV)/.docs

$(VENV)/.integration: pyproject.toml | $(VENV)/.dev
	@for group in integration torch programs; do \
	    echo "==> installing the group $$group into $(VENV)"; \
	    $(INSTALL) --group $$group && continue; \
	    echo "the group $$group cannot be installed as a whole" >&2; \
	    $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]], sep="\n")' $$group | \
	    while read -r package; do \
	        $(INSTALL) "$$package" || echo "$$package cannot be installed: its tests are skipped" >&2; \
	    done; \
	done
	@touch $@

# pip 25.1 is the first to read dependency groups; Python 3.11 brings an older one.
$(VENV)/.venv:
	@for python in $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "==> making $(VENV) with $$("$$python" --version)"; \
	        "$$python" -m venv $(VENV) && $(INSTALL) --upgrade 'pip>=25.1' && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "mmcache needs Python 3.11 or newer with its venv module$(if $(PYTHON),; $(PYTHON) is not that,)." >&2; \
	echo "Name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

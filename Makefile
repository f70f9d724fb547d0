# Everything that a contributor or CI runs. `make help` lists it. Needs python3 (3.11 or newer), make and PyPI.

PYTHON ?= python3
BIN := .venv/bin
SYNCED := .venv/.synced
# Most tests wait for Postgres and for servers: one more than CPUs, each with a Postgres of its own.
TEST_PROCESSES ?= 3
BASELINE := .buf/baseline.binpb

# Another environment that happens to be active is not the one to install into or to run from.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME
# gRPC's handlers of fork can crash a child before it becomes the program that it is to run: the tests start many.
export GRPC_ENABLE_FORK_SUPPORT := 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(SYNCED) ## Create .venv with exactly what uv.lock names (does nothing when it is up to date)

# The first uv is the one that uv.lock names, so that there is one place to raise its version.
$(SYNCED): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    uv==$$(sed -n '/^name = "uv"$$/{n;s/^version = "\(.*\)"/\1/p;}' uv.lock); }
	UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never $(BIN)/uv sync --frozen --quiet
	@touch $@

.PHONY: protos
protos: setup ## Generate services/campaign from protos/
	$(BIN)/python scripts/generate_protos.py

.PHONY: protos-check
protos-check: setup ## Fail if services/campaign is not what protos/ generates
	$(BIN)/python scripts/generate_protos.py --check

.PHONY: lint
lint: setup ## Lint, and check the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: format
format: setup ## Format, and mend what lint can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write

.PHONY: types
types: setup ## Check the types
	$(BIN)/mypy

.PHONY: imports
imports: setup ## Check the architecture: who may import whom
	$(BIN)/lint-imports

.PHONY: buf
buf: setup ## Lint the contracts, check their format, and that they break no client
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against $(BASELINE)

.PHONY: buf-baseline
buf-baseline: setup ## Declare the contracts of today to be the ones that must not be broken
	mkdir -p $(dir $(BASELINE))
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

.PHONY: test
test: setup ## Run all tests but those that need Postfix, a few files at a time; ARGS="-k word -x" goes to pytest
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)
	@echo "Left to make test-postfix: $$(ls tests/postfix/test_*.py | xargs)"

.PHONY: test-unit
test-unit: setup ## Run the unit tests: no server, no socket
	$(BIN)/pytest tests/unit $(ARGS)

.PHONY: test-integration
test-integration: setup ## Run the tests against Postgres and real gRPC servers in one process
	$(BIN)/pytest tests/integration $(ARGS)

.PHONY: test-acceptance
test-acceptance: setup ## Run the tests of the services as processes
	$(BIN)/pytest tests/acceptance $(ARGS)

.PHONY: test-postfix
test-postfix: setup ## Run the tests that need a real Postfix: as root, with Debian's postfix installed
	$(BIN)/pytest tests/postfix -n 2 --dist load $(ARGS)

.PHONY: bench
bench: setup ## Measure it: every figure beside its ceiling; ARGS="feedback.durable --runs 3 --json out.json"
	$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-curves
bench-curves: setup ## Measure how cost grows: make bench-curves ARGS="replicas"
	$(BIN)/python -m tests.bench.curves $(ARGS)

.PHONY: bench-smoke
bench-smoke: setup ## See that every figure can be measured: small sizes, nothing asserted about speed
	$(BIN)/python -m tests.bench --smoke $(ARGS)

# One after the other, the quickest first, also under `make -j`.
.PHONY: check
check: setup ## Everything that CI runs
	@for target in lint types imports buf protos-check test bench-smoke; do \
	    echo "== make $$target"; $(MAKE) --no-print-directory $$target || exit 1; done

.PHONY: demo
demo: setup ## See it work: both services, an MTA that misbehaves, a send from start to end
	$(BIN)/campaign demo $(ARGS)

.PHONY: demo-postfix
demo-postfix: setup ## See real mails go through a real Postfix, in each way of feedback (needs root and Postfix)
	$(BIN)/campaign demo-postfix $(ARGS)

.PHONY: up
up: setup ## Run both services with their own Postgres until Ctrl-C
	$(BIN)/campaign up $(ARGS)

.PHONY: clean
clean: ## Remove the environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find services tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

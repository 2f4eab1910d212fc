# Every command a person types. `make` alone lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Of fuzzing, for each side.
SECONDS ?= 60
# The tests start whole platforms: more workers than cores only make them wait for each other.
WORKERS ?= 2
CHP := configurable-http-proxy@5.3.0
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.DEFAULT_GOAL := help
.PHONY: help install run test test-jupyterhub test-long fuzz lint format docs lock bench bench-router clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Build .venv from the hashed locks (needs Python 3.11 and a package registry)
	@$(PYTHON) requirements/install.py dev

run: ## Run the whole platform on this machine (make run ARGS="--port 8080")
	@$(PYTHON) requirements/install.py run
	@exec $(BIN)/orrery up $(ARGS)

test: lint ## Lint, then every test (real Postgres, NATS, JupyterLab)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --ignore tests/tidy $(ARGS)

test-jupyterhub: install ## Every supported stock JupyterHub behind two replicas of `orrery proxy`
	ORRERY_TEST_JUPYTERHUBS=5,6 $(BIN)/python -m pytest -v tests/e2e/test_jupyterhub.py $(ARGS)

test-long: install ## The tests that take minutes each (uploads and downloads of 10 GB)
	ORRERY_TEST_LONG=1 $(BIN)/python -m pytest -m long --timeout 1800 $(ARGS)

fuzz: install ## Fuzz what clients and servers may send through the router (make fuzz SECONDS=60)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/fuzz.lock
	mkdir -p test-artifacts
	for what in requests answers; do \
	  $(BIN)/python -m tests.fuzz.wire $$what -max_total_time=$(SECONDS) -artifact_prefix=test-artifacts/ || exit 1; done

# No cache: it does not notice when a module moves, and then calls an import sorted that is not.
lint: install ## Style, types, import contracts, tidiness
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy libs services tests benchmarks requirements
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/tidy

format: install ## Put the code into the one form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## Generate the reference pages from the code
	$(BIN)/python -m orrery_runtime.docs --write

lock: install ## Resolve the dependencies anew (make lock ARGS=--upgrade)
	$(COMPILE) --extra embedded --extra jupyterlab pyproject.toml -o requirements/run.lock $(ARGS)
	$(COMPILE) --all-extras --group dev -c requirements/run.lock pyproject.toml -o requirements/dev.lock $(ARGS)
	$(COMPILE) --group fuzz -o requirements/fuzz.lock $(ARGS)
	$(COMPILE) --group build -o requirements/build.lock $(ARGS)
	$(COMPILE) --group bench -o requirements/bench.lock $(ARGS)
	echo uv | $(COMPILE) - -o requirements/uv.lock $(ARGS)

bench: install ## Measure on an idle machine (benchmarks/results, docs/performance.md)
	for name in up convergence replay table append; do $(BIN)/python -m benchmarks.$$name || exit 1; done
	$(BIN)/python -m benchmarks.report --write

bench-router: install ## Measure the router beside its peers on an idle machine (wrk, nginx; node, haproxy, redis if there)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/bench.lock
	if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --prefix .bench $(CHP); fi
	$(BIN)/python -m benchmarks.router all $(ARGS)
	$(BIN)/python -m benchmarks.report --write

clean: ## Remove .venv, caches and what was built; never data
	rm -rf .venv .bench .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist test-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

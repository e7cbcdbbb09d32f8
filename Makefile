# Everything runs in .venv, which is made on first use. ARGS are handed on to bench.py.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := api_server.py bench.py core deploy engine reports scheduler serving simulator tuning workloads

.PHONY: bench test test-ray test-clients lint gate soak docs clean

bench: .venv/installed
	$(BIN)/python bench.py $(ARGS)

# two processes, each with whole files: half the time on two cores
test: lint gate
	$(BIN)/python -m pytest -n 2 --dist loadfile

# replicas that come and go on a Ray cluster of this machine, and a search spread over one; minutes
test-ray: .venv/installed
	RAY_USAGE_STATS_ENABLED=0 $(BIN)/python -m pytest -m ray tests/deploy tests/tuning

# a benchmark client of others, unmodified, in an environment of its own; minutes
test-clients: .venv/installed .venv-clients/installed
	$(BIN)/python -m pytest -m clients tests/serving

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gate: .venv/installed
	$(BIN)/python bench.py --mode gate

# the same properties over many more random workloads and malformed requests
soak: .venv/installed
	LOCKSTEP_SOAK=25 $(BIN)/python -m pytest tests/scheduler tests/serving/test_malformed_requests.py

# the documentation as a site, in site/; links that lead nowhere fail it
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	@echo site/index.html

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --editable .
	touch $@

.venv-clients/installed:
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check aiperf==0.13.0
	touch $@

.venv-docs/installed:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check mkdocs-material==9.8.2
	touch $@

clean:
	rm -rf .venv .venv-clients .venv-docs build dist site *.egg-info

# make demo, make test, make lint, make docs, make bench and make fuzz each set up what they need in $(VENV).
# Another interpreter goes into a folder of its own: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= --numprocesses=auto --maxprocesses=4 --dist=worksteal
DEMO_ARGS ?=
SOAK_DEATHS ?= 1
SOAK_SECONDS ?= 600
SOAK_OPERATIONS ?= 1000000
SOAK_STRESS_SECONDS ?= 60
BENCH_ARGS ?=
BENCH_PEERS ?=
FUZZ_ARGS ?= --count 100000

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# The suite starts hundreds of processes: without bytecode each of them compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: demo test lint docs docs-rows bench bench-peers fuzz soak clean
.DEFAULT_GOAL := test

demo: $(VENV)/.stamp-cli
	$(BIN)/python -m shmstore demo $(DEMO_ARGS)

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict shmstore

# The documentation, into build/site: open build/site/index.html. Whatever is wrong with it is an error.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
	$(BIN)/python tests/site_links.py build/site

# Every workload with what is installed, about half an hour with all peers; make bench BENCH_ARGS='--quick put get'.
# docs/benchmarks.md: make bench-peers, then make bench BENCH_ARGS='--render docs'.
bench: $(VENV)/.stamp-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Peers that have an environment each, in .venv-peers; what the index does not have is left out.
bench-peers: $(VENV)/.stamp-bench
	-$(BIN)/python -m benchmarks.environments $(BENCH_PEERS)

# Forged headers and damaged bytes, 100,000 of each kind; make fuzz FUZZ_ARGS='--count 100 --seed 7'.
fuzz: export SHMSTORE_NOTE_PROOFS := $(CURDIR)/build/proofs-fuzz.json
fuzz: $(VENV)/.stamp-test
	mkdir -p build && rm -f $(SHMSTORE_NOTE_PROOFS)
	$(BIN)/python tests/fuzzing.py $(FUZZ_ARGS)
	$(BIN)/python tests/proofs.py $(SHMSTORE_NOTE_PROOFS)

# Everything that is tested by repetition, for long; the figures go into explanation/reliability.md.
soak: export SHMSTORE_NOTE_PROOFS := $(CURDIR)/build/proofs-soak.json
soak: $(VENV)/.stamp-test
	mkdir -p build && rm -f $(SHMSTORE_NOTE_PROOFS)
	$(BIN)/python tests/kill_matrix.py --all --recovery $(SOAK_DEATHS)
	$(BIN)/python tests/faults.py
	$(BIN)/python tests/faults.py --interrupts 7
	$(BIN)/python tests/interleave.py --deep
	$(BIN)/python tests/history.py --operations $(SOAK_OPERATIONS)
	$(BIN)/python tests/ref_history.py --operations $(SOAK_OPERATIONS)
	$(BIN)/python tests/soak.py --seconds $(SOAK_SECONDS)
	$(BIN)/python tests/leaks.py
	SHMSTORE_STRESS_SECONDS=$(SOAK_STRESS_SECONDS) $(BIN)/python -m pytest -q tests/test_stress.py tests/test_stress_sent.py
	$(BIN)/python -m pytest -q -k race tests/test_strangers.py tests/test_group_life.py
	$(BIN)/python tests/proofs.py $(SHMSTORE_NOTE_PROOFS)

# The table of docs/explanation/serialization.md, from tests/rows.toml and the markers of the tests.
docs-rows:
	$(PYTHON) tests/row_table.py

# A stamp says that its part was installed after the last change of pyproject.toml.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'shmstore needs Python 3.11 or newer: make PYTHON=python3.x' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.stamp-cli: $(VENV)/.stamp-venv pyproject.toml
	$(PIP) install -e '.[cli]'
	@touch $@

$(VENV)/.stamp-test $(VENV)/.stamp-lint $(VENV)/.stamp-docs $(VENV)/.stamp-bench: $(VENV)/.stamp-%: $(VENV)/.stamp-cli
	$(PIP) install --group $*
	@touch $@

clean:
	rm -rf .venv .venv-* build dist htmlcov .coverage .coverage.*
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find shmstore tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

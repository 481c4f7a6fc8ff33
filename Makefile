PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
MUTATE_ARGS ?=
FAULTS_TIMEOUT ?= $(if $(LONG),75m,15m)
export PYTHON

BIN = $(VENV)/bin
# The programs alone: the package mariadb-server would bring a service and its data along.
MARIADB = mariadb-server-core mariadb-client-core
GALERA = galera-4 haproxy
REQUIREMENTS = setup.py pyproject.toml requirements.txt test-requirements.txt \
    mutation-requirements.txt

# Of seeds of the simulation, each a fleet in trouble for minutes; 100000 take two hours or so.
SEEDS ?= 5000
FROM ?= 0
MINUTES ?= 30

.PHONY: help demo test simulate test-heat test-heat-versions test-faults bench cover mutate lint \
    audit sample clean

help:
	@echo 'make demo         show a takeover'
	@echo 'make test         the tests, on SQLite, MariaDB and PostgreSQL'
	@echo 'make simulate     $(SEEDS) seeds of the simulation, at most $(MINUTES) minutes'
	@echo 'make test-heat    the tests against real heat-engines'
	@echo 'make test-heat-versions'
	@echo '                  recovery on Heat 25, 26 and 27, on the bench of Heat itself'
	@echo 'make test-faults  the fault tests, at most $(FAULTS_TIMEOUT)'
	@echo 'make bench        the measurements'
	@echo 'make cover        the tests, with their coverage'
	@echo 'make mutate       break the code that decides, and see the tests fail; an hour at most'
	@echo 'make lint         ruff, mypy and the layers'
	@echo 'make audit        known vulnerabilities of the oldest dependencies; asks PyPI'
	@echo 'make sample       write heat_liveness.conf.sample anew'
	@echo 'make clean        remove what the other targets made'

# The stamps make a second run quick.
$(VENV)/stamp-demo: $(REQUIREMENTS)
	@tools/venv.sh $(VENV) demo
	@touch $@

$(VENV)/stamp-test: $(REQUIREMENTS)
	@tools/venv.sh $(VENV) mysql,postgresql,demo,test
	@touch $@ $(VENV)/stamp-demo

$(VENV)/stamp-mutation: $(VENV)/stamp-test
	@tools/venv.sh $(VENV) mysql,postgresql,demo,test,mutation
	@touch $@

demo: $(VENV)/stamp-demo
	@$(BIN)/heat-liveness-demo $(DEMO_ARGS)

test: $(VENV)/stamp-test
	@tools/packages.sh $(MARIADB) $(GALERA) postgresql
	$(BIN)/pytest tests --ignore=tests/heat --ignore=tests/heat_versions \
	    --ignore=tests/faults -n 2 --dist worksteal $(PYTEST_ARGS)

simulate: $(VENV)/stamp-test
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --from $(FROM) --minutes $(MINUTES)

test-heat: $(VENV)/stamp-test
	@tools/packages.sh $(MARIADB) rabbitmq-server
	$(BIN)/pytest tests/heat $(PYTEST_ARGS)

test-heat-versions: $(VENV)/stamp-test
	$(BIN)/pytest tests/heat_versions $(PYTEST_ARGS)

test-faults: $(VENV)/stamp-test
	@tools/packages.sh $(MARIADB) $(GALERA) postgresql faketime
	timeout --foreground --signal=INT --kill-after=30 $(FAULTS_TIMEOUT) \
	    $(BIN)/pytest tests/faults -n 2 --dist worksteal $(PYTEST_ARGS)

bench: $(VENV)/stamp-test
	@tools/packages.sh $(MARIADB) postgresql
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

cover: $(VENV)/stamp-test
	@tools/packages.sh $(MARIADB) $(GALERA) postgresql
	$(BIN)/pytest tests --ignore=tests/heat --ignore=tests/heat_versions \
	    --ignore=tests/faults --cov --cov-report=term-missing \
	    $(PYTEST_ARGS)

mutate: $(VENV)/stamp-mutation
	$(BIN)/python tools/mutate.py $(MUTATE_ARGS)

lint: $(VENV)/stamp-test
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

audit:
	tools/audit.sh $(VENV)-audit

sample: $(VENV)/stamp-test
	$(BIN)/oslo-config-generator --config-file config-generator.conf

clean:
	rm -rf $(VENV) $(VENV)-audit .heatlab .mutation .tox build dist *.egg-info htmlcov .coverage* .hypothesis \
	    .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

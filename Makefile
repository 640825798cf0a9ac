# `make demo` and `make test` work as the first command in a fresh clone on a bare Debian or Ubuntu with Python 3.11 or later.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

SEEDS ?= 1000
FROM ?= 0
MINUTES ?= 10

.PHONY: demo test test-fast check format proto lock clean etcd helm model simulate torture planted fuzz e2e
.DEFAULT_GOAL := demo

demo: $(VENV)/.run          ## the main job: a group and a remote queue manager, with owners killed again and again
	$(BIN)/qsg demo $(ARGS)

test: $(VENV)/.dev etcd helm ## all tests but those on a cluster: rules, services, stores (memory, SQLite, real etcd), real processes
	$(BIN)/pytest -q -m "not cluster"

test-fast: $(VENV)/.dev     ## without real etcd and without processes
	$(BIN)/pytest -q -m "not etcd and not processes and not cluster"

model: $(VENV)/.dev         ## every state of a small group, through the real rules
	PYTHONPATH=tests $(BIN)/python -m model $(ARGS)

simulate: $(VENV)/.dev      ## whole queue managers in virtual time: SEEDS=1000 FROM=0, or SEED=n to see one again
	PYTHONPATH=tests $(BIN)/python -m simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --from $(FROM)) $(ARGS)

torture: $(VENV)/.dev etcd  ## real processes on a real etcd, with every kind of fault: MINUTES=10
	PYTHONPATH=tests $(BIN)/python -m torture --minutes $(MINUTES) $(ARGS)

e2e: $(VENV)/.dev           ## on the Kubernetes cluster of KUBECONFIG, or one brought up for it; else it says how to get one
	tools/e2e.sh $(BIN)/python $(ARGS)

planted: $(VENV)/.dev       ## planted bugs: which level finds each, and how soon
	PYTHONPATH=tests $(BIN)/python -m planted $(ARGS)

fuzz: $(VENV)/.dev          ## every parser of outside bytes
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

check: $(VENV)/.dev         ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

etcd: $(VENV)/.run          ## a real etcd for tests: from the PATH, the cache, or built from its Go module
	@$(BIN)/python -m qsg.process.etcd ensure

helm: $(VENV)/.dev          ## helm for the tests of the chart: from the PATH, the cache, or built from its Go module
	@PYTHONPATH=tests $(BIN)/python -m support.helm

proto:                      ## regenerates qmgr/qsg/pb with the oldest supported generator
	tools/proto.sh

lock: $(VENV)/.dev
	tools/lock.sh

$(VENV)/bin/python:
	tools/venv.sh $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements/run.lock pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/run.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements/dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

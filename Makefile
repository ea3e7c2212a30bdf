PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The servers that benchmarks compare with, their dependencies their own; torch, OpenVINO and this project are .venv's.
PEERS := .venv-peers
PEERS_INSTALLED := $(PEERS)/.installed
# Two processes of one thread each; the tests of a file share one of them, and what was made for the file.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
HOST ?= 127.0.0.1
PORT ?= 8000
PROMETHEUS_PORT ?= 9090
ALERTMANAGER_PORT ?= 9093
SHARE ?= 0.2
IMAGES_PER_S ?= 20

.PHONY: help install serve observe dashboards rules screenshots image test test-slow bench paper check format results clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Python compiles what it imports, a part of the 19,000 files that pip would.
install: $(INSTALLED)  ## Set up .venv with all that development needs

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable \
		'.[training,capture,cpu,optimize,onnx,timm,tracing,deploy,test]'
	touch $@

$(PEERS_INSTALLED): benchmarks/peers/requirements.txt $(INSTALLED)
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --requirement $<
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	touch $@

serve: $(INSTALLED)  ## Serve the shipped bundle; HOST and PORT choose the address
	$(BIN)/ood-serve --host $(HOST) --port $(PORT)

observe: $(INSTALLED)  ## Try the alarms: server, Prometheus, Alertmanager under replayed images, SHARE of them OOD
	@$(BIN)/python -m deploy.observe --port $(PORT) --prometheus-port $(PROMETHEUS_PORT) \
		--alertmanager-port $(ALERTMANAGER_PORT) --ood-share $(SHARE) --images-per-s $(IMAGES_PER_S)

dashboards: $(INSTALLED)  ## Write Grafana's dashboards anew from their code
	$(BIN)/python -m deploy.grafana.generate

rules: $(INSTALLED)  ## Write the alerts' manifest and the runbook's page anew from the rules and the runbook
	$(BIN)/python -m deploy.prometheus_rule
	$(BIN)/python -m deploy.runbook_page

screenshots: $(INSTALLED)  ## Picture the page anew for its documentation: docs/images; needs Chromium
	$(BIN)/python -m deploy.screenshots --port $(PORT)

image:  ## Build the image, run it, print its size and start time: docs/deployment.md
	deploy/build_image.sh

test: $(INSTALLED)  ## Run all tests but the slow ones; TEST_IMAGES=DIR adds those on full image sets
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) $(PEERS_INSTALLED)  ## Run the slow tests: whole processes started, killed, compiled
	$(PYTEST) -m slow

bench: $(INSTALLED) $(PEERS_INSTALLED)  ## Measure the server beside its peers, in a quarter of an hour: benchmarks/RESULTS.md; needs wrk
	$(BIN)/python -m benchmarks.serving

paper: $(INSTALLED)  ## Run the paper's experiments on the tests' few images, in minutes: the way of docs/reproduce.md
	$(BIN)/ood-train reproduce --size tests --data tests/data/images --out runs/paper-tests

check: $(INSTALLED)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

results: $(INSTALLED)  ## Renew README's figures, the model cards and the reports from the shipped bundles and every results.json
	$(BIN)/ood-train card cifar10 --readme README.md --out docs/model-card-cifar10.md
	$(BIN)/ood-train report docs/results/paper-short
	$(BIN)/ood-train report docs/results/robust
	$(BIN)/ood-train report docs/results/paper --into docs/results/README.md
	$(BIN)/ood-train report docs/results/paper --into README.md
	$(BIN)/python -m benchmarks.report --into README.md
	$(BIN)/python -m benchmarks.report benchmarks/h200/results.json --out benchmarks/h200/RESULTS.md

clean:  ## Remove what was built here
	rm -rf $(VENV) $(PEERS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

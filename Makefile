PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install test check format results clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Set up .venv with all that development needs

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[training,cpu,test]'
	touch $@

test: $(INSTALLED)  ## Run the tests; TEST_IMAGES=DIR adds those on full image sets
	$(BIN)/python -m pytest

check: $(INSTALLED)  ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

results: $(INSTALLED)  ## Renew README's figures and the model card from the shipped bundle
	$(BIN)/ood-train card cifar10 --readme README.md --out docs/model-card-cifar10.md

clean:  ## Remove what was built here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

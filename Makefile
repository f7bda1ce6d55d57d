# dduct. `make help` says what there is.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MACHINE ?= $(shell uname -m)
WHOLE  := $(wildcard $(addprefix tests/system/test_,$(addsuffix .py,access caching corpus end_to_end faults hot parent recorded relaying secrets)))
QUICK := $(addprefix tests/unit/,protocol storage tls transfers monitoring fetching)
FOLDERS := server proxy fetching pages upstream transfers net storage protocol tls monitoring

.DEFAULT_GOAL := help
.PHONY: help run test quick coverage test-all test-workers test-clients test-hard test-packages test-image bench bench-clients profile check format readme \
	dist pyz pyz-fat deb container image release clean

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

run: ## start dduct with dduct.toml
	@if $(PYTHON) packaging/ready.py; then exec $(PYTHON) dduct.py --cfg dduct.toml; fi; \
	$(MAKE) --no-print-directory .venv-run/.stamp && exec .venv-run/bin/python dduct.py --cfg dduct.toml

.venv-run/.stamp: requirements.txt
	$(PYTHON) -m venv .venv-run
	.venv-run/bin/pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.stamp: requirements.txt tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	@touch $@

test: $(VENV)/.stamp ## run the tests (PYTEST_ARGS=… for pytest)
	$(BIN)/python -m pytest -q -rs -n auto tests/unit tests/system tests/test_layout.py $(PYTEST_ARGS)

quick: $(VENV)/.stamp ## run the quick tests: pure modules, storage, TLS (below 15 s)
	$(BIN)/python -m pytest -q -n auto $(QUICK) $(PYTEST_ARGS)

coverage: $(VENV)/.stamp ## run the tests and print the branches they cover in each folder; fails below the floors
	@mkdir -p build/coverage
	$(BIN)/python -m pytest -q -rs -n auto --cov --cov-report=json tests/unit tests/system $(PYTEST_ARGS)
	$(BIN)/python tests/support/coverage_by_folder.py build/coverage/report.json

test-workers: $(VENV)/.stamp ## run the tests of the whole with two processes that share one cache
	DDUCT_TEST_WORKERS=2 $(BIN)/python -m pytest -q -rs -n auto $(WHOLE) $(PYTEST_ARGS)

test-clients: $(VENV)/.stamp ## run real clients (skopeo, podman, apt, dnf, pip, npm, …) against real servers
	$(BIN)/python -m pytest -q -rs tests/clients $(PYTEST_ARGS)

test-hard: $(VENV)/.stamp .venv-tools/.stamp ## kills, full disks, bad networks, crowds, a soak, TLS scanners (DDUCT_LONG=1: longer)
	$(BIN)/python -m pytest -q -rs -n 2 tests/hardship/test_scans.py $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q -rs -rP --ignore=tests/hardship/test_scans.py tests/hardship $(PYTEST_ARGS)

test-packages: $(VENV)/.stamp .venv-packages/.stamp ## try every artefact where it will run: each Python, Debian 12, podman (as root)
	$(BIN)/python -m pytest -q -rs -n 2 tests/packages $(PYTEST_ARGS)

.venv-packages/.stamp: tests/packages/requirements.txt
	$(PYTHON) -m venv .venv-packages
	.venv-packages/bin/pip install -q --disable-pip-version-check -r tests/packages/requirements.txt
	@touch $@

.venv-tools/.stamp: tests/hardship/requirements.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/pip install -q --disable-pip-version-check -r tests/hardship/requirements.txt
	@touch $@

bench: $(VENV)/.stamp ## dduct, Squid and nginx side by side (as root; needs nginx, squid-openssl, cc, libssl-dev)
	$(BIN)/python bench/bench.py $(BENCH_ARGS)

bench-clients: $(VENV)/.stamp ## npm, pip, apt and skopeo through dduct, Squid and straight (as root; needs docker-registry, apt-utils, too)
	$(BIN)/python bench/real_clients.py $(BENCH_ARGS)

profile: .venv-bench/.stamp ## where dduct spends its time, case by case (as root)
	.venv-bench/bin/python bench/profiling.py $(BENCH_ARGS)

.venv-bench/.stamp: requirements.txt bench/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q --disable-pip-version-check -r requirements.txt -r bench/requirements.txt
	@touch $@

test-all: ## run the tests with every Python found
	@PYTEST_ARGS='$(PYTEST_ARGS)' sh packaging/test-all.sh $(PYTHONS)

readme: $(VENV)/.stamp ## write README's table of configuration keys from their declarations
	$(BIN)/python tests/support/readme_table.py

check: $(VENV)/.stamp ## ruff, mypy --strict, the order of the folders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layout.py

format: $(VENV)/.stamp ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is shipped; packaging/README.md says more.

dist: ## build dist/dduct-X.Y.Z.tar.gz, to be unpacked and run
	$(PYTHON) packaging/tarball.py dist

pyz: ## build dist/dduct.pyz, one file that runs where python3 and cryptography are
	$(PYTHON) packaging/pyz.py dist/dduct.pyz

pyz-fat: ## build dist/dduct-MACHINE.pyz, one file that runs where python3 is (MACHINE=aarch64)
	$(PYTHON) packaging/pyz.py --fat --machine $(MACHINE) dist/dduct-$(MACHINE).pyz

deb: ## build dist/dduct_X.Y.Z_all.deb (needs debhelper and dh-python)
	$(PYTHON) packaging/deb.py dist

container: ## build the image dduct with podman (BASE=… for another base)
	podman build --format docker $(if $(BASE),--build-arg BASE=$(BASE)) -f packaging/Containerfile -t dduct .

IMAGE := dist/dduct-$(shell $(PYTHON) packaging/parts.py).qcow2

image: $(IMAGE) ## build dist/dduct-X.Y.Z.qcow2, the OpenNebula appliance (as root; needs mmdebstrap, grub-pc-bin, qemu-utils)

$(IMAGE): $(wildcard *.py $(addsuffix /*.py,$(FOLDERS)) pages/setup.sh packaging/*.py packaging/pins/* packaging/opennebula/image/*) packaging/opennebula/build-image.sh \
		$(addprefix packaging/opennebula/appliances/dduct/,appliance.sh dduct.service)
	packaging/opennebula/build-image.sh $@

test-image: $(VENV)/.stamp $(IMAGE) ## boot that image under qemu, with the inputs right, changed and wrong (needs qemu-system-x86, genisoimage)
	$(BIN)/python -m pytest -q -rs -s -o faulthandler_timeout=0 tests/image $(PYTEST_ARGS)

release: ## build everything into dist/, with its checksums
	rm -rf dist
	$(MAKE) --no-print-directory dist pyz pyz-fat deb image
	cd dist && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum > SHA256SUMS && cat SHA256SUMS

clean: ## remove what make has made
	rm -rf .venv .venv-* build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# SPDX-License-Identifier: Apache-2.0
# make run      the daemon on a simulated host, until Ctrl-C
# make test     everything: unit tests, lints, real kernels in QEMU
# make help     the rest

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# Debian's own interpreter where there is one: a service with ProtectHome=yes cannot use one
# that lies in somebody's home directory.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV ?= .venv
CACHE := $(or $(TIERD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tierd)
export PATH := $(CACHE)/tools:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MYPY_CACHE_DIR ?= $(CACHE)/mypy

DESTDIR ?=
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# systemd reads units below /usr/local too, but catalogs and sysusers.d only here.
SYSTEMD_LIB ?= /usr/lib
# Tell systemd of the new files; not below a DESTDIR, where a package manager does it later.
ACTIVATE ?= yes
# Python dependencies that PYTHON lacks: auto fetches them into the private directory with pip,
# no fails and names them.
BUNDLE ?= auto

bindir := $(PREFIX)/bin
libdir := $(PREFIX)/lib/tierd
unitdir := $(PREFIX)/lib/systemd/system
mandir := $(PREFIX)/share/man
datadir := $(PREFIX)/share/tierd
docdir := $(PREFIX)/share/doc/tierd
catalogdir := $(SYSTEMD_LIB)/systemd/catalog
sysusersdir := $(SYSTEMD_LIB)/sysusers.d

.PHONY: help
help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

# --- to try it and to work on it -----------------------------------------------------------

.PHONY: run
run: $(VENV)/.run ## Run the daemon on a simulated host (16 GiB DRAM, 48 GiB CXL)
	@exec $(VENV)/bin/tierd simulate --config config/simulated.yaml

.PHONY: test
test: lint-tools $(VENV)/.dev ## Run all tests: unit, lints, guest
	@$(VENV)/bin/python -m pytest tests/unit tests/guest $(PYTEST_ARGS)

.PHONY: unit
unit: $(VENV)/.dev ## Run the unit tests and those lints whose tools are there
	@$(VENV)/bin/python -m pytest tests/unit $(PYTEST_ARGS)

.PHONY: lint
lint: lint-tools $(VENV)/.dev ## Run the lints only
	@TIERD_REQUIRE=ruff,mypy,lint-imports,promtool,systemd-analyze \
	  $(VENV)/bin/python -m pytest tests/unit/test_{quality,unit_file,rules,dashboards}.py $(PYTEST_ARGS)

# Taken literally: make would otherwise expand each $ of the command.
override CMD := $(value CMD)
export CMD
.PHONY: guest
guest: ## A root shell in a guest with two tiers; CMD='...' runs one command there
	@exec tests/rig/guest

.PHONY: check-series container
check-series: ## Check the kernel patches: checkpatch, sparse, builds in all configurations
	@tests/rig/check-series
container: ## Build Dockerfile.qemu without a container engine and boot guests in it
	@tests/rig/container

.PHONY: selftest selftest-debug
selftest: $(VENV)/.dev ## The kernel series' selftest on machines A and B
	@$(VENV)/bin/python -m pytest tests/guest/test_selftest.py $(PYTEST_ARGS)
selftest-debug: $(VENV)/.dev ## The same on the debug kernel, and with a security module
	@TIERD_SELFTEST_KERNEL=debug \
	  $(VENV)/bin/python -m pytest tests/guest/test_selftest.py $(PYTEST_ARGS)

.PHONY: mutants
mutants: ## Put each mistake back into the kernel series and see which test notices: ONLY='B02 ...'
	@PYTHONPATH=tests exec $(PYTHON) -m mutants --only '$(ONLY)' \
	  $(if $(KERNEL),--kernel $(KERNEL))

.PHONY: stress
stress: ## Storms against move_phys_pages on the debug kernel: SECONDS=300 ONLY='name ...' JOBS=1
	@PYTHONPATH=tests exec $(PYTHON) -m stress --seconds $(or $(SECONDS),300) \
	  --jobs $(or $(JOBS),1) --only '$(ONLY)'

.PHONY: bench
bench: $(VENV)/.dev ## Measure tierd's own cost
	@$(VENV)/bin/python -m pytest tests/bench -m bench -s $(PYTEST_ARGS)

.PHONY: bench-syscall
bench-syscall: $(VENV)/.dev ## Measure the system call beside its alternatives, in a guest
	@PYTHONPATH=tests $(VENV)/bin/python -m bench.syscall --out out/bench-syscall

.PHONY: bench-scale
bench-scale: $(VENV)/.dev ## Measure the daemon on simulated hosts of 16 GiB to 16 TiB
	@PYTHONPATH=daemon:tests $(VENV)/bin/python -m bench.scale $(BENCH_ARGS)

.PHONY: bench-policy
BENCH_POLICY ?= --out out/bench-policy
bench-policy: $(VENV)/.dev ## Judge the decisions against an oracle and reference policies
	@PYTHONPATH=daemon:tests $(VENV)/bin/python -m bench.policy $(BENCH_POLICY)

.PHONY: bench-compare
bench-compare: $(VENV)/.dev ## Compare ways of tiering in guests; COMPARE_ARGS='--only tierd'
	@PYTHONPATH=daemon:tests $(VENV)/bin/python -m bench.compare $(COMPARE_ARGS)

.PHONY: schema docs
schema: $(VENV)/.dev ## Write config/tierd.schema.json from the models
	@$(VENV)/bin/tierd schema > config/tierd.schema.json
docs: $(VENV)/.dev ## Write docs/metrics.md and tierd.yaml(5) from the code
	@$(VENV)/bin/python packaging/metrics_page.py > docs/metrics.md
	@$(VENV)/bin/python packaging/policy_page.py > man/tierd.yaml.5

.PHONY: clean
clean: ## Remove what was made in this directory
	rm -rf .venv build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis daemon/*.egg-info

# One environment for everything, made again when what it is made from has changed. A stamp
# that is older than pyproject.toml only costs a pip run that finds all in place.
$(VENV)/bin/python:
	@packaging/debian-packages $(PYTHON)
	@echo "make: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml daemon/tierd/__init__.py | $(VENV)/bin/python
	@echo "make: installing tierd and its dependencies into $(VENV)"
	@$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml daemon/tierd/__init__.py | $(VENV)/bin/python
	@echo "make: installing tierd and the development tools into $(VENV)"
	@$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.run

.PHONY: lint-tools
lint-tools:
	@packaging/lint-tools $(CACHE)/tools

# --- to install it -------------------------------------------------------------------------

.PHONY: install
install: ## Install below DESTDIR and PREFIX, as a distribution would
	@$(PYTHON) packaging/dependencies.py --python $(PYTHON) --bundle $(BUNDLE) $(DESTDIR)$(libdir)
	@$(PYTHON) packaging/install_package.py --python $(PYTHON) --destdir '$(DESTDIR)' --libdir $(libdir) --bindir $(bindir)
	@install -d $(addprefix $(DESTDIR),$(unitdir) $(catalogdir) $(sysusersdir) $(docdir) \
	  $(datadir)/policies $(datadir)/prometheus $(datadir)/grafana \
	  $(SYSCONFDIR)/tierd/tierd.d $(mandir)/man5 $(mandir)/man8)
	@for unit in tierd.service tierd.socket; do \
	  sed 's|/usr/bin/|$(bindir)/|' systemd/$$unit > $(DESTDIR)$(unitdir)/$$unit; \
	  chmod 644 $(DESTDIR)$(unitdir)/$$unit; done
	@install -m 644 systemd/tierd.catalog $(DESTDIR)$(catalogdir)/tierd.catalog
	@install -m 644 systemd/tierd.sysusers $(DESTDIR)$(sysusersdir)/tierd.conf
	@test -e $(DESTDIR)$(SYSCONFDIR)/tierd/tierd.yaml \
	  || install -m 644 config/tierd.yaml $(DESTDIR)$(SYSCONFDIR)/tierd/tierd.yaml
	@install -m 644 config/tierd.yaml config/simulated.yaml config/tierd.schema.json $(DESTDIR)$(datadir)
	@install -m 644 config/policies/*.yaml $(DESTDIR)$(datadir)/policies
	@install -m 644 config/prometheus/alerts.yaml config/prometheus/rules.yaml $(DESTDIR)$(datadir)/prometheus
	@install -m 644 config/grafana/tierd.json $(DESTDIR)$(datadir)/grafana
	@install -m 644 man/*.5 $(DESTDIR)$(mandir)/man5
	@install -m 644 man/*.8 $(DESTDIR)$(mandir)/man8
	@install -m 644 README.md CHANGELOG.md docs/*.md LICENSES/Apache-2.0.txt $(DESTDIR)$(docdir)
	@packaging/activate $(if $(DESTDIR),no,$(ACTIVATE)) $(sysusersdir)/tierd.conf
	@echo "make: tierd is installed in $(DESTDIR)$(PREFIX); next: systemctl enable --now tierd"

.PHONY: uninstall
uninstall: ## Remove what install put there, but for the policy in SYSCONFDIR
	rm -rf $(addprefix $(DESTDIR),$(libdir) $(datadir) $(docdir))
	rm -f $(addprefix $(DESTDIR),$(bindir)/tierd $(bindir)/tierctl \
	  $(unitdir)/tierd.service $(unitdir)/tierd.socket $(catalogdir)/tierd.catalog \
	  $(sysusersdir)/tierd.conf $(patsubst man/%.5,$(mandir)/man5/%.5,$(wildcard man/*.5)) \
	  $(patsubst man/%.8,$(mandir)/man8/%.8,$(wildcard man/*.8)))

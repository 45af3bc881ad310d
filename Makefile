# SPDX-License-Identifier: Apache-2.0
# Every target does what it needs; a second run of set-up installs nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
BUILD := build

CLANG ?= clang
# mcpu v3: 32-bit registers and all jumps, known to every kernel from 5.1 on. Line numbers leave out where the checkout
# is: the same sources make the same objects.
BPF_CFLAGS := -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -I bpf \
	-fdebug-compilation-dir=. \
	-I /usr/include/$(shell uname -m)-linux-gnu
BPF_HEADERS := $(wildcard bpf/*.h)
BPF_OBJECTS := $(addprefix $(BUILD)/bpf/,tc.o cgroup.o sweep.o xdp.o)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

.PHONY: setup
setup: ## install what the project needs: Debian packages, a virtual environment, bpffs
	@hack/setup

.PHONY: build
build: setup $(BUILD)/bin/calico-ebpf $(BPF_OBJECTS) $(BUILD)/bpf/layout.o ## the executable, the BPF objects

$(BUILD)/bin/calico-ebpf: cni/launcher.c
	@mkdir -p $(@D)
	$(CC) -std=c11 -O2 -static -Wall -Wextra -Werror -o $@ $<

$(BUILD)/bpf/%.raw.o: bpf/%.c $(BPF_HEADERS)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@

# Linking settles the offsets in .rodata and drops what the loader does not need.
$(BPF_OBJECTS): $(BUILD)/bpf/%.o: $(BUILD)/bpf/%.raw.o
	bpftool gen object $@ $<

$(BUILD)/bpf/layout.o: bpf/layout.c $(BPF_HEADERS)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@

.PHONY: layout
layout: build ## generate the Python side of the layouts anew
	$(PYTHON) -m bpf.layout $(BUILD)/bpf/layout.o | $(VENV)/bin/ruff format --stdin-filename bpf/abi.py - > $(BUILD)/abi.py
	cp $(BUILD)/abi.py bpf/abi.py
	$(PYTHON) -m bpf.settings > $(BUILD)/SETTINGS.md
	cp $(BUILD)/SETTINGS.md conf/SETTINGS.md

.PHONY: check
check: build ## format, lint, types, import contracts, generated files, pure tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	clang-format --dry-run --Werror bpf/*.[ch] bpf/tests/*.c cni/*.c $(wildcard e2e/*/*.c e2e/*/*/*.c)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PYTHON) -m bpf.layout $(BUILD)/bpf/layout.o | $(VENV)/bin/ruff format --stdin-filename bpf/abi.py - | diff -u bpf/abi.py -
	$(PYTHON) -m bpf.settings | diff -u conf/SETTINGS.md -
	shellcheck hack/setup hack/install hack/kind-up .ci/run
	$(VENV)/bin/pytest -m 'not root' bpf cni controller e2e hack

# The architecture of the image; the BPF programs are the same for all.
NATIVE := $(shell dpkg --print-architecture)
ARCH ?= $(NATIVE)

.PHONY: image
ifeq ($(ARCH),$(NATIVE))
image: build ## write the container image build/image.tar (ARCH=arm64 for build/image-arm64.tar)
else
image: build $(BUILD)/$(ARCH)/bin/calico-ebpf
endif
	$(PYTHON) -m hack.image --arch $(ARCH)

$(BUILD)/arm64/bin/calico-ebpf: CC := aarch64-linux-gnu-gcc
$(BUILD)/amd64/bin/calico-ebpf: CC := x86_64-linux-gnu-gcc
$(BUILD)/%/bin/calico-ebpf: cni/launcher.c
	@hack/setup gcc-$(subst _,-,$(CC:-gcc=)) libc6-dev-$*-cross
	@mkdir -p $(@D)
	$(CC) -std=c11 -O2 -static -Wall -Wextra -Werror -o $@ $<

.PHONY: manifests
manifests: setup ## make conf/install/calico-ebpf.yaml anew from conf/base
	$(PYTHON) -m e2e.manifests

.PHONY: kubernetes
kubernetes: setup ## build Kubernetes' commands from their Go modules and the lab's container images, once
	$(PYTHON) -m e2e.kubernetes
	$(PYTHON) -m e2e.lab.images

.PHONY: kernels
kernels: setup ## fetch Debian's cloud kernels, and what boots them, once
	@hack/setup busybox-static qemu-system-x86
	$(PYTHON) -m e2e.kernels.images

.PHONY: test
test: check image kubernetes kernels ## all tests: unit, packets, CNI, the lab, the image, a real cluster, other kernels
	$(VENV)/bin/pytest -m root bpf cni controller
	env -u KUBECONFIG $(VENV)/bin/pytest -m root e2e

.PHONY: test-cluster
test-cluster: image kubernetes ## of the tests, those on a real cluster of kubelets
	$(VENV)/bin/pytest -m root e2e/tests/cluster

.PHONY: test-kubernetes
test-kubernetes: export KUBERNETES ?= 1.30
test-kubernetes: image kubernetes ## of the tests, those with an API server, on an older Kubernetes (KUBERNETES=1.30)
	env -u KUBECONFIG $(VENV)/bin/pytest -m root -k api e2e/tests --ignore e2e/tests/cluster
	env -u KUBECONFIG $(VENV)/bin/pytest -m root e2e/tests/cluster

.PHONY: conformance
conformance: image kubernetes ## Kubernetes' own network tests on a real cluster (RUNS=3: three in a row; STACK=ipv4, ipv6)
	$(PYTHON) -m e2e.conformance $(if $(RUNS),--runs $(RUNS)) $(if $(STACK),--stack $(STACK))

.PHONY: test-kernels
test-kernels: build kernels ## of the tests, those on Debian's cloud kernels
	$(VENV)/bin/pytest -m root e2e/kernels

.PHONY: soak
soak: build ## all of the matrix of which `make test` runs a selection, property tests for long: 20 minutes
	$(VENV)/bin/pytest -m soak e2e
	$(VENV)/bin/pytest --hypothesis-profile soak --timeout 3600 \
		controller/tests/test_histories.py controller/tests/test_selection.py bpf/tests/test_malformed_packets.py

.PHONY: demo
demo: build ## a cluster of two nodes in network namespaces, shown at work (KEEP=1 leaves it standing)
	$(PYTHON) -m e2e.demo $(if $(KEEP),--keep)

.PHONY: bench
bench: image ## measure against the peers (CASE=name for one case)
	$(PYTHON) -m e2e.bench $(CASE)

.PHONY: clean
clean: ## remove what was built, not the caches
	rm -rf $(BUILD)

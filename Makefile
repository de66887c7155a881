# Targets for people and CI. `make test` runs all tests; it needs Rust and valgrind, and for e2e root, Go, Node, Python,
# curl, Chromium, Prometheus, RabbitMQ, PostgreSQL, Redis, dnsmasq, OpenSSH and proxytunnel. `make lint` needs Go and
# Python too.

CARGO ?= cargo

.PHONY: help run build test unit e2e fmt lint advisories bench gate fuzz image image-debug schema reference compatibility

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## The demo: a built-in cluster with backends on loopback, a page for the browser, and commands to try
	$(CARGO) run -- demo

test: unit gate e2e ## All tests

unit: ## Tests that need neither root nor Go
	$(CARGO) test --locked --lib --bins --test config --test compatibility --test contract --test cli --test demo --test proxy --test retry --test edge --test codec --test bounds --test desk

gate: ## Instructions and allocations per request against their limits (valgrind); UPDATE_GATE=1 records them
	$(CARGO) test --locked --test gate -- --nocapture

e2e: ## Against a real control plane, with common clients (root; CONTRIBUTING.md lists the programs)
	$(CARGO) test --locked --test e2e

fmt: ## Formats Rust and Go
	$(CARGO) fmt
	cd fuzz && $(CARGO) fmt
	gofmt -w tests

lint: ## Formatting, clippy, documentation, licenses, Dockerfile and manifests
	$(CARGO) fmt --check
	cd fuzz && $(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	cd fuzz && $(CARGO) clippy --locked --target-dir ../target -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --document-private-items --locked --quiet
	$(CARGO) deny --log-level error --locked check bans licenses sources
	shellcheck .ci/run tests/cluster/build.sh tests/lint/dependencies.sh tests/lint/run.sh
	tests/lint/dependencies.sh
	tests/lint/doc_openers.py
	tests/lint/run.sh

build: ## The release binary
	$(CARGO) build --release --locked

advisories: ## Known vulnerabilities of the dependencies (cargo-deny)
	$(CARGO) deny --log-level error --locked check advisories

bench: ## CPU, latency and memory beside HAProxy, nginx and kube-apiserver (root; Go, haproxy, nginx, wrk, h2load)
	$(CARGO) bench --bench peers

VERSION ?= $(shell awk -F '"' '/^version = / { print $$2; exit }' Cargo.toml)
IMAGE ?= ghcr.io/kube-bastion/kube-bastion:$(VERSION)
image: ## The container image (Docker with buildx); IMAGE=NAME:TAG PLATFORMS=linux/amd64,linux/arm64 PUSH=1
	docker buildx build --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  $(if $(PLATFORMS),--platform $(PLATFORMS)) --tag $(IMAGE) $(if $(PUSH),--push,--load) .

image-debug: ## The debug information of the image's binary, into target/image-debug
	docker buildx build --target debug $(if $(PLATFORMS),--platform $(PLATFORMS)) --output target/image-debug .

schema: ## Writes config/bastionconfiguration.schema.json from the types
	UPDATE_SCHEMA=1 $(CARGO) test --quiet --test config schema_is_current

reference: ## Writes docs/reference.md from the configuration types and the command line
	UPDATE_REFERENCE=1 $(CARGO) test --quiet --test config reference_is_current

compatibility: ## Writes docs/compatibility.md from the table of the differential tests
	UPDATE_COMPATIBILITY=1 $(CARGO) test --quiet --test compatibility document_matches_table

FUZZ_SECONDS ?= 600
FUZZ_TARGET ?= fuzz/target
NIGHTLY ?= nightly
fuzz: ## Ten minutes of each fuzz target (cargo-fuzz, a nightly compiler, g++); FUZZ_SECONDS=60 for a shorter run
	@rustup run $(NIGHTLY) rustc --version >/dev/null 2>&1 || { \
	  echo "make fuzz needs a nightly compiler: rustup toolchain install $(NIGHTLY) --profile minimal" >&2; exit 1; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
	  echo "make fuzz needs cargo-fuzz: cargo install --locked cargo-fuzz" >&2; exit 1; }
	$(CARGO) +$(NIGHTLY) fuzz build --target-dir $(FUZZ_TARGET)
	# Leak detection is off: `exchange` has threads that are about to end, whose memory is reported as leaked. Inputs have any
	# length from the start: `exchange` runs too few of them for lengths that grow with their number.
	set -e; targets=$$($(CARGO) +$(NIGHTLY) fuzz list); for target in $$targets; do \
	  dictionary=fuzz/dictionaries/$$target.dict; test -f $$dictionary || dictionary=; \
	  $(CARGO) +$(NIGHTLY) fuzz run --target-dir $(FUZZ_TARGET) $$target -- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -detect_leaks=0 \
	    -len_control=0 $${dictionary:+-dict=$$dictionary}; \
	done

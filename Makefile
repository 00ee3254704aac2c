# `make demo` shows it, `make test` proves it. Both install what is missing (Debian 12, root).

TARGET   := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
PROGRAMS := $(TARGET)/programs
STATIC   := x86_64-unknown-linux-gnu
CARGO    := cargo
# Guests are emulated and want a core each; more at once only makes all of them slower.
THREADS  ?= 2

.PHONY: all deps programs agent test unit e2e more demo check clean

all: programs

deps:
	@tests/lab/install.sh

agent: deps
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --profile lab -p causeway-agent --target $(STATIC)
	@mkdir -p $(PROGRAMS)
	@strip -o $(PROGRAMS)/causeway-agent.new $(TARGET)/$(STATIC)/lab/causeway-agent
	@mv $(PROGRAMS)/causeway-agent.new $(PROGRAMS)/causeway-agent

programs: agent
	$(CARGO) build --locked --profile lab -p causeway
	@cp $(TARGET)/lab/causeway $(PROGRAMS)/causeway.new && mv $(PROGRAMS)/causeway.new $(PROGRAMS)/causeway
	$(PROGRAMS)/causeway --state-dir $(PROGRAMS)/state appliance build --agent $(PROGRAMS)/causeway-agent -o $(PROGRAMS)/appliance

# Unit, property and golden tests, then the ones with real libvirtd and QEMU.
test: unit e2e

unit: deps
	$(CARGO) test --locked --profile lab --workspace --exclude e2e --exclude lab --exclude site-libvirt

# Seen to pass again and again: these guard every change.
e2e: programs
	$(CARGO) test --locked --profile lab -p lab -- --test-threads=$(THREADS)
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab -p e2e --test layers --test migrate -- --test-threads=$(THREADS)

# Longer: libvirt's own behaviour, agents and trackers inside guests, refusals, kill -9 at chosen
# moments, lines that break or are slow.
more: programs
	$(CARGO) test --locked --profile lab -p site-libvirt -- --test-threads=$(THREADS)
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab -p e2e -- --test-threads=$(THREADS)

demo: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) run --locked --quiet --profile lab -p e2e --bin demo

# What CI checks beside the tests.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo "cargo-deny is not installed: cargo install cargo-deny"; exit 1; fi

clean:
	$(CARGO) clean

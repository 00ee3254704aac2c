# `make demo` shows it, `make test` proves it. Both install what is missing (Debian 12, root).

TARGET   := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
PROGRAMS := $(TARGET)/programs
STATIC   := x86_64-unknown-linux-gnu
CARGO    := cargo
# Guests are emulated and want a core each; more at once only makes all of them slower.
THREADS  ?= 2

.PHONY: all deps programs agent test unit e2e more demo bench lint check clean

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

# The lab; fences and channels of a real libvirtd; guests that move between real sites: the story,
# there and back, breaks and kills, refusals, slow lines.
e2e: programs
	$(CARGO) test --locked --profile lab -p lab -- --test-threads=$(THREADS)
	$(CARGO) test --locked --profile lab -p site-libvirt -- --test-threads=$(THREADS)
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab -p e2e --lib --test layers --test moves -- --test-threads=$(THREADS)

# Longer: all of e2e, with agents and trackers inside guests driven by hand, memory with a large
# disk, twenty moves in a row.
more: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab -p e2e -- --include-ignored --test-threads=$(THREADS)

demo: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) run --locked --quiet --profile lab -p e2e --bin demo

# One disk copied by us and by others, in turns: wall time, CPU time, bytes. See tests/bench/README.md;
# `make bench BENCH="--rounds 1 --json"` passes options.
bench: programs
	@tests/bench/install.sh
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) run --locked --quiet --profile lab -p bench -- $(BENCH)

# In the profile of the tests, so that what both need is built once.
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --profile lab --workspace --all-targets -- -D warnings

# What has to be clean before a commit. Advisories come from the network.
check: lint
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo "cargo-deny is not installed: cargo install cargo-deny"; exit 1; fi

clean:
	$(CARGO) clean

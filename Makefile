# `make demo` shows it, `make test` proves it. Both install what is missing (Debian 12, root).

TARGET   := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
PROGRAMS := $(TARGET)/programs
CARGO    := cargo
# Guests are emulated and want a core each; more at once only makes all of them slower.
THREADS  ?= 2
# Programs for guests are linked by the tree's own (.cargo/config.toml).
unexport RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER

.PHONY: all deps programs agent test unit e2e rest more soak soak-native soak-real model demo demo-native bench bench-native load fuzz lint check clean

all: programs

deps:
	@tests/lab/install.sh

# Always the whole workspace: cargo unites the features of what it is asked for, and another
# selection would build half of the dependencies once more.
BUILT := --bins
programs: deps
	$(CARGO) build --locked --profile lab --workspace $(BUILT)
	@mkdir -p $(PROGRAMS)
	@for name in causeway causeway-agent causeway-mobility; do \
		cp $(TARGET)/lab/$$name $(PROGRAMS)/$$name.new && mv $(PROGRAMS)/$$name.new $(PROGRAMS)/$$name || exit 1; \
	done
	$(PROGRAMS)/causeway --state-dir $(PROGRAMS)/state appliance build --agent $(PROGRAMS)/causeway-agent -o $(PROGRAMS)/appliance

# There is a directory of that name, and make would call it up to date.
agent: programs

# The helper's image; the lab; fences and channels of a real libvirtd, and its protocol; guests that
# move between real sites: the story, there and back, kills, refusals, lost coordinators. Their manifests say
# `test = false`.
REAL := boot death labs libvirtd real_libvirt real_memory threads moves native
# Moves that `make test` has no time for, and CI has.
REST := rest
# Longer: Debian, agents and trackers inside guests driven by hand, memory with a large disk.
MORE := agent_in_guest debian memory tracker_in_guest
# As long as one likes.
SOAK := soak
ON_REAL = CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab --workspace

# What tests need has features of its own: with the tests beside them, the programs need no build of
# their own.
test e2e rest more soak-real: BUILT := --bins --tests
test: unit e2e

# Unit, property and golden tests: no root, no emulator. Many of them wait.
unit: deps
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-3} $(CARGO) test --locked --profile lab --workspace

e2e: programs
	$(ON_REAL) $(addprefix --test ,$(REAL)) -- --test-threads=$(THREADS)

rest: programs
	$(ON_REAL) $(addprefix --test ,$(REST)) -- --test-threads=$(THREADS)

# All that both leave out, twenty moves in a row among it.
more: programs
	$(ON_REAL) --test moves --test rest --test labs -- --ignored --test-threads=$(THREADS)
	$(ON_REAL) $(addprefix --test ,$(MORE)) -- --include-ignored --test-threads=$(THREADS)

# Random histories of simulated migrations: `make soak SEEDS=100000`, `make soak SEED=17` replays one.
soak: deps
	SEEDS=$(or $(SEEDS),100000) $(if $(SEED),SEED=$(SEED)) $(CARGO) test --locked --profile lab --package engine --test sim -- --nocapture whatever_goes_wrong

# The same of simulated live migrations between mobility agents, and every fault at every place of one:
# `make soak-native SEEDS=20000`, `make soak-native SEED=17`.
soak-native: deps
	EVERY=1 SEEDS=$(or $(SEEDS),20000) $(if $(SEED),SEED=$(SEED)) $(CARGO) test --locked --profile lab --workspace --test native_sim -- --nocapture

# Real migrations under kill -9 of random processes: `make soak-real MIGRATIONS=100 SEED=7`.
soak-real: programs
	MIGRATIONS=$(or $(MIGRATIONS),100) $(if $(SEED),SEED=$(SEED)) $(ON_REAL) --test $(SOAK) -- --nocapture

# Every state of the handover that an arbitrary coordinator can bring about, with one write more than in
# `make test` and with ledgers restored in more ways.
model: deps
	MODEL=full $(CARGO) test --locked --profile lab --workspace --test faults -- --include-ignored --nocapture

demo: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(TARGET)/lab/demo

# Live, memory and disks, by mobility agents.
demo-native: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(TARGET)/lab/demo --native

# One disk copied by us and by others, in turns: wall time, CPU time, bytes. See tests/bench/README.md;
# `make bench BENCH="--rounds 1 --json"` passes options.
bench: programs
	@tests/bench/install.sh
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(TARGET)/lab/bench $(BENCH)

# What others send or leave, made up by libFuzzer: SECONDS_EACH for each target, two at a time; RUNS=0
# tries the kept corpus alone. See tests/fuzz/README.md. Coverage by the compiler's own pass, with the
# flags that cargo-fuzz gives it: they are stable. With a target that is named, what runs at build
# time is built without them. Linked as they come: libFuzzer is C++, and a target may have the name of
# a program that goes into guests.
FUZZ          := $(abspath $(TARGET))/fuzz
FUZZ_HOST     := x86_64-unknown-linux-gnu
FUZZ_PROGRAMS := $(FUZZ)/$(FUZZ_HOST)/release
FUZZ_FLAGS    := -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,\
	level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_TARGETS  ?= $(basename $(notdir $(wildcard tests/fuzz/src/bin/*.rs)))
SECONDS_EACH  ?= 60
RUNS          ?= -1
fuzz: deps
	RUSTC_WORKSPACE_WRAPPER= RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --locked --release --manifest-path tests/fuzz/Cargo.toml \
		--target $(FUZZ_HOST) --target-dir $(FUZZ)
	@printf '%s\n' $(FUZZ_TARGETS) | xargs -P 2 -I '{}' \
		tests/fuzz/run.sh $(FUZZ_PROGRAMS) $(FUZZ)/work '{}' $(SECONDS_EACH) $(RUNS)

# QEMU's own multifd with zstd, plain blocks and named pages over one line, in turns: bytes, time, downtime.
bench-native: deps
	$(CARGO) test --locked --profile lab --workspace --test real_memory -- --ignored --nocapture

# Migrations in memory, all at once in one coordinator on real files, which is killed: memory, how long
# status, journal and ledgers take, and the way back. See tests/bench/README.md.
load: deps
	MIGRATIONS=$${MIGRATIONS:-1000} $(CARGO) test --locked --profile lab --workspace --test sim -- \
		--nocapture load::

# In the profile of the tests, so that what both need is built once.
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path tests/fuzz/Cargo.toml
	$(CARGO) clippy --locked --profile lab --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --profile lab --workspace $(addprefix --test ,$(REAL) $(REST) $(MORE) $(SOAK)) -- -D warnings

# What has to be clean before a commit. Advisories come from the network.
check: lint
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo "cargo-deny is not installed: cargo install cargo-deny"; exit 1; fi

clean:
	$(CARGO) clean

# `make demo` shows it, `make test` proves it. Both install what is missing (Debian 12, root).

TARGET   := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
PROGRAMS := $(TARGET)/programs
CARGO    := cargo
# Guests are emulated and want a core each; more at once only makes all of them slower.
THREADS  ?= 2
# Programs for guests are linked by the tree's own (.cargo/config.toml).
unexport RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER

.PHONY: all deps programs agent test unit e2e rest more model demo bench load lint check clean

all: programs

deps:
	@tests/lab/install.sh

# Always the whole workspace: cargo unites the features of what it is asked for, and another
# selection would build half of the dependencies once more.
BUILT := --bins
programs: deps
	$(CARGO) build --locked --profile lab --workspace $(BUILT)
	@mkdir -p $(PROGRAMS)
	@for name in causeway causeway-agent; do \
		cp $(TARGET)/lab/$$name $(PROGRAMS)/$$name.new && mv $(PROGRAMS)/$$name.new $(PROGRAMS)/$$name || exit 1; \
	done
	$(PROGRAMS)/causeway --state-dir $(PROGRAMS)/state appliance build --agent $(PROGRAMS)/causeway-agent -o $(PROGRAMS)/appliance

# There is a directory of that name, and make would call it up to date.
agent: programs

# The helper's image; the lab; fences and channels of a real libvirtd; guests that move between real
# sites: the story, there and back, kills, refusals, lost coordinators. Their manifests say
# `test = false`.
REAL := boot death labs libvirtd threads moves
# Moves that `make test` has no time for, and CI has.
REST := rest
# Longer: Debian, agents and trackers inside guests driven by hand, memory with a large disk.
MORE := agent_in_guest debian memory tracker_in_guest
ON_REAL = CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(CARGO) test --locked --profile lab --workspace

# What tests need has features of its own: with the tests beside them, the programs need no build of
# their own.
test e2e rest more: BUILT := --bins --tests
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

# Every state of the handover that an arbitrary coordinator can bring about, with one write more than in
# `make test` and with ledgers restored in more ways.
model: deps
	MODEL=full $(CARGO) test --locked --profile lab --workspace --test faults -- --include-ignored --nocapture

demo: programs
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(TARGET)/lab/demo

# One disk copied by us and by others, in turns: wall time, CPU time, bytes. See tests/bench/README.md;
# `make bench BENCH="--rounds 1 --json"` passes options.
bench: programs
	@tests/bench/install.sh
	CAUSEWAY_PROGRAMS=$(abspath $(PROGRAMS)) $(TARGET)/lab/bench $(BENCH)

# Migrations in memory, all at once in one coordinator on real files, which is killed: memory, how long
# status, journal and ledgers take, and the way back. See tests/bench/README.md.
load: deps
	MIGRATIONS=$${MIGRATIONS:-1000} $(CARGO) test --locked --profile lab --workspace --test sim -- \
		--nocapture load::

# In the profile of the tests, so that what both need is built once.
lint: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --profile lab --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --profile lab --workspace $(addprefix --test ,$(REAL) $(REST) $(MORE)) -- -D warnings

# What has to be clean before a commit. Advisories come from the network.
check: lint
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo "cargo-deny is not installed: cargo install cargo-deny"; exit 1; fi

clean:
	$(CARGO) clean

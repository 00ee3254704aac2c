#!/bin/bash
# rustc, with the programs that run inside guests linked statically and stripped. Only the last step
# of each differs, so that they share every library with the rest; RUSTFLAGS and a target of their
# own would build a hundred crates once more. Cargo does not notice a change of this file: clean the
# programs then (`cargo clean --profile lab -p causeway-agent -p lab -p track`).
#
# Not sh: dash drops variables such as CARGO_BIN_EXE_causeway-agent. Not named rustc: sccache would
# take it for the compiler.
for word in "$@"; do
	case "${before-} $word" in
	"--crate-name causeway_agent" | "--crate-name ledger" | "--crate-name track_selftest") inside=yes ;;
	"--crate-type bin") program=yes ;;
	esac
	before=$word
done
[ "${inside-}${program-}" = yesyes ] && set -- "$@" -C target-feature=+crt-static -C strip=symbols
exec "$@"

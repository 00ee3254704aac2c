#!/bin/sh
# Builds both objects from track.bpf.c with clang 14 into the folder given (default: this one).
# Only for whoever changes the program: the objects are checked in, and a test compares them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
cd "$here" # no path of the builder's machine in the objects
build() {
    clang -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Werror -fdebug-prefix-map="$here"=. \
        -ffile-prefix-map="$here"=. ${2:-} -c track.bpf.c -o "$out/$1"
    # Debugging sections go, BTF stays: the loader needs it.
    llvm-strip -g "$out/$1"
}
build track.bpf.o
build track-faults.bpf.o -DFAULTS

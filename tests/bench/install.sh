#!/bin/sh
# Installs the Debian packages of the lab and those that hold the peers of the benchmark.
set -eu
exec "$(dirname "$0")/../lab/install.sh" nbdkit libnbd-bin rsync zstd openssh-client coreutils

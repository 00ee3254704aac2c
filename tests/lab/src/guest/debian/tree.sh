#!/bin/sh
# Installs Debian 12 and leaves it as a tar archive. Run in mount and pid namespaces of its own:
# what debootstrap mounts, and what packages start, goes with them.
# usage: tree.sh MIRROR DIRECTORY ARCHIVE
set -eu
mirror=$1 tree=$2 archive=$3

packages=systemd,systemd-sysv,dbus,udev,kmod,procps,iproute2,iputils-ping,openssh-server,sudo
packages=$packages,linux-image-cloud-amd64,initramfs-tools,zstd,grub-pc,lvm2,xfsprogs,e2fsprogs
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
if ! debootstrap --variant=minbase --include=$packages bookworm "$tree" "$mirror" > "$tree.log" 2>&1; then
    tail -n 30 "$tree.log" "$tree/debootstrap/debootstrap.log" >&2
    exit 1
fi

in_tree() { chroot "$tree" "$@" > /dev/null; }
in_tree useradd --create-home --shell /bin/bash ops
# No key but the lab's: a password that nobody has.
in_tree usermod --password '*' root
in_tree usermod --password '*' ops
in_tree systemctl enable systemd-networkd serial-getty@ttyS0.service
in_tree systemctl mask networking.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
in_tree apt-get clean
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/usr/share/doc/* "$tree"/usr/share/man/* \
    "$tree"/usr/share/locale/* "$tree"/etc/ssh/ssh_host_* "$tree"/var/log/*.log
mkdir -p "$tree/srv" "$tree/data2" "$tree/data3" "$tree/data4" "$tree/var/lib/ledger"
tar --zstd -C "$tree" -cf "$archive" .

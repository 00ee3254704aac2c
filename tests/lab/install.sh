#!/bin/sh
# Installs the Debian packages that building and testing need, and those that are named, if any is
# missing. Needs root then.
set -eu

PACKAGES="
build-essential pkg-config libvirt-dev clang llvm cpio
libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients
qemu-system-x86 qemu-utils dnsmasq-base iproute2 util-linux
openssh-client openssh-server netcat-openbsd dropbear-bin
busybox-static debootstrap e2fsprogs xfsprogs lvm2 fdisk kmod zstd strace
grub-common grub-pc-bin grub-efi-amd64-bin dosfstools mtools
ovmf swtpm swtpm-tools
$*
"

missing=""
for package in $PACKAGES; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null || echo no)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "these packages are missing, and only root can install them:$missing" >&2
    exit 3
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# No service is started: labs start their own, in namespaces.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.causeway
chmod 755 /usr/sbin/policy-rc.d.causeway
[ -e /usr/sbin/policy-rc.d ] || cp /usr/sbin/policy-rc.d.causeway /usr/sbin/policy-rc.d
trap 'cmp -s /usr/sbin/policy-rc.d /usr/sbin/policy-rc.d.causeway && rm -f /usr/sbin/policy-rc.d; rm -f /usr/sbin/policy-rc.d.causeway' EXIT

apt-get update -q
if ! apt-get install -q -y --no-install-recommends $missing; then
    # A newer qemu-utils (from backports) breaks this release's QEMU: take both from the release.
    version=$(apt-cache madison qemu-utils | awk '{ print $3 }' | head -n 1)
    echo "trying again with qemu-utils $version" >&2
    apt-get install -q -y --no-install-recommends --allow-downgrades "qemu-utils=$version" $missing
fi

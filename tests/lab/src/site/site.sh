# The first process of a site: sets its namespaces up, starts its services, then waits on the
# lifeline (standard input) and adopts what daemons leave behind.
# SITE: directory; EMULATOR: its own program; NAME; ADDRESS: of the site on its bridge, /24; SSHD: yes or no.
set -eu
exec 3<&0 4>&1 >&2

# /proc is still the one outside: this is our pid there.
read -r pid _ < /proc/self/stat
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "$NAME" > /proc/sys/kernel/hostname

mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=755 srv /srv
# Hosts have /run/lock; libvirt locks the serial ports there that its streams open.
mkdir -p /run/libvirt /run/lock /run/sshd /srv/vm
# What a host's emulated TPMs log, and by whom their certificates are signed.
mount -t tmpfs -o mode=755 log /var/log
mkdir -p /var/log/libvirt /var/log/swtpm
[ ! -d /var/lib/swtpm-localca ] || mount -t tmpfs -o mode=750,uid=tss ca /var/lib/swtpm-localca
mount --bind "$SITE/vm" /srv/vm
mount --bind "$SITE/etc" /etc/libvirt
mount --bind "$SITE/lib" /var/lib/libvirt
mount --bind "$SITE/cache" /var/cache/libvirt
mount --bind "$SITE/log" /var/log/libvirt
mount --bind "$SITE/hosts" /etc/hosts
# Machines without hardware virtualisation of their own may offer KVM all the same, nested and
# hundreds of times slower than QEMU's own emulation. All labs emulate, so that they behave alike.
# A file that nobody may write to: whatever else is there looks usable to libvirt, which then asks
# QEMU anew what it can do, for seconds, whenever it reads a definition.
if [ -e /dev/kvm ]; then
    : > /run/no-kvm
    mount --bind /run/no-kvm /dev/kvm
    mount -o remount,bind,ro /dev/kvm
fi
# What libvirt takes for QEMU; why, stands there.
mount -t tmpfs -o mode=755 qemu /usr/games
: > /usr/games/qemu-system-x86_64
mount --bind /usr/bin/qemu-system-x86_64 /usr/games/qemu-system-x86_64
mount --bind "$EMULATOR" /usr/bin/qemu-system-x86_64

echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || :
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || :
ip -batch - << END
link set lo up
link add br0 address $BRIDGE_MAC type bridge stp_state 0 forward_delay 0 mcast_snooping 0
address add $ADDRESS/24 dev br0
link set br0 up
END

dnsmasq --conf-file="$SITE/dnsmasq.conf" 3<&- 4>&-
[ "$SSHD" = no ] || /usr/sbin/sshd -f "$SITE/ssh/sshd_config" -E "$SITE/log/sshd.log" 3<&- 4>&-
libvirtd --listen --daemon 3<&- 4>&-
tries=0
until timeout 60 virsh -q -c qemu:///system uri > /dev/null 2>> "$SITE/log/virsh.log"; do
    tries=$((tries + 1))
    [ -e /run/libvirtd.pid ] && [ $tries -lt 500 ] || { echo "libvirtd does not answer"; cat "$SITE/log/libvirtd.log"; exit 1; }
    sleep 0.02
done
echo "ready $pid" >&4
exec 4>&-

cat <&3 > /dev/null &
exec 3<&-
wait $!

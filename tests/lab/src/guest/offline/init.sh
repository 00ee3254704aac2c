#!/bin/sh
# The verifier: mount every file system there is, judge every ledger in them, power off.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do
    [ -z "$module" ] || modprobe "$module"
done < /conf/modules
lvm vgchange -ay --sysinit > /dev/null 2>&1

dirs=
for device in /dev/vd* /dev/mapper/*; do
    # Whole disks that are partitioned, and swap, are no file systems: mount says so.
    name=$(basename "$device")
    mkdir -p "/mnt/$name"
    mount -t ext4 "$device" "/mnt/$name" 2> /dev/null || mount -t xfs "$device" "/mnt/$name" 2> /dev/null || continue
    for place in ledger var/lib/ledger; do
        if [ -e "/mnt/$name/$place/chain.ledger" ]; then
            dirs="$dirs,/mnt/$name/$place"
        fi
    done
done

set -- --dir "${dirs#,}"
[ ! -e /witness ] || set -- "$@" --witness-file /witness
[ ! -e /vm ] || set -- "$@" --vm "$(cat /vm)"
echo
echo "VERDICT BEGINS"
ledger verify "$@"
echo "VERDICT ENDS"
poweroff -f

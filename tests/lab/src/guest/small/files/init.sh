#!/bin/sh
# The initramfs: load the modules named in conf/modules, mount the root named on the kernel's
# command line, hand over.
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do
    [ -z "$module" ] || modprobe "$module"
done < /conf/modules

root=
for word in $(cat /proc/cmdline); do
    case $word in root=*) root=${word#root=} ;; esac
done

waited=0
until device=$(findfs "$root" 2>/dev/null) && mount -t ext4 -o ro "$device" /root; do
    waited=$((waited + 1))
    if [ $waited -gt 100 ]; then
        echo "initramfs: no root $root" > /dev/console
        exec sh < /dev/console > /dev/console 2>&1
    fi
    sleep 0.1
done
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
exec switch_root /root /sbin/init

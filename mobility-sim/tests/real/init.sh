#!/bin/busybox sh
# A guest whose memory holds what its disk has, and which goes on changing some of it.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/sbin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
# Some need others, in no order that matters.
for round in 1 2 3; do
    for module in /lib/*.ko; do insmod "$module" 2> /dev/null; done
done
for word in $(cat /proc/cmdline); do
    case $word in rate=*) rate=${word#rate=} ;; esac
done
if mount -t ext4 -o noatime /dev/vda1 /mnt 2> /dev/null; then
    mount --bind /dev /mnt/dev
    mount --bind /proc /mnt/proc
    find /mnt/usr /mnt/var -xdev -type f | head -n 6000 | xargs -n 64 cat > /dev/null 2>&1
    cp /work.py /work.pl /mnt/root/
    chroot /mnt /usr/bin/perl /root/work.pl &
    chroot /mnt /usr/bin/python3 /root/work.py "$rate" &
else
    cat /dev/vda > /dev/null
    mkdir /tmp
    mount -t tmpfs tmp /tmp
    dd if=/dev/vda of=/tmp/pool bs=4k count=2048 2> /dev/null
    (
        while sleep 0.1; do
            dd if=/dev/vda of=/tmp/pool bs=1000 seek=$((tick * 37 % 5000)) skip=$tick count=8 conv=notrunc 2> /dev/null
            tick=$((tick + 1))
        done
    ) &
    echo ready
fi
while sleep 0.2; do
    count=$((count + 1))
    echo "tick $count"
done

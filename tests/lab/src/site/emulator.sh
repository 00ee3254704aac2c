#!/bin/sh
# What libvirt starts for QEMU at a site: QEMU, with 8 KiB of memory more than it was told.
#
# A guest that is emulated loses writes to its memory while it migrates with any QEMU before 8.2.2, Debian 12's
# among them, and panics afterwards or reads old blocks: where the size of memory is a multiple of 256 KiB,
# cpu_physical_memory_sync_dirty_bitmap() (include/exec/ram_addr.h) takes the marks of written pages away 64 at a
# time and leaves the emulated TLB believing that they are still there, so that the next write to such a page is
# not marked. With any other size it goes page by page, and does it right. libvirt rounds to whole MiB. With KVM,
# marks are the kernel's and there is no such bug.
#
# QEMU itself is bound to a folder beside its own, from which it finds its files.
more=8
left=$# before=
while [ $left -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $before/$word in
    -m/size=*k*) # size=262144k,slots=16,maxmem=...
        size=${word#size=}
        word="size=$((${size%%k*} + more))k${size#*k}"
        ;;
    -m/*[!0-9]*) ;;
    -m/*) # 256
        word="$((word * 1024 + more))k"
        ;;
    -object/*'"id":"pc.ram"'*'"size":'*) # {"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}
        rest=${word##*'"size":'}
        size=${rest%%[!0-9]*}
        word="${word%"$rest"}$((size + more * 1024))${rest#"$size"}"
        ;;
    esac
    set -- "$@" "$word"
    before=$word
done
exec /usr/games/qemu-system-x86_64 "$@"

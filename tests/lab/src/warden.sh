# Holds the operator's network namespace, outlives the lab's owner, and clears up after it.
# Standard input is the lifeline; LAB_DIR is the lab's directory, LAB_ADDRESS the operator's address.
trap '' HUP INT TERM
set -eu
lab=$LAB_DIR
unset CAUSEWAY_LAB
case ${lab##*/} in causeway-lab-*) ;; *) echo "not a lab: $lab" >&2; exit 1 ;; esac

echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || :
ip link set lo up
ip address add "$LAB_ADDRESS/32" dev lo
echo "ready $$"
exec > /dev/null
set +e

read -r _

# Who runs in this namespace or carries the lab's mark. No pipes and no $(): the shell would fork
# itself, and its copies carry the mark.
look() {
    others=
    for process in /proc/[0-9]*; do
        [ "$process" != /proc/$$ ] && [ "$process/ns/net" -ef /proc/$$/ns/net ] &&
            others="$others ${process#/proc/}"
    done
    grep -lzsFx "CAUSEWAY_LAB=$lab" /proc/[0-9]*/environ > "$lab/marked"
    while IFS=/ read -r _ _ pid _; do
        [ "$pid" = $$ ] || others="$others $pid"
    done < "$lab/marked"
    [ -n "$others" ]
}
tries=0
while look && [ $tries -lt 500 ]; do
    kill -KILL $others 2> /dev/null
    tries=$((tries + 1))
    sleep 0.01
done

if [ -n "${LAB_KEEP:-}" ]; then
    : > "$lab/kept"
else
    # A fence may have made images immutable.
    rm -rf --one-file-system "$lab" 2> /dev/null || {
        chattr -R -f -i -a "$lab"
        rm -rf --one-file-system "$lab"
    }
fi

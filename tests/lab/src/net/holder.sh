# Holds the network namespace of everything between the sites. Standard input is the lifeline.
set -eu
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || :
echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || :
echo "ready $$"
exec cat > /dev/null

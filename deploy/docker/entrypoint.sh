#!/bin/sh
# The first process of a container. As root it becomes the user understudy, with those of the node's capabilities that
# the container has (`cap_add`). As that user it runs the node and stays until the guard has ended: when the first process
# of a container goes, all others are killed, and the guard has addresses to take off when the node has died.
set -eu

if [ "$(id -u)" = 0 ]; then
  # Bits of linux/capability.h.
  permitted=$(sed -n 's/^CapPrm:[[:space:]]*/0x/p' /proc/self/status)
  capabilities='-all'
  for capability in net_bind_service:10 net_admin:12 net_raw:13; do
    [ $(((permitted >> ${capability#*:}) & 1)) = 0 ] || capabilities="$capabilities,+${capability%:*}"
  done
  # The capabilities to change users with end with the change.
  exec setpriv --reuid=understudy --regid=understudy --clear-groups \
    --inh-caps="$capabilities" --ambient-caps="$capabilities" --no-new-privs "$0" "$@"
fi

understudy "$@" &
node=$!
for signal in TERM INT HUP; do
  # shellcheck disable=SC2064 # The names as they are now.
  trap "kill -$signal $node" "$signal"
done

status=0
# A signal ends `wait`, not the node.
while
  wait "$node" && status=0 || status=$?
  kill -0 "$node" 2> /dev/null
do :; done

# A command beside the node (`docker exec … entrypoint server drain web/web1`) isn't the first process.
guard_runs() { grep -qs '[u]nderstudy-guard' /proc/[0-9]*/cmdline; }
while [ $$ = 1 ] && guard_runs; do sleep 0.05; done
exit "$status"

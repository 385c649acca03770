#!/bin/bash
# Stops the cluster that start.sh started: the kernel ends every process of its pid namespace and drops its networks.
D=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/superclip-slurm}
[ -s "$D/top.pid" ] || exit 0
top=$(cat "$D/top.pid"); login=$(cat "$D/login.pid" 2>/dev/null)
grep -qs bin/top.sh "/proc/$top/cmdline" || { rm -f "$D/top.pid"; exit 0; }
kill -9 "$top" 2>/dev/null
for ((i=0; i<100; i++)); do [ -e "/proc/$top" ] || [ -e "/proc/${login:-x}" ] || break; sleep 0.05; done
rm -f "$D/top.pid" "$D/login.pid"

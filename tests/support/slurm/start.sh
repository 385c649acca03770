#!/bin/bash
# Starts a real SLURM cluster (slurmctld and N slurmd "machines") on this one host, with no systemd, no munged, no
# cgroups and no change to the host but Debian's packages, where they are missing: all of it lives in one process tree
# with network, host name, process, mount and IPC namespaces of its own. Each node has its own network, address, host
# name, /dev/shm and process table. Killing one process (top.pid) takes the whole cluster away: the kernel ends all
# others and drops their networks. Needs root.
#
#   start.sh            start; returns when all nodes are idle
#   $D/bin/on login CMD...   run CMD on the login machine (where sbatch, squeue, ... reach the controller)
#   $D/bin/on node2 CMD...   run CMD on node2
#   $D/bin/power off|on node2   cut node2's power / boot it again
#   PATH=$D/bin:$PATH        gives sbatch, squeue, scontrol, ... that run on the login machine
#   kill -9 $(cat $D/top.pid)   stop
# Settings (environment), SLURM_TEST_OWNER among them: the process with which the cluster ends at the latest.
set -euo pipefail
D=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/superclip-slurm}; D=$(realpath -m "$D")
NODES=${SLURM_TEST_NODES:-2} CPUS=${SLURM_TEST_CPUS:-8} GPUS=${SLURM_TEST_GPUS:-4} MEM=${SLURM_TEST_MEM:-8000}
NET=${SLURM_TEST_NET:-192.0.2}           # TEST-NET-1; exists only inside the namespaces made below
say() { echo "slurm: $*" >&2; }

[ "$(id -u)" = 0 ] || { say "needs root"; exit 1; }
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v sbatch >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq \
    --no-install-recommends slurmctld slurmd slurm-client; } >&2 ||
    { say "Debian's or Ubuntu's packages slurmctld, slurmd and slurm-client cannot be installed"; exit 77; }
fi
if [ -s "$D/top.pid" ] && grep -qs bin/top.sh "/proc/$(cat "$D/top.pid")/cmdline"; then say "already running in $D"; exit 0; fi
rm -rf "$D"/{etc,state,log,dev,bin,run}; mkdir -p "$D"/{etc,state,log,dev,bin,run}

# ---- configuration ----------------------------------------------------------------------------------
cat > "$D/etc/slurm.conf" <<EOF
ClusterName=ci
SlurmctldHost=login
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$D/state
# each node's own tmpfs, and a short path: a unix socket in it may have 107 characters at most
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none
# no cgroups (see also cgroup.conf)
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
Epilog=$D/bin/epilog
# one thread for each process: this machine has fewer cores than the cluster
TaskProlog=$D/bin/prolog
# more CPUs and GPUs than the host has
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# the job scripts ask to be requeued, whatever the cluster's own default
JobRequeue=0
# quick reactions
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=60
MessageTimeout=20
KillWait=30
# jobs' records stay visible to scontrol show job this long (there is no sacct without slurmdbd)
MinJobAge=3600
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
$(for ((n=1; n<=NODES; n++)); do  # the last has two CPUs less than the others: nodes may differ
  cpus=$((n == NODES && n > 1 ? CPUS - 2 : CPUS))
  echo "NodeName=node$n CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1" \
    "RealMemory=$MEM $([ "$GPUS" -gt 0 ] && echo "Gres=gpu:$GPUS") State=UNKNOWN"; done)
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
EOF
{ echo "AutoDetect=off"
  if [ "$GPUS" -gt 0 ]; then echo "NodeName=node[1-$NODES] Name=gpu File=$D/dev/nvidia[0-$((GPUS-1))]"; fi; } > "$D/etc/gres.conf"
echo 'CgroupPlugin=disabled' > "$D/etc/cgroup.conf"
: > "$D/etc/plugstack.conf"
for ((g=0; g<GPUS; g++)); do ln -s /dev/null "$D/dev/nvidia$g"; done
{ echo "127.0.0.1 localhost"; echo "$NET.254 login"
  for ((n=1; n<=NODES; n++)); do echo "$NET.$n node$n"; done; } > "$D/etc/hosts"

# ---- one node (pid 1 of its own pid namespace) --------------------------------------------------------
cat > "$D/bin/node.sh" <<'EOF'
#!/bin/bash
D=$1 name=$2 NET=$3
hostname "$name"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run/slurm && touch /run/slurm/inside && mkdir /run/slurm/spool
ip link set lo up
for ((i=0; i<200; i++)); do ip link show eth0 >/dev/null 2>&1 && break; sleep 0.02; done
ip addr add "$NET.${name#node}/24" dev eth0 && ip link set eth0 up || exit 1
slurmd -D -N "$name" </dev/null >>"$D/log/slurmd.$name.out" 2>&1 &
while :; do wait -n 2>/dev/null || sleep 0.2; done         # reap orphans; the machine outlives its slurmd
EOF
# ---- boot one node (runs on the login machine) -----------------------------------------------------------
cat > "$D/bin/boot.sh" <<'EOF'
#!/bin/bash
D=$1 name=$2 NET=$3
unshare --net --uts --ipc --pid --mount --fork --kill-child --mount-proc \
  bash "$D/bin/node.sh" "$D" "$name" "$NET" </dev/null >>"$D/log/$name.out" 2>&1 &
pid=$! mine=$(readlink /proc/self/ns/net)
for ((i=0; i<500; i++)); do                       # wait until unshare has its own network and its child
  [ "$(readlink /proc/$pid/ns/net)" != "$mine" ] && init=$(tr -d ' ' < /proc/$pid/task/$pid/children) && [ -n "$init" ] && break
  sleep 0.01
done
ip link del "v-$name" 2>/dev/null
ip link add "v-$name" type veth peer name eth0 address "02:00:00:00:00:0${name#node}" netns "$pid" &&
  ip link set "v-$name" master br0 up && echo "$init" > "$D/run/$name.init"
EOF
# ---- after a job: end what escaped its process tree (a real cluster's cgroup would have) -----------------
cat > "$D/bin/epilog" <<'EOF'
#!/bin/bash
for f in $(grep -lzxs "SLURM_JOB_ID=$SLURM_JOB_ID" /proc/[0-9]*/environ); do
  p=${f#/proc/}; p=${p%/environ}
  case $p in $$|$PPID|1) continue;; esac
  case $(readlink "/proc/$p/exe") in */slurmd*|*/slurmstepd*) continue;; esac
  kill -9 "$p" 2>/dev/null
done
exit 0
EOF
printf '#!/bin/bash\necho export OMP_NUM_THREADS=1\n' > "$D/bin/prolog"
# ---- the login machine (pid 1 of the whole cluster) -----------------------------------------------------
cat > "$D/bin/top.sh" <<'EOF'
#!/bin/bash
D=$1 NODES=$2 NET=$3
hostname login
mount --bind "$D/etc/hosts" /etc/hosts
mkdir -p /etc/slurm /run/slurm
mount --bind "$D/etc" /etc/slurm
mount -t tmpfs tmpfs /run/slurm && touch /run/slurm/inside
ip link set lo up
ip link add br0 type bridge && ip addr add "$NET.254/24" dev br0 && ip link set br0 up || exit 1
slurmctld -D </dev/null >"$D/log/slurmctld.out" 2>&1 &
for ((n=1; n<=NODES; n++)); do bash "$D/bin/boot.sh" "$D" "node$n" "$NET"; done
while :; do wait -n 2>/dev/null || sleep 0.2; done
EOF
# ---- helpers for the caller ----------------------------------------------------------------------------
cat > "$D/bin/on" <<EOF
#!/bin/bash
# on login|nodeK CMD...: run CMD on that machine, in the same folder, with its exit code
m=\$1; shift
pid=\$(cat "$D/login.pid") || exit 1
enter() { exec nsenter --target "\$1" --net --uts --ipc --pid --mount --wdns="\$PWD" -- "\${@:2}"; }
case \$m in
  login) [ -e /run/slurm/inside ] && exec "\$@"    # sbatch passes PATH on to the job: there the wrappers step aside
         enter "\$pid" "\$@";;
  *)     [ -e /run/slurm/inside ] || enter "\$pid" "$D/bin/on" "\$m" "\$@"
         init=\$(cat "$D/run/\$m.init") || exit 1; enter "\$init" "\$@";;
esac
EOF
cat > "$D/bin/power" <<EOF
#!/bin/bash
# power off|on nodeK: cut that node's power (all its processes die at once) / boot it again
case \$1 in
  off) "$D/bin/on" login bash -c 'kill -9 \$(cat "$D/run/'"\$2"'.init")';;
  on)  "$D/bin/on" login setsid bash "$D/bin/boot.sh" "$D" "\$2" "$NET";;
esac
EOF
for c in sbatch srun salloc scancel scontrol squeue sinfo sacct sdiag sprio sstat; do
  printf '#!/bin/bash\nexec "%s/bin/on" login %s "$@"\n' "$D" "/usr/bin/$c" > "$D/bin/$c"
done
chmod +x "$D"/bin/*

# ---- go -------------------------------------------------------------------------------------------------
setsid unshare --net --uts --ipc --pid --mount --fork --kill-child --mount-proc \
  bash "$D/bin/top.sh" "$D" "$NODES" "$NET" </dev/null >"$D/log/top.out" 2>&1 &
top=$!; echo $top > "$D/top.pid"
child() { cat "/proc/$1/task/$1/children" 2>/dev/null | tr -d ' '; }   # pid of unshare's one child
for ((i=0; i<100; i++)); do c=$(child $top); [ -n "$c" ] && break; sleep 0.02; done
echo "$c" > "$D/login.pid"
for ((i=0; i<300; i++)); do
  if [ "$("$D/bin/sinfo" -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$NODES" ]; then ok=1; break; fi
  kill -0 $top 2>/dev/null || break
  sleep 0.1
done
if [ -z "${ok-}" ]; then say "cluster did not come up; logs in $D/log"; tail -n 5 "$D"/log/* >&2; kill -9 $top 2>/dev/null || true; exit 1; fi
if [ -n "${SLURM_TEST_OWNER-}" ]; then
  setsid bash -c 'while [ -e /proc/$1 ] && [ -e /proc/$2 ]; do sleep 1; done; kill -9 $2' \
    - "$SLURM_TEST_OWNER" "$top" </dev/null >/dev/null 2>&1 &
fi
say "$NODES nodes idle; use $D/bin/on login CMD, or put $D/bin first in PATH"

#!/usr/bin/env bash
# A genuine SLURM cluster inside one machine, from Debian's packages, on loopback only: munged,
# slurmctld, some slurmd "nodes", and for sacct slurmdbd on MariaDB. No systemd and no cgroups.
#
#   slurm_cluster.sh FOLDER up [nodes=2] [accounting=yes] [gpus=8] [cpus=64] [grace=30] [warns=yes]
#   slurm_cluster.sh FOLDER hold [..]        up, and down again when standard input ends
#   slurm_cluster.sh FOLDER down             end every process, remove FOLDER
#   slurm_cluster.sh FOLDER kill-node NODE   cut its power: all that runs there dies at once
#   slurm_cluster.sh FOLDER start-node NODE
#   slurm_cluster.sh FOLDER stop-controller | start-controller    its state is kept
#   slurm_cluster.sh FOLDER exec NODE COMMAND [ARGUMENT..]        as if logged in on NODE
#
# `up` prints `export SLURM_CONF=..`; every client that has it in its environment talks to this
# cluster. FOLDER must be new or empty, and its name short (unix sockets have 108 bytes). As many
# clusters as you like stand side by side: each holds a block of ports by a lock of its own.
#
# A node is a PID, mount and UTS namespace: own host name, own /proc, and the kernel ends all that
# ran in it when its first process dies. node1.. have fake GPUs, cpu1 and cpu2 have none.
set -uo pipefail
umask 022
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for name in "${!SLURM_@}" "${!SBATCH_@}"; do unset "$name"; done # an outer job's settings

FOLDER=$(realpath -m "${1:?a folder for the cluster}") COMMAND=${2:?a command}
shift 2
RUN=$FOLDER/run LOG=$FOLDER/log ETC=$FOLDER/etc DB=$FOLDER/db
export SLURM_CONF=$ETC/slurm.conf

die() {
  echo "slurm_cluster.sh: $*" >&2
  exit 1
}

# ---- Processes: known by id and start time, so that a number used again is never taken for ours.

start_time() { # PID: when it began, in ticks since boot
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  set -- ${stat##*) }
  [ "$1" != Z ] && echo "${20}"
}

alive() { # NAME
  local pid began
  read -r pid began 2>/dev/null <"$RUN/$1.id" && [ "$(start_time "$pid")" = "$began" ]
}

spawn() { # NAME HOST COMMAND..: start it in namespaces of its own
  local name=$1 host=$2
  shift 2
  # The inner sh is process 1 there and reaps orphans; `exit` keeps it from becoming COMMAND.
  setsid unshare --mount --uts --pid --fork --mount-proc --kill-child=SIGKILL -- sh -c '
    hostname "$1" && mount --bind "$2" /etc/hosts || exit 97; shift 2; "$@"; exit $?
  ' sh "$host" "$ETC/hosts" "$@" </dev/null >>"$LOG/$name.out" 2>&1 &
  echo "$! $(start_time $!)" >"$RUN/$name.id"
  disown $!
}

stop() { # NAME..: kill, and wait until they are gone
  local name pid
  for name; do alive "$name" && read -r pid _ <"$RUN/$name.id" && kill -KILL "$pid"; done
  for name; do
    while alive "$name"; do sleep 0.02; done
    rm -f "$RUN/$name.id"
  done
}

wait_for() { # NAME COMMAND..: until COMMAND succeeds; a minute, and not longer than NAME lives
  local end=$((SECONDS + 60)) name=$1
  shift
  until "$@" &>/dev/null; do
    alive "$name" && [ $SECONDS -lt $end ] || { echo "$name does not come up" >&2; return 1; }
    sleep 0.05
  done
}

# ---- Ports: a block of twenty belongs to who locks its file. munged keeps that lock open, for it
# lives as long as the cluster; when all is killed without a word, the kernel lets go of it.

take_ports() { # sets PORT: slurmctld, + 1 slurmdbd, + 2.. the nodes
  local port
  for PORT in $(seq 26000 20 31980); do
    exec 8>"/tmp/slurm-ports-$PORT.lock"
    # Its former owner may have removed the file between our opening and our locking it.
    flock --nonblock 8 && [ "/tmp/slurm-ports-$PORT.lock" -ef /dev/fd/8 ] || continue
    for port in $(seq "$PORT" $((PORT + 19))); do ! listening "$port" || continue 2; done
    return
  done
  die "no free ports"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# ---- What the daemons read

write_slurm_conf() {
  local bind=NoCtldInAddrAny accounting_lines= port=$PORT name
  # Daemons bind to what their host name resolves to, in a namespace 127.0.0.1. So does an srun
  # outside, which must hear answers to 127.0.0.1: only if this machine's name is loopback too.
  [[ $(getent ahostsv4 "$(uname -n)") != 127.* ]] || bind=$bind,NoInAddrAny
  [ "$accounting" = no ] || accounting_lines="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux"
  cat >"$SLURM_CONF" <<END
ClusterName=test
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
# A requeued job may not start again for cred_expire + 1 seconds (by default 121).
AuthInfo=socket=$RUN/munge.socket,cred_expire=5
CommunicationParameters=$bind
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd.%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd.%n.log
$accounting_lines
# Without cgroups, processes are found by their parents.
ProctrackType=proctrack/linuxproc
# Everything is scheduled at once. A job that is over stays known for an hour.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue,bf_resolution=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
MinJobAge=3600
# The signal a job asked for is sent on preemption too; without this only at the time limit.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$([ "$warns" = no ] || echo SlurmctldParameters=preempt_send_user_signal)
KillWait=3
SlurmctldTimeout=10
SlurmdTimeout=6
ReturnToService=2
# Nodes claim more than this machine has: jobs share its processors.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT Sockets=2 CoresPerSocket=$((cpus / 2)) RealMemory=512000
$(for name in $NAMES; do
    echo "NodeName=$name NodeHostname=$name NodeAddr=127.0.0.1 Port=$((port += 1, port + 1))" \
      "$([[ $name = cpu* ]] || echo "Gres=gpu:h100:$gpus")"
  done)
PartitionName=DEFAULT Nodes=node[1-$nodes] MaxTime=7-0 DefaultTime=60 PreemptMode=OFF
PartitionName=train Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace
PartitionName=urgent PriorityTier=10
PartitionName=short MaxTime=30 DefaultTime=10
PartitionName=cpu Nodes=cpu[1-2]
END
}

write_gres_conf() { # slurmd wants character devices whose names end in the GPU's number
  local number
  for number in $(seq 0 $((gpus - 1))); do ln -s /dev/null "$FOLDER/dev/nvidia$number"; done
  echo "AutoDetect=off
NodeName=node[1-$nodes] Name=gpu Type=h100 Flags=nvidia_gpu_env File=$FOLDER/dev/nvidia[0-$((gpus - 1))]" >"$ETC/gres.conf"
}

write_slurmdbd_conf() {
  (umask 077 && cat >"$ETC/slurmdbd.conf") <<END
AuthInfo=socket=$RUN/munge.socket
DbdHost=ctl
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$RUN/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageUser=root
CommitDelay=0
END
}

# ---- Daemons

start_munged() {
  (umask 077 && head -c 128 /dev/urandom >"$ETC/munge.key")
  spawn munged ctl munged --foreground --key-file="$ETC/munge.key" --socket="$RUN/munge.socket" \
    --pid-file="$RUN/munged.pid" --seed-file="$ETC/munge.seed" --log-file="$LOG/munged.log"
  wait_for munged test -S "$RUN/munge.socket"
}

start_accounting() { # no passwords and no network: who may open the folder may talk to it
  local common=(--no-defaults --user=root --datadir="$DB/data" --innodb-log-file-size=8M
    --innodb-flush-method=nosync --innodb-doublewrite=0)
  mkdir -m 700 "$DB"
  mariadb-install-db "${common[@]}" --skip-test-db --skip-name-resolve \
    --auth-root-authentication-method=normal &>"$LOG/mariadb-install.log" || return 1
  spawn mariadb ctl mariadbd "${common[@]}" --socket="$DB/socket" --pid-file="$DB/pid" \
    --skip-networking --skip-grant-tables --skip-log-bin --performance-schema=0 \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 \
    --innodb-lock-wait-timeout=900 --log-error="$LOG/mariadb.log"
  wait_for mariadb mariadb --no-defaults --socket="$DB/socket" -e "select 1" || return 1
  local try
  for try in 1 2 3; do # on a busy machine its first question to a new database may have no answer
    spawn slurmdbd ctl env MYSQL_UNIX_PORT="$DB/socket" slurmdbd -D
    wait_for slurmdbd listening $((PORT + 1)) && return 0
  done
  return 1
}

start_controller() {
  alive slurmctld || spawn slurmctld ctl slurmctld -D
  wait_for slurmctld controller_answers
}

controller_answers() { scontrol ping | grep -q "is UP"; }

stop_controller() {
  scontrol shutdown slurmctld # an orderly end, which saves its state
  local end=$((SECONDS + 15))
  while alive slurmctld && [ $SECONDS -lt $end ]; do sleep 0.05; done
  stop slurmctld
}

start_node() { alive "$1" || spawn "$1" "$1" slurmd -D -N "$1"; }

kill_node() { # slurmctld would see it by itself after some 25 seconds
  stop "$1"
  scontrol update nodename="$1" state=down reason="power cut"
}

all_idle() { [ "$(sinfo --noheader --Node --format '%N %T' | sort -u | grep -c ' idle$')" = "$1" ]; }

# ---- Commands

up() { # KEY=VALUE..
  local nodes=2 accounting=yes gpus=8 cpus=64 grace=30 warns=yes setting name NAMES
  for setting; do
    [[ $setting =~ ^(nodes|gpus|cpus|grace)=[0-9]+$|^(accounting|warns)=(yes|no)$ ]] || die "not a setting: $setting"
    declare "$setting"
  done
  NAMES="$(seq -s ' ' -f 'node%g' "$nodes") cpu1 cpu2"
  mkdir -p "$RUN" "$LOG" "$ETC" "$FOLDER/dev" "$FOLDER/state"
  chmod 755 "$FOLDER" # munged wants its socket's folders open
  for name in $NAMES; do mkdir -p "$FOLDER/spool/$name"; done
  take_ports
  echo "127.0.0.1 localhost ctl $NAMES $(uname -n)" >"$ETC/hosts"
  write_slurm_conf && write_gres_conf && write_slurmdbd_conf
  echo "$PORT" >"$RUN/port"
  start_munged || return 1
  exec 8>&- # from here on, munged alone holds the ports
  { [ "$accounting" = no ] || start_accounting; } && start_controller || return 1
  for name in $NAMES; do start_node "$name"; done
  wait_for slurmctld all_idle $((nodes + 2)) || return 1
  echo "export SLURM_CONF=$SLURM_CONF"
}

claim() { # only what is marked is ever removed
  [ -z "$(ls -A "$FOLDER" 2>/dev/null)" ] || die "$FOLDER is in use"
  mkdir -p "$FOLDER" && touch "$FOLDER/.slurm_cluster"
}

down() {
  [ -e "$FOLDER/.slurm_cluster" ] || die "no cluster in $FOLDER"
  rm -f "/tmp/slurm-ports-$(cat "$RUN/port").lock"
  stop $(basename -s .id -a "$RUN"/*.id)
  rm -rf --one-file-system "$FOLDER"
}

case $COMMAND in
  up | hold)
    claim
    trap '' INT # the terminal's: who holds us decides
    trap down EXIT
    up "$@" || { tail -n 8 "$LOG"/* >&2; exit 1; }
    if [ "$COMMAND" = up ]; then trap - EXIT; else cat >/dev/null; fi
    ;;
  exec)
    alive "$1" || die "$1 is not running"
    read -r pid _ <"$RUN/$1.id"
    read -r first _ <"/proc/$pid/task/$pid/children"
    exec nsenter --target "$first" --mount --uts --pid --wdns="$PWD" -- "${@:2}"
    ;;
  kill-node | start-node)
    [ -d "$FOLDER/spool/${1:?a node}" ] || die "no node $1"
    "${COMMAND/-/_}" "$1"
    ;;
  down | stop-controller | start-controller) "${COMMAND/-/_}" ;;
  *) die "not a command: $COMMAND" ;;
esac

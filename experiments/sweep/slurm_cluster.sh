#!/bin/bash
# A Slurm cluster of two nodes, n1 and n2, on this machine alone, for tests: slurm_cluster.sh up FOLDER CPUS | down FOLDER.
#
# All of it belongs to the user who starts it, its authentication too (a munged of its own), and lies in FOLDER; ports are
# free ones. A job whose node died starts again after cred_expire seconds, 120 if one does not say. SLURM_CONF=FOLDER/slurm.conf
# is what sbatch and the others need. n2 has a device that counts as a GPU.
set -euo pipefail
command=$1 folder=$2
export SLURM_CONF=$folder/slurm.conf

# A port that nobody listens on.
free_port() {
  local port
  while port=$((20000 + RANDOM % 30000)); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null || { echo "$port"; return; }
  done
}

up() {
  local cpus=$1 host user
  host=$(hostname) user=$(id -un)
  mkdir -p "$folder"/{state,log,n1,n2}
  head -c 1024 /dev/urandom > "$folder/munge.key"
  chmod 400 "$folder/munge.key"
  /usr/sbin/munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --num-threads=2 \
    --pid-file="$folder/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
  cat > "$SLURM_CONF" <<CONF
ClusterName=kvmix_test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
JobRequeue=0
SlurmctldPort=$(free_port)
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/%n.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SlurmdTimeout=5
InactiveLimit=0
KillWait=2
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1,batch_sched_delay=1
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$cpus State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$(free_port) CPUs=$cpus Gres=gpu:1 State=UNKNOWN
PartitionName=local Nodes=n1,n2 Default=YES MaxTime=60 State=UP
CONF
  echo "NodeName=n2 Name=gpu File=/dev/null" > "$folder/gres.conf"
  # No control group is used, but a slurmd that has to find the kind of them fails where none is mounted.
  echo "CgroupPlugin=cgroup/v1" > "$folder/cgroup.conf"
  /usr/sbin/slurmctld -c -f "$SLURM_CONF"
  for node in n1 n2; do /usr/sbin/slurmd -N $node -f "$SLURM_CONF"; done
  for _ in $(seq 60); do
    [[ $(sinfo --noheader --states=idle --format=%D 2> /dev/null) == 2 ]] && return
    sleep 0.25
  done
  echo "the nodes are not idle:" >&2
  sinfo >&2
  tail -n 5 "$folder"/log/* >&2
  return 1
}

down() {
  scancel --user="$(id -un)" 2> /dev/null || true
  for _ in $(seq 20); do
    [[ -z $(squeue --noheader 2> /dev/null) ]] && break
    sleep 0.25
  done
  local file pid
  for file in "$folder"/n?/slurmd.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
    [[ -s $file ]] && pid=$(cat "$file") && kill "$pid" 2> /dev/null || continue
    for _ in $(seq 50); do
      kill -0 "$pid" 2> /dev/null || break
      sleep 0.1
    done
  done
}

"$command" "${@:3}"

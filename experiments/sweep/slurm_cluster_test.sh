#!/bin/bash
# kvmix sweep --slurm on a cluster of two nodes on this machine, one of which dies while it works: the sweep ends complete,
# with the bytes of one that ran here, nothing twice, and what the dead node had finished is not computed again.
set -uo pipefail
kvmix=$PWD/experiments/kvmix
cluster=$PWD/experiments/sweep/slurm_cluster.sh
trial=$PWD/experiments/sweep/trial.textproto
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

for program in /usr/sbin/slurmctld /usr/sbin/slurmd /usr/sbin/munged /usr/bin/sbatch; do
  [[ -x $program ]] && continue
  echo "SKIPPED, NOTHING WAS TESTED: $program is not installed; tools/setup.sh installs Slurm" | tee /dev/stderr
  cat > "$XML_OUTPUT_FILE" <<XML
<testsuites><testsuite name="slurm_cluster_test" tests="1" skipped="1"><testcase name="slurm_cluster_test">
<skipped message="$program is not installed; tools/setup.sh installs Slurm"/></testcase></testsuite></testsuites>
XML
  exit 0
done

work=$(mktemp -d /tmp/kvmix_slurm.XXXXXX)  # short: a socket lies in it
export SLURM_CONF=$work/cluster/slurm.conf
trap '"$cluster" down "$work/cluster"; rm -rf "$work"' EXIT
cd "$work"

# Cells of some seconds: a cell must be caught in its middle.
cp "$trial" .
cat > sweep.textproto <<'CONFIG'
include: "trial.textproto"
dataset { name: "stories" synthetic { task: "story" documents: 40 tokens: 400 } }
sweep {
  axis { path: "method[1].bit_allocator.options.high_fraction" value: "0" value: "0.3" value: "0.6" value: "1" }
}
CONFIG

# The processes of jobs on a node, each behind the daemon that looks after it.
processes_on() {
  local step task
  for step in $(pgrep -x slurmstepd); do
    for task in $(pgrep -P "$step"); do
      tr '\0' '\n' < "/proc/$task/environ" | grep -qx "SLURMD_NODENAME=$1" && echo "$step $task"
    done
  done 2> /dev/null
}

# The cell that a node works on, and the finished windows of a cell.
cell_on() {
  local index keys
  keys=($(sed -n 's/^keys=(\(.*\))$/\1/p' sweep/slurm/array.sh))
  index=$(squeue --noheader --nodelist="$1" --states=R --format=%K) && [[ $index =~ ^[0-9]+$ ]] && echo "${keys[$index]}"
}
windows_of() { (cd "$work/sweep/cells/$1/windows" 2> /dev/null && stat --format='%n %i' -- *.pb 2> /dev/null); }

wait_until() {  # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  until "${@:2}" > /dev/null; do
    [[ $SECONDS -lt $end ]] || return 1
    sleep 0.1
  done
}
# Stops n1 in the middle of a cell, the victim.
is_caught() {
  local process
  process=($(processes_on n1)) && victim=$(cell_on n1) || return 1
  [[ -n $victim && $(windows_of "$victim" | wc -l) -ge 2 ]] && kill -STOP "${process[1]}" || return 1
  [[ ! -e sweep/cells/$victim/record.textproto ]] && return 0
  kill -CONT "${process[1]}"
  return 1
}
is_empty() { [[ -z $(squeue --noheader) ]]; }

"$kvmix" sweep sweep.textproto --folder=here --jobs=2 --threads=1 > here.log 2>&1 || fail "here: $(tail -3 here.log)"
"$cluster" up "$work/cluster" 1 || { echo "FAILED: no cluster"; exit 1; }
# n1 alone works until it is caught: on a fast machine n2 may take all cells before n1 has begun.
scontrol update nodename=n2 state=drain reason="n1 first" || fail "n2 cannot be drained"

submit() { "$kvmix" sweep sweep.textproto --slurm --folder=sweep --time=10 --partition=local "$@"; }
submit --dry_run > dry.log || fail "dry run"
grep -q "^#SBATCH --array=0-3$" dry.log || fail "dry run prints no array"
[[ ! -e sweep ]] || fail "dry run writes"
submit > submit.log 2>&1 || fail "submit: $(cat submit.log)"
said=$(submit 2>&1) && fail "submitted twice"
[[ $said == *"still in Slurm's queue"* ]] || fail "submitted twice: $said"

victim=
wait_until 120 is_caught || { fail "n1 does not work: $(squeue; cat sweep/slurm/*.log)"; exit 1; }
kill -9 "$(cat "$work/cluster/n1/slurmd.pid")" $(processes_on n1)
scontrol update nodename=n2 state=resume || fail "n2 cannot be resumed"
windows_of "$victim" > before
[[ -s before && -z $(processes_on n1) ]] || fail "n1 lives: $(processes_on n1)"
wait_until 120 is_empty || { fail "the queue does not end: $(squeue)"; exit 1; }

grep -i requeu "$work/cluster/log/slurmctld.log" || fail "nothing was requeued"
for file in table.csv table.md; do cmp here/$file sweep/$file || fail "$file differs"; done
[[ $(find sweep -name record.textproto | wc -l) -eq 4 ]] || fail "cells: $(find sweep -name record.textproto)"
for cell in here/cells/*; do
  cmp "$cell/record.textproto" "sweep/cells/$(basename "$cell")/record.textproto" || fail "a record differs"
done
windows_of "$victim" > after
[[ $(grep -c -x -F -f before after) -eq $(wc -l < before) ]] || fail "finished windows were computed again"
[[ -s sweep/report/report.html && -s sweep/slurm/report.log ]] || fail "no report: $(cat sweep/slurm/report.log)"
"$kvmix" report here --output=here.report > /dev/null || fail "report of here"
rows() { sed -n '/"rows"/,$p' "$1/report.json" | sed 's/sweep/here/g'; }
cmp <(rows here.report) <(rows sweep/report) || fail "the report differs"

# All done; a cell that failed goes out once more when asked, to the node with the GPU.
said=$(submit 2>&1) && fail "submitted what is done"
[[ $said == *"is left to run"* ]] || fail "submitted what is done: $said"
rm "sweep/cells/$victim/record.textproto"
echo "out of memory" > "sweep/cells/$victim/failed.txt"
said=$(submit --retry_failed --gpus=9 2>&1) && fail "nine GPUs"
[[ $said == *"node configuration is not available"* && -z $(squeue --noheader) ]] || fail "nine GPUs: $said"
submit --retry_failed --gpus=1 > submit.log 2>&1 || fail "retry: $(cat submit.log)"
grep -q "1 of 4 cells" submit.log || fail "retry: $(cat submit.log)"
wait_until 120 is_empty || fail "the queue does not end: $(squeue)"
cmp here/table.csv sweep/table.csv || fail "the table differs after a retry"

[[ $failures -eq 0 ]] && echo "all passed"
exit $((failures > 0))

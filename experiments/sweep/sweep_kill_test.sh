#!/bin/bash
# kvmix sweep from outside. A sweep that is killed at random moments, again and again, ends with the same results as one
# that is left alone; what it refuses, it refuses clearly.
set -uo pipefail
kvmix=experiments/kvmix
work=$(mktemp -d "${TEST_TMPDIR:-/tmp}/sweep.XXXXXX")
failures=0

fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

cp experiments/sweep/trial.textproto "$work"
cat > "$work/sweep.textproto" <<'CONFIG'
include: "trial.textproto"
dataset { name: "stories" synthetic { task: "story" documents: 3 tokens: 150 } }
sweep {
  axis { path: "method[1].bit_allocator.options.high_fraction" value: "0" value: "0.3" value: "0.6" }
  seed: 1
  seed: 2
}
CONFIG
# One thread: reports name it.
sweep() { "$kvmix" sweep "$work/sweep.textproto" --threads=1 "$@"; }

sweep --folder="$work/whole" --jobs=2 > "$work/whole.log" 2>&1 || fail "sweep: $(tail -3 "$work/whole.log")"
grep -q "high_fraction" "$work/whole/table.csv" || fail "no table"

# The same bytes as those of the sweep that was left alone.
check() {
  for file in table.csv table.md; do
    cmp "$work/whole/$file" "$work/kills/$file" || fail "$file differs after kills"
  done
  for cell in "$work"/whole/cells/*; do
    cmp "$cell/record.textproto" "$work/kills/cells/$(basename "$cell")/record.textproto" || fail "a record differs"
  done
  [[ $(ls "$work/kills/full_precision" | grep -c '\.logits$') -eq 6 ]] || fail "full precision: $(ls "$work/kills/full_precision")"
  ! ls "$work/kills/full_precision" | grep '\.tmp$' || fail "unfinished files stay"
}

# A sweep that ends before it is killed is checked, and another one started.
RANDOM=17
kills=0
while [[ $kills -lt 20 ]]; do
  # Not through the function: its shell would be killed instead.
  "$kvmix" sweep "$work/sweep.textproto" --folder="$work/kills" --jobs=2 --threads=1 > "$work/kills.log" 2>&1 &
  pid=$!
  sleep "0.$(printf '%03d' $((RANDOM % 300)))"
  kill -9 $pid 2> /dev/null && kills=$((kills + 1))
  if wait $pid 2> /dev/null; then
    check
    rm -r "$work/kills"
  fi
done
sweep --folder="$work/kills" --jobs=1 > "$work/kills.log" 2>&1 || fail "resume: $(tail -3 "$work/kills.log")"
check
for name in whole kills; do
  (cd "$work" && "$OLDPWD/$kvmix" report $name --output=$name.report > /dev/null) || fail "report of $name"
done
for file in html md tex json; do
  sed 's/kills/whole/g' "$work/kills.report/report.$file" | cmp - "$work/whole.report/report.$file" ||
    fail "report.$file differs after kills"
done

# A crash of one cell fails that one alone.
"$kvmix" sweep "$work/sweep.textproto" --folder="$work/crash" --set seed=1 \
  --set dataset.synthetic.documents=400 --jobs=1 > "$work/crash.log" 2>&1 &
pid=$!
for _ in $(seq 100); do
  cell=$(pgrep -P $pid -f "kvmix cell" | head -1)
  [[ -n $cell ]] && break
  sleep 0.05
done
kill -9 "$cell"
sleep 0.3
kill -INT $pid
wait $pid
[[ $? -eq 130 ]] || fail "an interrupted sweep does not end with 130"
grep -q "ended by signal 9" "$work"/crash/cells/*/failed.txt || fail "no reason for a killed cell"
grep -q "goes on from there" "$work/crash.log" || fail "$(tail -3 "$work/crash.log")"

[[ $(sweep --dry_run | grep -c "high_fraction=") -eq 6 ]] || fail "dry run"
said=$(sweep --folder=/proc/none 2>&1) && fail "unwritable folder"
[[ $said == *"cannot create folder /proc/none"* ]] || fail "unwritable folder: $said"
said=$("$kvmix" run "$work/sweep.textproto" 2>&1) && fail "run accepts a sweep"
[[ $said == *"run it with kvmix sweep"* ]] || fail "run accepts a sweep: $said"
[[ $failures -eq 0 ]] && echo "all passed"
exit $((failures > 0))

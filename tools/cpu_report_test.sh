#!/usr/bin/env bash
# The report has a place for every section and goes on where it stopped. Its measurements are canned: a bazel of our own.
set -uo pipefail
work=$TEST_TMPDIR/tree
mkdir -p "$work/tools" "$work/docs/results" "$work/bin"
cp tools/cpu_report.sh tools/cpu_gates.awk "$work/tools/"
cp docs/results/cpu.md "$work/docs/results/"
cat > "$work/bin/bazel" <<'FAKE'
#!/usr/bin/env bash
echo "$@" >> "$CALLS"
[[ $1 == build ]] && exit 0
case "$*" in
  *filter=Read/*)
    median() { printf '  {\n    "name": "%s/real_time_median",\n    "real_time": %s,\n    "time_unit": "%s",\n    "%s": %s\n  },\n' "$@"; }
    for threads in 1 2; do median "Read/$threads/iterations:1" 9 ms read_bytes_per_second "${threads}e10"; done
    for shape in G4x8_D64 G3x3_D64 G8x4_D128 G8x1_D128; do
      for threads in 1 2; do
        for format in half k4v4int8 k2v2int8; do
          median "Decode/$shape/$format/32768/$threads" $((${#format} == 4 ? 4000 : 1000)) us bytes_per_token 256
        done
      done
      for format in half k4v4 k2v2; do median "Prefill/$shape/$format/8192/2" 2 ms bytes_per_token 1; done
    done
    printf '  {\n    "name": "Read/2/iterations:1/real_time_stddev",\n    "real_time": 5\n  }\n'
    exit ;;
esac
case $2 in
  *_benchmark)
    echo 'name,iterations,real_time,cpu_time,time_unit,bytes_per_second,items_per_second,label,error_occurred,error_message,"GFLOP/s"'
    echo '"B/10/real_time_median",3,2500,1,ns,,,,,,7'
    echo '"B/9/real_time_median",3,2.5,1,ms,,,,,,'
    echo '"B/9/real_time_stddev",3,1,1,ms,,,,,,9' ;;
  *) echo '| kv | canned |' ;;
esac
FAKE
chmod +x "$work/bin/bazel"
export CALLS=$work/calls PATH=$work/bin:$PATH
page=$work/docs/results/cpu.md
failures=0
fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}
runs() { grep -c "^run" "$CALLS"; }

sections=$("$work/tools/cpu_report.sh" --list)
for section in $sections; do
  grep -qx -e "<!-- $section -->" "$page" && grep -qx -e "<!-- /$section -->" "$page" || fail "no place for $section in the page"
done
count=$(wc -l <<< "$sections")

: > "$CALLS"
MINUTES=0 "$work/tools/cpu_report.sh" | grep -q "left for the next call: $(head -n 1 <<< "$sections")" || fail "nothing left after no time"
[[ $(runs) -eq 0 ]] || fail "measured after its time"
"$work/tools/cpu_report.sh" linear | grep -q "nothing is left" || fail "one section"
[[ $(runs) -eq 1 ]] || fail "one section needs one run"
"$work/tools/cpu_report.sh" | grep -q "nothing is left" || fail "all sections"
[[ $(runs) -eq $count ]] || fail "$(runs) runs instead of $count: a section was measured twice or never"
cp "$page" "$work/once"
"$work/tools/cpu_report.sh" --again linear > /dev/null || fail "again"
[[ $(runs) -eq $((count + 1)) ]] || fail "--again did not measure"
cmp "$page" "$work/once" || fail "the same results change the page"

between() { sed -n "/^<!-- $1 -->\$/,/^<!-- \/$1 -->\$/p" "$page"; }
between layer_8b | grep -q "^    bazel run //experiments:kvmix -- bench --shape=8b-layer" || fail "no command"
between layer_8b | grep -q "^| kv | canned |$" || fail "no table"
expected=$'| benchmark | us | GFLOP/s |\n|---|---:|---:|\n| B/9 | 2500 |  |\n| B/10 | 2.5 | 7 |'
[[ $(between linear | grep '^|') == "$expected" ]] || fail "table of benchmarks: $(between linear)"
# 32768 * 3 * 256 bytes in 4 ms are 6.3 GB/s of 20.
for row in "G3x3_D64: fp16 decode, share of the read bandwidth | 70 % | 31 % | no" \
  "G8x1_D128: 2 bits against fp16, times faster | 4.00 | 4.00 | yes" \
  "G3x3_D64: half, two threads against one | 1.85 | 1.00 | no" \
  "G8x4_D128: half, two threads against one | 1.85 | 1.00 | no: memory allows 1.19"; do
  between gates | grep -qF "| $row |" || fail "no row \"$row\": $(between gates)"
done
output=$("$work/tools/cpu_report.sh" nope 2>&1) && fail "an unknown section is no error"
grep -q 'no section "nope"' <<< "$output" || fail "unknown section: $output"

[[ $failures -eq 0 ]] && echo "all passed"
exit $((failures > 0))

#!/usr/bin/env bash
# Installs what is missing, builds everything, runs every test. Arguments go to `bazel test` (default: //...).
# The last line counts test cases: "N passed, N failed".
set -uo pipefail
cd "$(dirname "$0")/.."

tools/setup.sh || { echo "0 passed, 1 failed"; exit 1; }

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(//...)
bazel test --keep_going --noshow_progress "${targets[@]}"
status=$?

# A result file is current if this run wrote or confirmed it; Bazel leaves the files of other targets behind.
logs=$(bazel info bazel-testlogs 2>/dev/null)
tests=$(bazel query --noshow_progress "tests(set(${targets[*]}))" 2>/dev/null)
passed=0
failed=0
for label in $tests; do
  path=${label#//}
  report="$logs/${path/://}/test.xml"
  if [ ! -f "$report" ]; then
    echo "no result: $label"
    failed=$((failed + 1))
    continue
  fi
  read -r ok bad < <(awk '
    # Every <testcase> is a case; one <failure> or <error> or more inside it makes it a failed one.
    { n = split($0, part, "<")
      for (i = 2; i <= n; ++i) {
        if (part[i] ~ /^testcase/) { ++cases; open = 1 }
        else if (part[i] ~ /^(failure|error)/ && open) { ++bad; open = 0 }
        else if (part[i] ~ /^skipped/) { ++skipped }
      } }
    END { print cases - bad - skipped, bad + 0 }' "$report")
  grep -o 'skipped message="[^"]*"' "$report" | sort -u | sed "s|^|$label: |"
  passed=$((passed + ok))
  failed=$((failed + bad))
done
# A build error, a crash or a time-out must never count as a success.
if [ $status -ne 0 ] && [ $failed -eq 0 ]; then failed=1; fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ] && [ "$passed" -gt 0 ]

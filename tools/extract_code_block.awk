# Prints the fenced code block of a Markdown document that follows the line `file`, in backticks:
#   awk -v file=kvmix/importance/state_norm.cc -f extract_code_block.awk document.md
# Fails if there is none.
$0 == "`" file "`" { wanted = 1; next }
wanted && /^```/ { inside = !inside; if (!inside) { found = 1; wanted = 0 }; next }
inside { print }
END {
  if (!found) {
    print "extract_code_block: no block for " file > "/dev/stderr"
    exit 1
  }
}

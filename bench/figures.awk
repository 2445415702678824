# The figures of a run, from the JSON that `gmem bench all --json` (first file) and compare.py (second) write a member a
# line: as a Markdown table (-v form=table), or as lines for chart.awk (-v form=chart).
function value(line) {
    sub(/^[^:]*: */, "", line)
    sub(/,$/, "", line)
    gsub(/^"|"$/, "", line)
    return line
}
function name(line) {
    sub(/^ *"/, "", line)
    sub(/".*/, "", line)
    return line
}
function limit_row(what, kernels, seconds, gflops, peak, limit) {
    if (form == "table") printf "| %s | %s | %.2f ms | %.4g | %.2f | %.2f |\n", what, kernels, 1e3 * seconds, gflops, peak, limit
    else printf "gmem: fraction of this machine's limit\t%s, %s\t%s\n", what, kernels, limit
}
function peer_row() {
    if (!("how" in row)) return
    if (form == "table" && "failed" in row) printf "| %s %s | %s | | | %s |\n", row["work"], row["dtype"], row["how"], row["failed"]
    else if (form == "table") printf "| %s %s | %s | %.1f ms | %s | %s |\n", row["work"], row["dtype"], row["how"], 1e3 * row["median"], "ratio" in row ? sprintf("%.3f", row["ratio"]) : "", row["version"]
    else if (!("failed" in row) && "ratio" in row) printf "time of gmem / time of others, %s %s (below 1: gmem is faster)\t%s\t%s\n", row["work"], row["dtype"], row["how"], row["ratio"]
}
FNR == 1 { file++ }
file == 1 && /^    "peak_gflops": \{/ { in_peaks = 1; next }
file == 1 && in_peaks && /\}/ { in_peaks = 0; next }
file == 1 && in_peaks { peaks = peaks (peaks ? ", " : "") name($0) " " sprintf("%.0f", value($0)); next }
file == 1 && /^  "[a-z0-9_]+": \{/ { part = name($0); next }
file == 1 && /^    "cpu"/ && part == "machine" { cpu = value($0); next }
file == 1 && /^    "threads"/ && part == "machine" { threads = value($0); next }
file == 1 && /^    "bandwidth_gb"/ && part == "machine" { bandwidth = value($0); next }
file == 1 && (part == "gemm" || /^    "/) && /^ *"[a-z_]+": [^\[{]/ { v[name($0)] = value($0) }
file == 1 && /"architecture"/ { what[part] = value($0) }
file == 1 && /"autoencoder":/ { what[part] = "a decoding" }
file == 1 && part ~ /^(network|autoencoder)_/ && /^  \}/ {
    if (form == "table" && !headed++) {
        printf "%s, %s threads. Memory %.1f GB/s. Peaks, GFLOP/s: %s.\n\n", cpu, threads, bandwidth, peaks
        print "| | kernels | median | GFLOP/s | of peak | of limit |\n|---|---|---|---|---|---|"
    }
    limit_row(what[part] " " v["dtype"], v["kernels"], v["seconds_median"], v["gflops"], v["fraction_of_peak"], v["fraction_of_limit"])
}
file == 1 && part == "gemm" && /^      \}/ && v["isa"] != "scalar" {
    limit_row(v["layer"] " " v["dtype"], v["kernels"], v["seconds_median"], v["gflops"], v["fraction_of_peak"], v["fraction_of_limit"])
}
file == 1 && part == "bank" && /^  \}/ {
    opening = sprintf("Opening network and bank (%s rows): first %.2f ms, median %.2f ms; memory grows by %.1f MB; a row takes %.2f us.", v["rows"], v["open_ms_first"], v["open_ms_median"], v["resident_bytes"] / 1e6, v["row_us_median"])
}
file == 2 && /^ \{/ {
    if (form == "table" && !peers++) print "\n| beside others | | median | gmem / this | version |\n|---|---|---|---|---|"
    split("", row)
}
file == 2 && /^  "/ { row[name($0)] = value($0) }
file == 2 && /^ \}/ { peer_row() }
END { if (form == "table" && opening) print "\n" opening }

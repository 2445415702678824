# How pictures spread, as SVG, from what `gmem bench bank --json` prints a member a line: a bar from the 10th to the 90th
# of 100 distances, with a line at the median. Usage: gmem bench bank --json | awk -f bench/spread.awk > spread.svg
function text(x, y, anchor, size, what) {
    printf "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\" font-size=\"%d\">%s</text>\n", x, y, anchor, size, what
}
function name(line) { sub(/^ *"/, "", line); sub(/".*/, "", line); return line }
function value(line) { sub(/^[^:]*: */, "", line); sub(/,$/, "", line); return line + 0 }
function bar(label, measure, colour,    i) {
    i = label SUBSEP measure
    text(LEFT - 8, y + 13, "end", 12, label)
    printf "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"14\" fill=\"%s\"/>\n", LEFT + low[i] * SCALE, y + 2, (high[i] - low[i]) * SCALE + 1, colour
    printf "<rect x=\"%.1f\" y=\"%d\" width=\"2\" height=\"18\" fill=\"#222\"/>\n", LEFT + middle[i] * SCALE, y
    text(LEFT + high[i] * SCALE + 8, y + 13, "start", 12, sprintf("%.2f", middle[i]))
    y += 22
}
function headline(what) { y += 8; text(16, y + 13, "start", 13, what); y += 22 }
/"(rows|mixed|added)": \{/ { kind = name($0); next }
/"bank_to_itself": \{/ { kind = "bank"; measure = "to_bank"; next }
/"to_(snippet|bank|each_other)": \{/ { measure = name($0); next }
/"p10":/ { low[kind, measure] = value($0) }
/"median":/ { middle[kind, measure] = value($0) }
/"p90":/ { high[kind, measure] = value($0); if (high[kind, measure] > most) most = high[kind, measure] }
/"pictures":/ { pictures = value($0) }
END {
    LEFT = 90
    SCALE = 520 / most
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"680\" height=\"366\" font-family=\"sans-serif\" fill=\"#222\">\n"
    printf "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
    text(16, 26, "start", 17, "How pictures spread around the memory")
    text(16, 46, "start", 12, pictures " pictures of each kind, 1 - cosine of their features: 10 % to 90 %, and the median")
    y = 52
    headline("from a picture to the snippet that it was drawn from")
    bar("rows", "to_snippet", "#2b6cb0"); bar("mixed", "to_snippet", "#2b6cb0"); bar("added", "to_snippet", "#2b6cb0")
    headline("to the nearest row of the bank (bank: from its rows to the nearest other)")
    bar("bank", "to_bank", "#a0aec0"); bar("rows", "to_bank", "#2b6cb0"); bar("mixed", "to_bank", "#2b6cb0"); bar("added", "to_bank", "#2b6cb0")
    headline("to the nearest picture of the same kind")
    bar("rows", "to_each_other", "#2b6cb0"); bar("mixed", "to_each_other", "#2b6cb0"); bar("added", "to_each_other", "#2b6cb0")
    print "</svg>"
}

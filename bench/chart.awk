# A bar chart as SVG from lines "GROUP <tab> LABEL <tab> VALUE": values from 0, a line at 1, groups under their headlines.
# Usage: awk -v title="..." -v legend="..." -f bench/chart.awk figures.tsv > chart.svg
function text(x, y, anchor, size, what) {
    gsub(/&/, "\\&amp;", what)
    gsub(/</, "\\&lt;", what)
    printf "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\" font-size=\"%d\">%s</text>\n", x, y, anchor, size, what
}
BEGIN {
    FS = "\t"
    LEFT = 300; WIDTH = 480; ROW = 20; TOP = 64
    most = 1
}
NF == 3 {
    n++
    group[n] = $1; label[n] = $2; value[n] = $3 + 0
    if (value[n] > most) most = value[n]
    if ($1 != last) headlines++
    last = $1
}
END {
    if (most > 3) most = 3 # longer bars are cut; their numbers say how long
    height = TOP + n * ROW + headlines * (ROW + 8) + 34
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" fill=\"#222\">\n", LEFT + WIDTH + 70, height
    printf "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
    text(16, 26, "start", 17, title)
    text(16, 46, "start", 12, legend)
    y = TOP
    last = ""
    for (i = 1; i <= n; i++) {
        if (group[i] != last) {
            y += 8
            text(16, y + 14, "start", 13, group[i])
            y += ROW
            last = group[i]
        }
        shown = value[i] > most ? most : value[i]
        text(LEFT - 8, y + 14, "end", 12, label[i])
        printf "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", LEFT, y + 3, shown / most * WIDTH, ROW - 6, label[i] ~ /^gmem/ || group[i] ~ /^gmem/ ? "#2b6cb0" : "#a0aec0"
        text(LEFT + shown / most * WIDTH + 6, y + 14, "start", 12, sprintf("%.2f", value[i]))
        y += ROW
    }
    x = LEFT + WIDTH / most
    printf "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#c53030\" stroke-dasharray=\"4 3\"/>\n", x, TOP, x, y + 6
    text(x, y + 20, "middle", 12, "1")
    print "</svg>"
}

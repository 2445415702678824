# Writes gmem.h: the root file with every #include "..." replaced by that file, recursively. A .h goes in once, a
# template (.inc) every time it is included. Usage: awk -f tools/amalgamate.awk src/gmem.c > gmem.h
function folder(path) {
    return match(path, /.*\//) ? substr(path, 1, RLENGTH) : ""
}
function resolve(path) { # removes "x/.." pairs
    while (match(path, /[^\/.]+\/\.\.\//)) path = substr(path, 1, RSTART - 1) substr(path, RSTART + RLENGTH)
    return path
}
function paste(path, line, target, status) {
    if (path ~ /\.h$/ && seen[path]++) return
    if (!(path ~ /gmem\.c$/)) print "/* ---- " path " ---- */"
    while ((status = (getline line < path)) > 0) {
        if (line ~ /^[ \t]*#[ \t]*include[ \t]*"/) {
            target = line
            sub(/^[^"]*"/, "", target)
            sub(/".*$/, "", target)
            paste(resolve(folder(path) target))
        } else {
            print line
        }
    }
    if (status < 0) {
        print "amalgamate: cannot read " path > "/dev/stderr"
        exit 1
    }
    close(path)
}
BEGIN {
    print "/* Generated from src/ and backends/ by tools/amalgamate.awk (make gmem.h). Do not edit. */"
    paste(ARGV[1])
    exit 0
}

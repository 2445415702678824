# Writes gmem.h: the root file with every #include "..." replaced by that file, recursively. A .h goes in once, a
# template (.inc) every time it is included, and NAME.cl.inc is OpenCL's NAME.cl as string literals.
# Usage: awk -f tools/amalgamate.awk src/gmem.c > gmem.h
#        awk -f tools/amalgamate.awk NAME.cl > NAME.cl.inc    which is what the parts include, compiled one by one
function folder(path) {
    return match(path, /.*\//) ? substr(path, 1, RLENGTH) : ""
}
function resolve(path) { # removes "x/.." pairs
    while (match(path, /[^\/.]+\/\.\.\//)) path = substr(path, 1, RSTART - 1) substr(path, RSTART + RLENGTH)
    return path
}
function fail(path) {
    print "amalgamate: cannot read " path > "/dev/stderr"
    exit 1
}
function paste(path, line, target, status) {
    if (path ~ /\.h$/ && seen[path]++) return
    if (!(path ~ /gmem\.c$/)) print "/* ---- " path " ---- */"
    if (path ~ /\.cl\.inc$/) {
        quote_file(substr(path, 1, length(path) - 4))
        return
    }
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
    if (status < 0) fail(path)
    close(path)
}
# The line without comments, which may begin (in_comment) and end in other lines. OpenCL C has no strings to mind.
function uncomment(line, kept, at) {
    kept = ""
    while (line != "") {
        if (in_comment) {
            if (!(at = index(line, "*/"))) return kept
            in_comment = 0
            line = substr(line, at + 2)
        } else if (match(line, /\/[*\/]/)) {
            kept = kept substr(line, 1, RSTART - 1)
            if (substr(line, RSTART + 1, 1) == "/") return kept
            in_comment = 1
            line = substr(line, RSTART + 2)
        } else {
            return kept line
        }
    }
    return kept
}
function escape(line, out, c, i) {
    out = ""
    for (i = 1; i <= length(line); i++) {
        c = substr(line, i, 1)
        out = out (c == "\\" || c == "\"" ? "\\" c : c)
    }
    return out
}
# Lines of C, each a literal with its comma. Compilers count lines as the file has them: lines that become empty join
# the next literal.
function quote_file(path, line, name, empty, continued, status) {
    name = path
    sub(/.*\//, "", name)
    print "\"#line 1 \\\"" name "\\\"\\n\","
    empty = ""
    while ((status = (getline line < path)) > 0) {
        continued = sub(/\\$/, "", line)
        line = uncomment(line)
        sub(/[ \t]+$/, "", line)
        if (continued) line = line "\\"
        if (line == "") {
            empty = empty "\\n"
        } else {
            print "\"" empty escape(line) "\\n\","
            empty = ""
        }
    }
    if (status < 0) fail(path)
    close(path)
}
BEGIN {
    if (ARGV[1] ~ /\.cl$/) {
        quote_file(ARGV[1])
    } else {
        print "/* Generated from src/ and backends/ by tools/amalgamate.awk (make gmem.h). Do not edit. */"
        paste(ARGV[1])
    }
    exit 0
}

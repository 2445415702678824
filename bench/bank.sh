#!/bin/bash
# A bank of the published size, made here, and everything that is done to banks, each a program of its own: the time that
# it took from start to end, its processor time and the most memory that it had at once. On an idle machine:
#
#     bench/bank.sh
#     ROWS=100000 RANK=64 bench/bank.sh        with other sizes
#     BANK=imagenet.pth bench/bank.sh          with a bank that is there
#     BUILD=... KEEP=1 bench/bank.sh           with another build; what was made stays in BUILD/bench-bank
#
# DECAY says how fast the made bank's directions fall off (gmem synth); DECAY= makes noise, of which every direction holds
# the same. The bank comes from the file cache if it fits there: the first line reads all of it. Needs 8 GB of disk, 4 of
# them with a bank that is there.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

build=${BUILD:-build}
gmem=$build/gmem
rows=${ROWS:-1281167} width=${WIDTH:-768} rank=${RANK:-256} decay=${DECAY-1}
folder=$build/bench-bank
bank=${BANK:-$folder/bank-${rows}x$width-${decay:-noise}.pth}

fail() {
    echo "bench/bank.sh: $*" >&2
    exit 1
}

make -s BUILD="$build" "$gmem"
mkdir -p "$folder"
trap '[ "${KEEP:-}" = 1 ] || rm -f "$folder"/*.safetensors "$folder"/{timed,out,err}' EXIT

time=${TIME:-/usr/bin/time}
# How to learn of a program's memory: GNU's time, BSD's, or not at all.
if "$time" -f %e -o "$folder/timed" true 2>/dev/null; then
    timer=gnu
elif "$time" -l -o "$folder/timed" true 2>/dev/null; then
    timer=bsd
else
    timer=none
    echo "bench/bank.sh: no $time here (Debian's package is called time): peak memory is not known" >&2
fi

# "seconds processor-seconds peak-bytes" of the command that was timed last; "?" for what is not known.
figures() {
    case $timer in
    gnu) awk 'NF == 4 { print $1, $2 + $3, $4 * 1024 }' "$folder/timed" ;;
    bsd) awk '/ real / { wall = $1; used = $3 + $5 } /maximum resident/ { peak = $1 } END { print wall, used, peak }' "$folder/timed" ;;
    none) awk 'NR == 1 { wall = $1 } NR == 2 { used = $1 } NR == 3 { used += $1 } END { print wall, used, "?" }' "$folder/timed" ;;
    esac
}

# run COMMAND...: its figures go to the file, what it prints to $folder/out.
run() {
    case $timer in
    gnu) "$time" -f '%e %U %S %M' -o "$folder/timed" "$@" >"$folder/out" ;;
    bsd) "$time" -l -o "$folder/timed" "$@" >"$folder/out" ;;
    none)
        local TIMEFORMAT=$'%R\n%U\n%S'
        { time "$@" >"$folder/out" 2>"$folder/err"; } 2>"$folder/timed"
        ;;
    esac || fail "$*: failed"
}

# measure WHAT ARGUMENT...: a line of the table for a command of gmem.
measure() {
    local what=$1
    shift
    run "$gmem" "$@"
    # shellcheck disable=SC2046 # three words
    set -- $(figures)
    printf '| %s | %s | %s | %s |\n' "$what" "$1" "$2" "$(awk -v b="$3" 'BEGIN { print b == "?" ? b : sprintf("%.1f", b / 1048576) }')"
}

# A number of the command's JSON.
number() { awk -F'": ' -v key="\"$1" '$1 ~ key "$" { sub(/,$/, "", $2); print $2; exit }' "$folder/out"; }

if [ ! -f "$bank" ]; then
    [ -z "${BANK:-}" ] || fail "$bank: no such file"
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free" -gt $((rows * width / 1024 * 8)) ] || fail "$folder: not enough room for a bank and what becomes of it"
    echo "making $bank" >&2
    "$gmem" synth "bank:${rows}x$width${decay:+:$decay}" -q -o "$bank"
fi
cat "$bank" >/dev/null # into the file cache, as far as it fits
"$gmem" bank info --bank "$bank" --json >"$folder/out"
rows=$(number rows) width=$(number width)
threads=$("$gmem" devices --json | awk -F'": ' '/"threads":/ { print $2 + 0; exit }')
small=$folder/rank.safetensors int8=$folder/int8.safetensors f16=$folder/f16.safetensors mine=$folder/mine.safetensors
middle=$((rows / 2))

echo "$rows rows of width $width, $(wc -c <"$bank" | tr -d ' ') bytes; ${threads:-?} threads; $(date +%Y-%m-%d)"
echo
echo "| step | seconds | of processors | peak memory, MiB |"
echo "|---|---|---|---|"
measure "open" bank info --bank "$bank"
measure "one row" bank get -q --bank "$bank" --rows $middle -o "$folder/row.safetensors"
measure "1000 rows" bank get -q --bank "$bank" --rows "$((middle - 500))-$((middle + 499))" -o "$folder/rows.safetensors"
measure "search, one query" bank search --bank "$bank" $middle
measure "search, eight queries" bank search --bank "$bank" 0 1 2 3 4 5 6 $middle
measure "compress to rank $rank, f16" bank compress --bank "$bank" --rank "$rank" --dtype f16 --json -o "$small"
rank_report="energy $(number energy), cosine $(number mean_cosine) on average, $(number least_cosine) at least, $(number bytes_after) bytes"
measure "compress to int8" bank compress --bank "$bank" --json -o "$int8"
int8_report="energy $(number energy), cosine $(number mean_cosine) on average, $(number least_cosine) at least, $(number bytes_after) bytes"
measure "compress to f16" bank compress --bank "$bank" --dtype f16 -o "$f16"
measure "search in f16, one query" bank search --bank "$f16" $middle
measure "search in int8, ordered by f32" bank search --bank "$int8" --rerank "$bank" $middle
rm -f "$mine"
measure "add 1000 rows in a file of their own" bank add --bank "$bank" --bank "$mine" --input "$folder/rows.safetensors"
measure "add one row to it" bank add --bank "$bank" --bank "$mine" --input "$folder/row.safetensors"
measure "add one row to the int8 bank, written anew" bank add --bank "$int8" --input "$folder/row.safetensors"
echo
echo "rank $rank: $rank_report"
echo "int8: $int8_report"

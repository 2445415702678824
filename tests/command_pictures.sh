# A part of tests/test_command.sh: pictures in, as features and as banks.

# A tiny image encoder, in $encoder, and pictures in the folder `photos`.
prepare_pictures() {
    local tool=$work/weights
    encoder=$work/tiny
    [ -f "$encoder" ] && return
    ${CC:-cc} -O1 -o "$tool" tests/weights.c tests/golden.c examples/gmem/procedural.c "$(dirname "$gmem")/libgmem.a" \
        -lm -fopenmp || exit 1
    "$tool" dinov2_tiny.io.safetensors "$encoder"
    mkdir -p "$work/run/photos/sub/deep"
    good sample $quick -s 1 -n 3 -o 'photos/b%d.png'
    good sample $quick -s 2 -n 2 -o 'photos/sub/a%d.png'
    cp "$golden/picture_baseline.jpg" "$work/run/photos/sub/deep/no ending"
    cp "$golden/picture_clear.gif" "$work/run/photos/sub/deep/$(printf 'line\nfeed.gif')"
    echo text >"$work/run/photos/readme.txt"
}

test_features() {
    local tiny=$golden/dinov2_tiny.io.safetensors
    prepare_pictures
    good features --image-encoder "$encoder" --input "$tiny" -o f
    check "features: cls" close_to f cls "$tiny" cls 1e-5
    check "features: patch" close_to f patch "$tiny" patch 1e-5
    run info f --json
    check "features: what else it writes" json '.metadata.backend and .metadata.dtype == "f32" and (.tensors | length) == 2'
    good features --image-encoder "$encoder" --input "$tiny" --published-range -o published
    check "--published-range is another" eval '! close_to published cls "$tiny" cls 1e-3'
    run features --image-encoder "$encoder" photos/b0.png "$golden/picture_cmyk.jpg" photos/b1.png -o three --json
    check "features of files" json '.tensors[0].shape == [3, 48] and .tensors[1].shape == [3, 256, 48]'
    good features --image-encoder "$encoder" photos/b0.png "$golden/picture_cmyk.jpg" photos/b1.png -b 1 -t 1 -o three_again
    check "features one by one" close_to three_again patch three patch 1e-6
    good features --image-encoder "$encoder" --published-range photos/b0.png "$golden/picture_cmyk.jpg" photos/b1.png -o published
    check "--published-range of files is another" eval '! close_to published cls three cls 1e-3'
    refuses 2 'needs pictures, or --input' features --image-encoder "$encoder" -o x
    refuses 2 'needs -o FILE' features --image-encoder "$encoder" photos/b0.png
    refuses 2 'cannot be combined' features --image-encoder "$encoder" photos/b0.png --input "$tiny" -o x
    refuses 1 '^gmem: error: photos/none.png: cannot open the picture: No such file' features --image-encoder "$encoder" photos/none.png -o x
    refuses 1 '^gmem: error: photos/readme.txt: not a picture of a known kind' features --image-encoder "$encoder" photos/readme.txt -o x
    refuses 1 '^gmem: error: ./photos/b0.png: it is one of the pictures to read' \
        features --image-encoder "$encoder" photos/b0.png -o ./photos/b0.png
    check "what is read is not written over" is_png "$work/run/photos/b0.png"
    refuses 1 '^gmem: error: photos: it is a folder' features --image-encoder "$encoder" photos -o x
    head -c 400 "$golden/picture_baseline.jpg" >"$work/run/cut.jpg"
    refuses 1 '^gmem: error: cut.jpg: the file ends too early' features --image-encoder "$encoder" photos/b0.png cut.jpg -o x
    printf 'P6 31623 31623 255\n' >"$work/run/large.ppm"
    refuses 1 '^gmem: error: large.ppm: the picture is too large: 31623 x 31623' features --image-encoder "$encoder" large.ppm -o x
    refuses 1 'f: image: expected any x 3|f: no tensor .image.' features --image-encoder "$encoder" --input f -o x
    refuses 1 'dit_base.pth: ' features --image-encoder "$golden/dit_base.pth" photos/b0.png -o x
    if [ ! -f examples/model/image_encoder.safetensors ]; then
        refuses 1 'name one with --image-encoder' features photos/b0.png -o x
    fi
}

test_builds() {
    local encode limit i built
    prepare_pictures
    encode="--image-encoder $encoder"
    run bank build photos $encode -o bank --json
    check "bank build --json" json '.output == "bank" and .rows == 7 and .width == 48 and .type == "F32" and .skipped == []'
    check "bank build leaves nothing else" equal "$(cd "$work/run" && ls | grep '^bank\.\(part\|lock\|tmp\|unfinished\)')" ""
    good features $encode photos/sub/a0.png photos/b2.png -o two
    for i in 0:photos/b0.png 3:photos/sub/a0.png; do
        good features $encode "${i#*:}" -o one
        good bank get --bank bank --rows "${i%:*}" -o row
        check "row ${i%:*} is ${i#*:}" close_to row features one cls 1e-6
        run bank search --bank bank "${i%:*}" -k 1 --json
        check "row ${i%:*} has its name" json ".results[0][0].name == \"${i#*:photos/}\""
    done
    run bank search --bank bank 5 6 -k 1 --json
    check "names that are no line of text are escaped" json '[.results[][0].name] == ["sub/deep/line\\x0afeed.gif", "sub/deep/no ending"]'
    for i in f32:F32 f16:F16 bf16:BF16 int8:I8; do
        run bank build photos// $encode -o "typed_${i%:*}" --dtype "${i%:*}" --json
        check "bank build --dtype ${i%:*}" json ".type == \"${i#*:}\""
        run bank get --bank bank --rows 0-6 -o stored
        run bank get --bank "typed_${i%:*}" --rows 0-6 -o typed
        check "rows of ${i%:*}" close_to typed features stored features $([ "${i%:*}" = f32 ] && echo 0 || echo 2e-2)
    done
    check "slashes change nothing" cmp "$work/run/bank" "$work/run/typed_f32"
    # several folders, one in another; loops
    ln -s .. "$work/run/photos/sub/loop"
    ln -s ../../b0.png "$work/run/photos/sub/deep/link.png"
    run bank build photos/sub photos $encode -o several --json
    check "folders within others, loops and links" json '.rows == 8 and .skipped == []'
    run bank search --bank several 0 7 -k 1 --json
    check "names of several folders begin with them" json '[.results[][0].name] == ["photos/b0.png", "photos/sub/deep/no ending"]'
    rm "$work/run/photos/sub/loop" "$work/run/photos/sub/deep/link.png"
    # what cannot be read is skipped, and said at the end
    cp "$work/run/cut.jpg" "$work/run/photos/cut.jpg" 2>/dev/null || head -c 400 "$golden/picture_baseline.jpg" >"$work/run/photos/cut.jpg"
    : >"$work/run/photos/sub/empty.png"
    ln -s nowhere "$work/run/photos/sub/gone.png"
    printf 'P6 31623 31623 255\n' >"$work/run/photos/large.ppm"
    run bank build photos $encode -o skipping
    check "bank build skips: exit code" equal $rc 0
    check "bank build skips: standard output" equal "$(cat "$work/out")" "skipping: 7 rows of 48, F32"
    check "bank build skips: what" equal "$(grep ^skipped "$work/err" | cut -c 1-48 | sort)" "skipped: photos/cut.jpg: the file ends too early
skipped: photos/large.ppm: the picture is too la
skipped: photos/sub/empty.png: the file is empty
skipped: photos/sub/gone.png: No such file or di"
    check "bank build skips: the others are the same" cmp "$work/run/bank" "$work/run/skipping"
    run bank build photos $encode -o skipping --json
    check "bank build --json: skipped" json '(.skipped | length) == 4 and any(.skipped[]; .path == "photos/cut.jpg" and .reason == "the file ends too early")'
    run bank build photos $encode -o skipping -q
    check "bank build -q" eval 'empty "$work/out" && empty "$work/err"'
    rm "$work/run/photos/cut.jpg" "$work/run/photos/large.ppm" "$work/run/photos/sub/empty.png" "$work/run/photos/sub/gone.png"
    mkdir -p "$work/run/bare/below" "$work/run/bad"
    echo text >"$work/run/bare/below/text"
    refuses 1 '^gmem: error: bare: no picture in the folder' bank build bare $encode -o x
    : >"$work/run/bad/a.jpg"
    : >"$work/run/bad/b.jpg"
    refuses 1 '^gmem: error: bad/a.jpg: the file is empty; and none of the other 1 could be read' bank build bad $encode -o x
    refuses 1 '^gmem: error: missing: cannot open the folder: No such file' bank build photos missing $encode -o x
    refuses 1 '^gmem: error: photos/b0.png: cannot open the folder: Not a directory' bank build photos/b0.png $encode -o x
    refuses 1 '^gmem: error: x.pth: banks are written as safetensors' bank build photos $encode -o x.pth
    refuses 2 'needs -o FILE' bank build photos $encode
    refuses 2 'usage|needs|FOLDER' bank build -o x
    # a disk that fills up, and then has room: the run goes on
    limit=$(($(wc -c <"$work/run/bank") / 3))
    environment="prlimit --fsize=$limit"
    run bank build photos $encode -o resumed -b 1
    environment=
    check "a full disk: exit code" equal $rc 1
    check "a full disk: the error" matches '^gmem: error: resumed(.part)?: cannot write' "$work/err"
    check "a full disk: what is left" equal "$(cd "$work/run" && ls | grep ^resumed)" resumed.part
    refuses 1 '^gmem: error: resumed.part: it was begun with another image encoder or other settings' \
        bank build photos $encode --published-range -o resumed
    printf 'torn' >>"$work/run/resumed.part"
    run bank build photos $encode -o resumed
    check "it goes on" matches '^going on: [1-6] of 7 pictures were finished before$' "$work/err"
    check "it makes the same bank" cmp "$work/run/bank" "$work/run/resumed"
    check "the journal is gone" test ! -e "$work/run/resumed.part"
    # pictures that were changed in between are read again, those that are gone are left out
    environment="prlimit --fsize=$limit"
    run bank build photos $encode -o resumed2 -b 1
    environment=
    cp "$work/run/photos/b0.png" "$work/b0.png"
    cp "$golden/picture_alpha.png" "$work/run/photos/b0.png"
    mv "$work/run/photos/b1.png" "$work/b1.png"
    good bank build photos $encode -o resumed2
    good bank build photos $encode -o changed
    check "changed pictures are read again" cmp "$work/run/changed" "$work/run/resumed2"
    mv "$work/b0.png" "$work/b1.png" "$work/run/photos"
    echo 'somebody else' >"$work/run/other.part"
    refuses 1 '^gmem: error: other.part: this file is in the way' bank build photos $encode -o other
}

# kill -9 in a loop, Ctrl-C, two runs at once.
test_killed_builds() {
    local encode i pid
    prepare_pictures
    encode="--image-encoder $encoder"
    mkdir "$work/run/large"
    for i in $(seq 10 20); do
        { printf 'P6 1800 1400 255\n' && head -c 7560000 /dev/urandom; } >"$work/run/large/$i.ppm"
    done
    good bank build large $encode -t 1 -o whole
    for i in INT 9 9 9 9; do
        (cd "$work/run" && exec "$gmem" bank build large $encode -t 1 -b 1 -o killed >"$work/out" 2>"$work/err") &
        pid=$!
        if [ $i = INT ]; then # once the first picture is finished
            until [ "$(wc -c 2>/dev/null <"$work/run/killed.part" || echo 0)" -gt 100 ] || ! kill -0 $pid 2>/dev/null; do
                sleep 0.01
            done
        else
            sleep 0.2
        fi
        kill -$i $pid 2>/dev/null
        wait $pid 2>/dev/null
        rc=$?
        if [ $i = INT ]; then
            check "Ctrl-C in bank build: exit code" equal $rc 130
            check "Ctrl-C in bank build: the error" equal "$(cat "$work/err")" "gmem: error: interrupted"
            check "Ctrl-C in bank build: what is left" equal "$(cd "$work/run" && ls | grep ^killed)" killed.part
        fi
        [ -e "$work/run/killed" ] && break
    done
    good bank build large $encode -o killed
    check "killed and gone on with: the same bank" cmp "$work/run/whole" "$work/run/killed"
    check "killed and gone on with: nothing else is left" equal "$(cd "$work/run" && ls | grep ^killed)" killed
    (cd "$work/run" && exec "$gmem" bank build large $encode -t 1 -b 1 -o twice >"$work/first" 2>&1) &
    pid=$!
    until [ -e "$work/run/twice.part" ] || ! kill -0 $pid 2>/dev/null; do sleep 0.01; done
    run bank build large $encode -o twice
    check "two builds at once: one is refused" matches 'twice.part: another run is building this bank' "$work/err"
    wait $pid
    check "two builds at once: the other is not hindered" cmp "$work/run/whole" "$work/run/twice"
    rm -r "$work/run/large"
}

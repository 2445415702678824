#!/bin/bash
# The gmem command from outside: every subcommand, usage, exit codes, streams, JSON, outputs after errors, Ctrl-C,
# locales, installation. Usage: tests/test_command.sh [GMEM [PART...]], parts as in the last lines.
set -u
cd "$(dirname "$0")/.."
export LC_ALL=C
gmem=$(realpath "${1:-build/gmem}")
golden=$(realpath tests/golden)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/run"
passed=0
failed=0
environment= # of the command alone

# check NAME COMMAND...: counts whether the command succeeds.
check() {
    local name=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name: $*"
        head -n 5 "$work/check.log"
        [ -s "$work/err" ] && head -n 3 "$work/err"
    fi
}

# run ARGUMENT...: the command in the folder $work/run; its exit code in $rc, its streams in $work/out and $work/err.
run() {
    mkdir -p "$work/run"
    (cd "$work/run" && env $environment "$gmem" "$@" >"$work/out" 2>"$work/err" </dev/null)
    rc=$?
}

files() { find "$work/run" -type f | sort; }
lines() { wc -l <"$1"; }
empty() { [ ! -s "$1" ]; }
matches() { grep -Eq -- "$1" "$2"; }
is_png() { [ "$(head -c 8 "$1" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ]; }
# width and height of a PNG
png_size() { od -An -tu1 -j16 -N8 "$1" | awk '{ print $1 * 16777216 + $2 * 65536 + $3 * 256 + $4 "x" $5 * 16777216 + $6 * 65536 + $7 * 256 + $8 }'; }
equal() { [ "$1" = "$2" ]; }

# good ARGUMENT...: the command succeeds and complains of nothing.
good() {
    run "$@"
    check "gmem $*" equal $rc 0
    check "gmem $* says no error" eval '! matches "error" "$work/err"'
}

# refuses CODE PATTERN ARGUMENT...: the exit code, one line of error that matches, nothing else, and no file left.
refuses() {
    local code=$1 pattern=$2 before
    shift 2
    before=$(files)
    run "$@"
    check "gmem $*: exit code" equal $rc "$code"
    check "gmem $*: standard output is empty" empty "$work/out"
    check "gmem $*: the error comes first" matches '^gmem: error: ' <(head -n 1 "$work/err")
    check "gmem $*: the error says why" matches "$pattern" <(head -n 1 "$work/err")
    if [ "$code" = 1 ]; then
        check "gmem $*: one line" equal "$(lines "$work/err")" 1
    else
        check "gmem $*: at most one more line, the usage" matches '^[12]$' <(lines "$work/err")
    fi
    check "gmem $*: no file is left" equal "$(files)" "$before"
}

json() { jq -e "$1" "$work/out"; }

# close_to FILE NAME FILE NAME TOLERANCE
compare=$work/compare
${CC:-cc} -O1 -o "$compare" tests/compare.c "$(dirname "$gmem")/libgmem.a" -lm -fopenmp || exit 1
close_to() { (cd "$work/run" && "$compare" "$@"); }

quick="--method euler --steps 3"

test_general() {
    run --version
    check "--version" equal "$(cat "$work/out")" "gmem $(sed -n 's/^#define GMEM_VERSION "\(.*\)"/\1/p' src/api.h)"
    run sample --version --json
    check "--version --json" json .version
    good -h
    for command in sample eval integrate decode encode features "bank build" "bank info" "bank get" "bank mix" "bank add" "bank remove" "bank export" "bank compress" info convert synth \
        "bench network" "bench autoencoder" "bench encoder" "bench bank" "bench gemm" "bench all" devices; do
        good $command -h
        check "help of $command: an example" matches '^example: gmem' "$work/out"
        check "help of $command: nothing on standard error" empty "$work/err"
    done
    refuses 2 'no command'
    refuses 2 "unknown command 'smaple'" smaple
    refuses 2 "needs to know" bank
    refuses 2 "unknown command 'bank fetch'" bank fetch
    refuses 2 'unknown flag -z: gmem -h' -z
    refuses 2 'an operand is empty' info ''
    good bank -h
    good bench --help
    run info /dev/null/x
    run devices --json
    check "devices --json" json '.[0].isa | index("scalar")'
    good devices
    good sample $quick --device CPU -o device.png
    good sample $quick --device "$("$gmem" devices --json | jq -r '.[0].name')" -o device.png
    good sample $quick --cfg-scale 2 --cfg-channels aLL -o device.png
}

test_usage() {
    refuses 2 'unknown flag --stps: did you mean --steps' sample --stps 3
    refuses 2 'unknown flag --zzzzzzzz' sample --zzzzzzzz
    refuses 2 'unknown flag -z' sample -z
    refuses 2 'does not take --alpha' sample --alpha 1
    refuses 2 '--steps needs a value' sample --steps
    refuses 2 '--steps needs a value' sample --steps --seed 3
    refuses 2 '--steps: expected an integer' sample --steps many
    refuses 2 '--steps: expected an integer' sample --steps 0
    refuses 2 '--steps: expected an integer' sample --steps 3.5
    refuses 2 '--steps: the value is empty' sample --steps=
    refuses 2 '--steps: expected an integer .*-5' sample --steps -5
    refuses 2 '--seed: expected' sample --seed -1
    refuses 2 '--seed: expected' sample --seed 18446744073709551616
    refuses 2 '--steps is given twice' sample --steps 3 --steps 4
    refuses 2 '--memory is given twice' sample --memory a --memory b
    refuses 2 '--method: expected one of euler' sample --method eluer
    refuses 2 '--atol: expected a number' sample --method dopri5 --atol 1,5
    refuses 2 '--atol: expected a number' sample --method dopri5 --atol nan
    refuses 2 '--rtol: expected a number' sample --method dopri5 --rtol 0
    refuses 2 '--json takes no value' sample --json=1
    refuses 2 'unexpected .pizza' sample pizza
    refuses 2 'cannot be combined' sample --quiet --verbose
    refuses 2 'cannot be combined' sample --memory pizza --rows 3
    refuses 2 'cannot be combined' sample --mix a b --label 3
    refuses 2 'cannot be combined' sample --mix a b -n 3
    refuses 2 'cannot be combined' sample --show --json
    refuses 2 '--mix needs two values' sample --mix pizza
    refuses 2 '--frames needs --mix' sample --frames 3
    refuses 2 '--mix-method needs --mix' sample --mix-method mask
    refuses 2 '--cfg-interval needs --cfg-scale' sample --cfg-interval 0.5
    refuses 2 '--cfg-interval: expected' sample --cfg-scale 2 --cfg-interval 0.5,0.2
    refuses 2 '--cfg-interval: expected' sample --cfg-scale 2 --cfg-interval x
    refuses 2 '--cfg-channels: expected' sample --cfg-scale 2 --cfg-channels some
    refuses 2 '--diffusion-form is for' sample --method euler --diffusion-form sbdm
    refuses 2 '--atol is for' sample --method rk4 --atol 1
    refuses 2 '--rtol is for' sample --method ab2 --rtol 1
    refuses 2 '--diffusion-norm is for' sample --method dpmpp2m --diffusion-norm 1
    refuses 2 '--cache-threshold: expected a number' sample --cache-threshold -1
    refuses 2 '--cache-threshold: expected a number' sample --cache-threshold much
    refuses 2 'only go forward, not for dopri5' sample --method dopri5 --cache-threshold 0.1
    refuses 2 'does not take --cache-threshold' eval --cache-threshold 0.1
    refuses 2 'ab3 needs at least 2 steps' sample --method ab3 --steps 1
    refuses 2 'timestep shift' sample --method sde-heun --timestep-shift 0.3
    refuses 2 'at least 2 steps' sample --steps 1
    refuses 2 'sbdm' sample --diffusion-form sbdm
    refuses 2 'without a last step' sample --last-step none
    refuses 2 'one number like %03d' sample -o 'a%sb.png'
    refuses 2 'one number like %03d' sample -o 'a%03d%03d.png'
    refuses 2 'one number like %03d' sample -o 'a%.png'
    refuses 2 'choose with --memory' sample --label 3
    refuses 2 'needs --input' eval -o v.safetensors
    refuses 2 'needs -o' eval --input "$golden/dit_base.io.safetensors"
    refuses 2 'needs FILE' info
    refuses 2 'needs -o' convert "$golden/dit_base.pth"
    refuses 2 'unknown architecture' synth xxl/1 -o x
    refuses 2 'needs --rows' bank get -o x
    refuses 2 '--rows: expected' bank get --rows 5-3 -o x
    refuses 2 '--rows: expected' bank get --rows 1,,2 -o x
    refuses 2 '--rows: expected' bank get --rows 1, -o x
    refuses 2 'needs two rows' bank mix pizza -o x
    refuses 2 '--alpha: expected' bank mix pizza bikini --alpha 2 -o x
    refuses 2 'add --bank' sample -m "$golden/dit_base.pth" --heads 4
    refuses 2 'add --autoencoder' sample -m "$golden/lightningdit_class.pt" --heads 4
    refuses 2 'choose with --label' sample -m "$golden/lightningdit_class.pt" --heads 4 --memory 3
}

test_refusals() {
    head -c 3000 "$golden/dit_base.pth" >"$work/cut.pth"
    refuses 1 'nowhere.pth: ' info nowhere.pth
    refuses 1 'cut.pth: ' info "$work/cut.pth"
    refuses 1 'cut.pth: .*\(at byte [0-9]+\)' convert "$work/cut.pth" -o x.safetensors
    refuses 1 'no such key|nothing' convert "$golden/dit_base.pth" --key nothing -o x.safetensors
    refuses 1 '\\x0a' info $'new\nline.pth'
    refuses 1 "no device '7'" sample --device 7
    refuses 1 "no device '1'" sample --backend cpu --device 1
    refuses 1 'no CPU kernel computes in f16' sample --dtype f16
    refuses 1 'picture.png: cannot open the picture' sample --like picture.png
    refuses 1 'not a picture|cannot' sample --like "$golden/dit_base.pth"
    refuses 2 'strength needs --like' sample --strength 0.5
    refuses 2 'published-range is for pictures' sample --published-range
    refuses 1 'no row 1362: the bank' sample --memory 1362
    refuses 1 'no row 4000: the bank' sample --rows 3,4000
    refuses 1 'bank.safetensors: no name .*cat face' sample --memory 'cat fase'
    mkfifo "$work/pipe"
    refuses 1 'no name' sample --memory "$work/pipe"
    refuses 1 'not a picture of a known kind' sample --memory "$golden/manifest.json"
    refuses 1 '/nowhere/x.png: cannot write' sample -o /nowhere/x.png
    refuses 1 "run: cannot write: it is a folder" sample -o "$work/run"
    refuses 1 '/dev/full: cannot write: it is a device' sample -o /dev/full
    refuses 1 '/nowhere/x: cannot write' synth xl/1 -o /nowhere/x
    refuses 1 "no tensor 'x'" eval --input "$golden/bank.io.safetensors" -o x
    refuses 1 'x: expected any x 8 x 8 x 8, found 3 x 4 x 8 x 8' eval --input "$golden/sit_plain.io.safetensors" -o x
    refuses 1 'c: expected 3 x 192, found 3 x 768' eval --input "$golden/dit_base.io.safetensors" -o x
    refuses 1 'heads' eval -m "$golden/lightningdit_class.pt" --heads 5 --input "$golden/lightningdit_class.io.safetensors" -o x
    refuses 1 'no label 10' sample -m "$golden/lightningdit_class.pt" --heads 4 --label 10 --autoencoder "$golden/vae_f8.pt"
    refuses 1 'width|elements' sample -m "$golden/dit_base.pth" --heads 4 --bank "$golden/bank_full.pth" \
        --autoencoder "$golden/vae_f8.pt"
    refuses 1 'noise: the method draws more' integrate -m "$golden/sit_plain.pt" --heads 4 --steps 40 \
        --input "$golden/sit_plain.io.safetensors" -o x
    (cd "$work/run" && ulimit -f 1 && "$gmem" convert "$golden/dit_base.pth" -o large >"$work/out" 2>"$work/err")
    check "a file beyond the limit" equal $? 1
    check "a file beyond the limit: the error" matches '^gmem: error: large: cannot write' "$work/err"
    check "a file beyond the limit: none is left" equal "$(files | grep -c large)" 0
    # numbers that are none name the file they come from
    run convert "$golden/bank_full.pth" -o nan_bank
    printf '\000\000\300\177' | dd of="$work/run/nan_bank" bs=1 conv=notrunc status=none \
        seek=$(($(wc -c <"$work/run/nan_bank") - 4))
    refuses 1 'nan_bank: row 513 is zero or not finite' bank mix 0 513 --bank "$golden/bank_full.pth" --bank nan_bank -o x
    # a weight that is no number shows in the first pass
    run convert "$golden/dit_base.pth" -o nan.safetensors
    printf '\000\000\300\177' | dd of="$work/run/nan.safetensors" bs=1 conv=notrunc status=none \
        seek=$(($(wc -c <"$work/run/nan.safetensors") - 4))
    refuses 1 'nan.safetensors: .*not finite' eval -m nan.safetensors --input "$golden/dit_base.io.safetensors" -o x
    for isa in scalar avx2 avx512 amx; do
        if jq -e ".[0].isa | index(\"$isa\")" <("$gmem" devices --json) >/dev/null; then
            run eval --isa "$isa" -m "$golden/dit_base.pth" --heads 4 --input "$golden/dit_base.io.safetensors" -o "$isa"
            check "eval --isa $isa" close_to "$isa" v "$golden/dit_base.io.safetensors" y_checkpoint 1e-5
        else
            refuses 1 "$isa" eval --isa "$isa" --input "$golden/dit_base.io.safetensors" -o x
        fi
    done
    "$gmem" info "$golden/dit_base.pth" >/dev/full 2>"$work/err"
    check "a full standard output" equal $? 1
    check "a full standard output: the error" matches '^gmem: error: standard output' "$work/err"
}

test_networks() {
    good eval -m "$golden/dit_base.pth" --heads 4 --input "$golden/dit_base.io.safetensors" -o v
    check "eval" close_to v v "$golden/dit_base.io.safetensors" y_checkpoint 1e-5
    run info v --json
    check "what eval writes says the backend" json '.metadata.backend | startswith("cpu/")'
    check "what eval writes says the type" json '.metadata.dtype == "f32"'
    good eval --network="$golden/dit_base.pth" --heads=4 --input "$golden/dit_base.io.safetensors" -o v1 -b 1 -t 1
    check "eval in batches of one" close_to v1 v v v 1e-6
    good eval -m "$golden/lightningdit_class.pt" --heads 4 --input "$golden/lightningdit_class.io.safetensors" -o v --json
    check "eval --json" json '.output == "v" and .tensors[0].shape == [3, 8, 8, 8]'
    check "eval of a class-conditional network" close_to v v "$golden/lightningdit_class.io.safetensors" v 1e-5
    local io=$golden/sit_plain.io.safetensors guided="--cfg-scale 1.8 --cfg-interval 0,0.7"
    good integrate -m "$golden/sit_plain.pt" --heads 4 --input "$io" --method repa-euler --steps 12 -o o
    check "integrate repa-euler" close_to o out "$io" ode_euler12 1e-5
    good integrate -m "$golden/sit_plain.pt" --heads 4 --input "$io" --method REPA-Heun --steps 10 $guided -o o
    check "integrate repa-heun" close_to o out "$io" ode_heun10_cfg 1e-5
    good integrate -m "$golden/sit_plain.pt" --heads 4 --input "$io" --steps 12 $guided -o o
    check "integrate, REPA's default" close_to o out "$io" sde_em12_cfg 1e-5
    good integrate -m "$golden/sit_plain.pt" --heads 4 --input "$io" --steps 12 $guided -b 1 -t 1 --isa Scalar -o o
    check "integrate, one picture at a time" close_to o out "$io" sde_em12_cfg 1e-5
    # the default model is the f16 copy of the one that was recorded
    good integrate --input "$golden/emoji_golden.safetensors" -o o
    check "integrate, the default model" close_to o out "$golden/emoji_golden.safetensors" sde_latent 5e-2
    good synth S/1 -o s1.safetensors
    check "synth" matches 'GMem-LightningDiT-S/1' <("$gmem" info "$work/run/s1.safetensors")
    good synth dinov2-S/14-reg -o vit.pth
    good convert vit.pth -o vit --dtype int8
    run info vit --json
    check "synth of an image encoder" json '.architecture == "DINOv2 ViT-S/14 with registers" and .parameters == 22057728 and
        .image_encoder.registers == 4 and .image_encoder.input_size == 224 and .types.I8 == 49'
    check "info of an image encoder" matches '^pictures      cropped to 256 x 256, seen at 224 x 224$' <("$gmem" info "$work/run/vit.pth")
    rm "$work/run/vit" "$work/run/vit.pth"
    good synth S/1 -o s1.pth
    check "synth in torch's format" matches 'GMem-LightningDiT-S/1' <("$gmem" info "$work/run/s1.pth")
    command -v unzip >/dev/null && check "its checksums" unzip -tq "$work/run/s1.pth"
    for type in safetensors pth; do
        good synth bank:300x8 -o "bank.$type"
        good bank get --bank "bank.$type" --rows 0-299 -o "rows.$type"
    done
    check "synth writes the same bank in both formats" close_to rows.pth features rows.safetensors features 1e-9
    run bench network --json -t 1
    check "bench network --json" json '[.seconds_median, .seconds_first, .passes, .gflops, .peak_gflops, .fraction_of_peak,
        .limit_seconds, .fraction_of_limit, .threads, .resident_bytes] | all(. > 0)'
    check "bench network --json, names" json '.isa and .cpu and .kernels and .dtype == "f32" and (has("profile") | not)'
    run bench network --json -t 1 --dtype bf16 --profile
    check "bench network --dtype bf16" json '.dtype == "bf16" and .seconds_median > 0 and .peak_gflops > 0'
    check "bench network --profile: all operations" json '[.profile[].operation] | contains(["conditioning", "embedding",
        "norm and qkv", "attention", "proj", "norm and mlp_in", "mlp_out", "final", "rest"])'
    check "bench network --profile: nothing is left over" json '[.profile[].share] | all(. >= 0) and (add - 1 | fabs) < 1e-6'
    good bench network -t 1 --profile -q
    check "bench network --profile for people" matches '^attention .* ms .* % .* GFLOP/s' "$work/out"
}

test_benchmarks() {
    local figures='.seconds_median, .gflops, .peak_gflops, .fraction_of_peak, .limit_seconds, .fraction_of_limit'
    run bench autoencoder --json -t 1 --dtype int8
    check "bench autoencoder --json" json "[$figures, .seconds_min, .seconds_max, .seconds_first, .flop, .height, .width,
        .runs, .threads, .resident_bytes] | all(. > 0)"
    check "bench autoencoder --json, names" json '.isa and .kernels and .cpu and .dtype == "int8" and .height == 64'
    run bench autoencoder --autoencoder "$golden/vae_f8.pt" --json -t 1
    check "bench autoencoder of a file: a published picture" json '.height == 256 and .width == 256'
    run bench encoder --json --dtype bf16
    check "bench encoder --json" json "[$figures, .seconds_min, .seconds_max, .seconds_first, .seconds_one,
        .seconds_class, .flop, .size, .pictures, .runs, .threads, .resident_bytes] | all(. > 0)"
    check "bench encoder --json, names" json '.isa and .kernels and .cpu and .dtype == "bf16" and .architecture'
    refuses 1 'no such file' bench encoder --image-encoder missing
    refuses 1 'vae_f8.pt: not an image encoder' bench encoder --image-encoder "$golden/vae_f8.pt"
    run bench bank -n 2 --json
    check "bench bank --json" json '[.rows, .width, .open_ms_first, .open_ms_median, .open_ms_max, .network_ms_median,
        .bank_ms_median, .row_us_median] | all(. > 0)'
    check "bench bank --json: what memory grew by" json '.resident_bytes >= 0'
    check "bench bank --json: how pictures spread" json '.spread | .pictures == 2 and
        ([.bank_to_itself, .rows.to_snippet, .mixed.to_bank, .added.to_each_other] | all(.p10 <= .median and .median <= .p90)) and
        .rows.to_snippet.median < .rows.to_each_other.median'
    run bench gemm --json --isa avx2 -t 2
    if [ $rc = 0 ]; then
        check "bench gemm --json" json "[.results[] | $figures, .seconds_min, .seconds_max, .rows, .depth] | all(. > 0)"
        check "bench gemm: layers and types" json '(.results | length) == 12 and all(.results[]; .isa == "avx2") and
            ([.results[].dtype] | unique) == ["bf16", "f32", "int8"]'
        check "bench gemm: errors are rounding" json '[.results[] | select(.dtype == "f32").error] | all(. < 1e-6)'
    fi
    good bench gemm --dtype f32 -q
    check "bench gemm for people" matches '^mlp_out .* f32 ' "$work/out"
    run bench all --json --dtype bf16
    check "bench all --json" json '.machine.cpu and .machine.bandwidth_gb > 0 and (.machine.peak_gflops | length) > 0 and
        .network_bf16.seconds_median > 0 and .autoencoder_bf16.seconds_median > 0 and .bank.rows > 0 and
        (.gemm.results | length) >= 4 and (.network_bf16.profile | length) > 0'
    awk -v form=table -f bench/figures.awk "$work/out" >"$work/table"
    check "the table of bench/all has the pass's rate" matches \
        '^[|] GMem[^|]* bf16 [|] [^|]* [|] [0-9.]* ms [|] [1-9]' "$work/table"
    refuses 2 'does not take --profile' bench bank --profile
    refuses 2 'does not take --network' bench gemm --network x
    refuses 2 'does not take --network' bench autoencoder --network x
    refuses 2 'does not take --output' bench all -o x
    refuses 2 "unexpected 'x'" bench gemm x
    refuses 1 'no such file' bench network --network missing
    refuses 1 'no such file' bench autoencoder --autoencoder missing
    refuses 1 'no such file' bench bank --bank missing
    refuses 1 'no such file' bench all --network missing
    refuses 1 'f16' bench network --dtype f16
    refuses 1 'f16' bench gemm --dtype f16
}

test_autoencoders() {
    local io=$golden/vae_f8.io.safetensors
    good encode --autoencoder "$golden/vae_f8.pt" --input "$io" -o e
    check "encode: mean" close_to e mean "$io" mean 1e-5
    check "encode: logvar" close_to e logvar "$io" logvar 1e-5
    good decode --autoencoder "$golden/vae_f8.pt" --input e -b 1 -o d
    check "decode" close_to d decoded "$io" decoded 1e-5
    check "decode: pixels" close_to d decoded_u8 "$io" decoded_u8 1e-3
    local sit=(sample -m "$golden/sit_plain.pt" --heads 4 --label 1 --method repa-euler --steps 2 -o scaled.png)
    for factor in none 0.25 '"0.25"' -1 1e999; do # beside the file, as diffusers keeps it
        mkdir -p "$work/diffusers"
        cp "$golden/vae_diffusers.safetensors" "$work/diffusers/diffusion_pytorch_model.safetensors"
        sed "s/\"scaling_factor\": [^,}]*/\"scaling_factor\": $factor/" "$golden/vae_diffusers.config.json" >"$work/diffusers/config.json"
        [ "$factor" = none ] && rm "$work/diffusers/config.json"
        good "${sit[@]}" --autoencoder "$work/diffusers/diffusion_pytorch_model.safetensors"
        check "the scaling factor of config.json: $factor" grep -aq \
            "multiplier.$([ "$factor" = 0.25 ] && echo 0\\.25 || echo 0\\.18215)" "$work/run/scaled.png"
    done
    good "${sit[@]}" --autoencoder "$work/diffusers/diffusion_pytorch_model.safetensors" --multiplier 0.5
    check "--multiplier comes first" grep -aq 'multiplier.0\.5' "$work/run/scaled.png"
    refuses 1 'z: expected any x 8' decode --autoencoder "$golden/vae_f8.pt" --input "$golden/sit_plain.io.safetensors" -o x
}

test_banks() {
    local io=$golden/bank.io.safetensors
    run bank info --bank "$golden/bank_full.pth" --bank "$golden/bank_dmd16.pth" --json
    check "bank info --json" json '.rows == 514 and .width == 48 and .type == "F32" and (.files | length) == 2'
    good bank info
    good bank get --rows 0-2,7 -o rows
    check "bank get: names" matches 'names' <("$gmem" info "$work/run/rows")
    good bank get --bank "$golden/bank_full.pth" --rows 0 -o row
    good bank mix 3 'PIZZA' --alpha 0 0.5 1 --mix-method spherical -o mixed
    refuses 1 'nearest: .cat face' bank mix 3 'cat fce' -o x
    run bank mix 3 pizza --mix-method mask -s 5 -o masked
    check "bank mix prints its seed" matches '^seed: 5$' "$work/err"
    run bank mix 3 pizza -o mixed
    check "bank mix draws nothing otherwise" eval '! matches seed "$work/err"'
}

# The recorded nearest rows are test_bank_search.c's; here is what the command makes of them.
test_search() {
    local io=$golden/bank.io.safetensors full=$golden/bank_full.pth
    run bank search --bank "$full" --input "$io" -k 7 --json
    check "bank search --json: the recorded rows" json '[.results[] | .[0].row] == [18, 102, 200, 44, 68] and
        all(.results[]; length == 7 and all(.[]; .name == null)) and (.results[0][0].cosine - 0.33006 | fabs) < 1e-4'
    run bank search pizza 3 --json
    check "bank search: rows and names" json '[.results[] | length] == [10, 10] and .results[1][0].row == 3 and
        .results[0][0].name == "slice of pizza" and all(.results[]; .[0].cosine == 1 and .[1].cosine < 1)'
    good bank search pizza -k 2
    check "bank search: a line for each" equal "$(lines "$work/out")" 2
    check "bank search: best first" matches '1\.000000  slice of pizza$' <(head -n 1 "$work/out")
    # emoji that the image encoder's training never saw, each named after its row (tools/image-encoder)
    run bank search "$golden"/held_out/*.png -k 2 --json
    check "bank search: pictures find their rows" json '[.results[][0].row] == [1005, 105, 255, 345, 495, 5, 665, 785] and
        all(.results[]; .[0].cosine > 0.93 and .[1].cosine < .[0].cosine)'
    good convert "$full" --dtype int8 -o small
    run bank search --bank small --rerank "$full" --input "$io" -k 7 --json
    check "bank search --rerank: the recorded rows" json '[.results[] | .[0].row] == [18, 102, 200, 44, 68]'
    run bank search --bank "$full" 5 -k 1000 --json
    check "bank search: all rows where there are fewer" json '.results[0] | length == 257'
    refuses 2 'needs what to search for' bank search
    refuses 2 'cannot be combined' bank search 3 --input "$io"
    refuses 2 '\-k' bank search 3 -k 0
    refuses 1 'no row 257' bank search --bank "$full" 257
    refuses 1 'nearest: .cat face' bank search 'cat fce'
    refuses 1 '^gmem: error: none/cat.png: no such picture file, and no name "none/cat.png" in the bank; nearest: ' \
        bank search none/cat.png
    refuses 1 'no bank' bank search --bank "$full" 3 --rerank "$io"
    refuses 1 'bank_full.pth: the bank to rerank by has rows of 48 elements, not 192' bank search 3 --rerank "$full"
    refuses 1 'query: expected any x 192, found 5 x 48' bank search --input "$io"
}

# keeps FILE COMMAND...: the command leaves the file as it is, and nothing beside it.
keeps() {
    local file=$work/run/$1
    shift
    cp "$file" "$work/before"
    "$@"
    check "$*: the bank is as it was" cmp "$file" "$work/before"
    check "$*: nothing beside it" equal "$(ls "$file"*)" "$file"
}

test_edits() {
    local full=$golden/bank_full.pth
    good bank get --rows 0-6 -o rows
    good bank get --bank "$full" --rows 0-3 -o unnamed
    run bank add --bank mine --input rows --json
    check "bank add --json" json '.output == "mine" and .first == 0 and .added == 7 and .rows == 7'
    run bank add --bank "$full" --bank beside --input unnamed --dtype int8
    check "bank add says where the rows are" matches '^beside: rows 257 to 260 added$' "$work/out"
    run bank info --bank beside --json
    check "bank add --dtype" json '.type == "I8" and .rows == 4 and .names == false'
    refuses 2 'needs --bank' bank add --input rows
    refuses 2 'needs pictures, or --input' bank add --bank mine
    refuses 2 "cannot be combined" bank add --bank mine --input rows picture.png
    refuses 2 "names is for --input" bank add --bank mine --names names picture.png
    keeps mine refuses 1 '^gmem: error: mine: row 0 of the bank has the name "[^"]+" already' bank add --bank mine --input rows
    keeps mine refuses 1 'mine: the bank.s rows have 192 elements, the new ones 48' bank add --bank mine --input unnamed
    keeps mine refuses 1 'mine: its rows are F32 and stay so' bank add --bank mine --input rows --dtype f16
    keeps mine refuses 1 'no such file' bank add --bank mine --input missing
    refuses 1 'bank_full.pth: rows of this file cannot be edited: it is a torch file' bank add --bank "$full" --input unnamed
    refuses 1 'new.pth: rows of this file cannot be edited: its name is torch' bank add --bank new.pth --input unnamed
    keeps mine refuses 1 '^gmem: error: ./mine: it is one of the bank.s earlier files' \
        bank add --bank mine --bank ./mine --input rows
    keeps mine refuses 1 '^gmem: error: ./mine: it is one of the bank.s earlier files' \
        bank remove --bank mine --bank ./mine 7
    refuses 1 'mine/x: cannot lock it for writing: a part of the path is no folder' bank add --bank mine/x --input rows
    refuses 1 'none/x: cannot lock it for writing: no such file or folder' bank add --bank none/x --input rows
    refuses 1 'cannot lock it for writing' bank add --bank /proc/x --input rows
    run convert unnamed -o nan
    printf '\000\000\300\177' | dd of="$work/run/nan" bs=1 conv=notrunc status=none seek=$(($(wc -c <"$work/run/nan") - 4))
    keeps beside refuses 1 '^gmem: error: nan: row 3 of the new ones is not finite' \
        bank add --bank "$full" --bank beside --input nan
    # names of their own, one of them taken
    printf 'one\ntwo\n\nfour\n' >"$work/run/names"
    run bank add --bank beside --input unnamed --names names
    check "bank add --names" matches '^beside: rows 4 to 7 added$' "$work/out"
    keeps beside refuses 1 'row 4 of the bank has the name "one" already' bank add --bank beside --input unnamed --names names
    # a link's file is written
    ln -s beside "$work/run/link"
    run bank remove --bank link ONE 0 --json
    check "bank remove --json" json '.removed == 2 and .rows == 6'
    check "bank remove follows links" test -L "$work/run/link"
    run bank remove --bank beside --rows 0-1,1 two
    check "bank remove says what is left" matches '^beside: 3 rows removed, 3 left in the bank$' "$work/out"
    refuses 2 'needs --rows' bank remove --bank beside
    refuses 2 'needs --bank' bank remove 3
    refuses 2 'gmem bank export' bank remove --bank beside --names names 3
    keeps beside refuses 1 'beside: no name "on" in the bank; nearest: ' bank remove --bank beside on
    keeps beside refuses 1 'row 3 of a bank of 3' bank remove --bank beside 3
    keeps beside refuses 1 'no row of the file would be left' bank remove --bank beside --rows 0-2
    keeps beside refuses 1 'row 5 is an earlier file.s: this one.s begin at 257' bank remove --bank "$full" --bank beside 5
    good bank export --bank mine --bank mine -o doubled
    keeps doubled refuses 1 '^gmem: error: doubled: rows 0 and 7 both have the name "copyright sign"' \
        bank remove --bank doubled 'copyright sign'
    # what is exported is the bank
    run bank export --bank "$full" --bank beside -o all --json
    check "bank export --json" json '.rows == 260 and .width == 48 and .type == "F32"'
    good bank get --bank "$full" --bank beside --rows 0-259 -o rows_before
    check "names that begin in a later file" matches 'names' <("$gmem" info "$work/run/rows_before")
    run bank info --bank "$full" --bank beside --json
    check "bank info: names that begin in a later file" json '.names'
    good bank get --bank all --rows 0-259 -o rows_after
    check "bank export keeps the rows" close_to rows_before features rows_after features 0
    good bank export -o own --dtype f16
    check "bank export of the built-in bank" cmp <("$gmem" bank info --json | jq .rows) <(cd "$work/run" && "$gmem" bank info --bank own --json | jq .rows)
    refuses 2 'needs -o' bank export
    refuses 1 'new.pth: banks are written as safetensors' bank export -o new.pth
    # pictures
    good synth dinov2-s/14 -o "$work/encoder"
    good sample $quick -s 1 -n 1 -o face.png
    cp "$work/run/face.png" "$work/run/other.png"
    head -c 300 "$work/run/face.png" >"$work/run/cut.png"
    run bank add --bank pictures --image-encoder "$work/encoder" face.png ../run/other.png --dtype bf16
    check "bank add of pictures" matches '^pictures: rows 0 to 1 added$' "$work/out"
    run bank info --bank pictures --json
    check "bank add of pictures: what they become" json '.width == 384 and .type == "BF16" and .names'
    good bank remove --bank pictures other.png
    keeps pictures refuses 1 'row 0 of the bank has the name "face.png" already' \
        bank add --bank pictures --image-encoder "$work/encoder" face.png
    keeps pictures refuses 1 '^gmem: error: cut.png: ' bank add --bank pictures --image-encoder "$work/encoder" other.png cut.png
    keeps mine refuses 1 'mine: the bank.s rows have 192 elements, the new ones 384' \
        bank add --bank mine --image-encoder "$work/encoder" other.png
    rm "$work/encoder"
    # another writer, a disk that is full, a folder that nobody may write to
    exec 9>"$work/run/mine.lock"
    flock 9
    refuses 1 '^gmem: error: mine: another writer is at it' bank remove --bank mine 0
    refuses 1 '^gmem: error: mine: another writer is at it' bank add --bank mine --input rows
    refuses 1 '^gmem: error: mine: another writer is at it' bank export --bank rows -o mine
    refuses 1 '^gmem: error: mine: another writer is at it' bank compress --bank rows -o mine
    exec 9>&-
    good bank remove --bank mine 0
    check "a lock that nobody holds hinders nobody" test ! -e "$work/run/mine.lock"
    environment="prlimit --fsize=100000"
    keeps own refuses 1 '^gmem: error: own: cannot write the file: too large for the file system' bank remove --bank own 0
    environment=
    if [ "$(id -u)" = 0 ]; then
        echo "a folder that is read-only is not for the superuser: not tested"
    else
        mkdir "$work/run/closed"
        cp "$work/run/mine" "$work/run/closed/mine"
        chmod 555 "$work/run/closed"
        keeps closed/mine refuses 1 'cannot lock it for writing: permission denied' bank remove --bank closed/mine 0
        chmod 755 "$work/run/closed"
    fi
}

# The pixels of a PNG as it stores them: what a bank is called stands beside them.
pixels() { tail -c "+$(grep -obUa IDAT "$1" | head -n 1 | cut -d : -f 1)" "$1" | cksum; }

test_compress() {
    local full=$golden/bank_full.pth
    run bank compress --bank "$full" --rank 16 -o small --json
    check "bank compress --json" json '.output == "small" and .rows == 257 and .width == 48 and .rank == 16 and
        .type == "F32" and (.energy - 0.73654716 | fabs) < 1e-6 and (.mean_cosine - 0.86121547 | fabs) < 1e-6 and
        (.least_cosine - 0.66568983 | fabs) < 1e-6 and .bytes_before == 50097 and .bytes_after < 21000'
    check "bank compress: the file's size" json ".bytes_after == $(wc -c <"$work/run/small")"
    run bank info --bank small --json
    check "bank compress makes a bank" json '.kind == "decomposed" and .rows == 257 and .width == 48'
    good bank get --bank small --rows 0-256 -o small.rows
    good bank get --bank "$golden/bank_dmd16.pth" --rows 0-256 -o published.rows
    check "bank compress is what was published" close_to small.rows features published.rows features 5e-6
    run bank compress --bank "$full" -o int8 --json
    check "bank compress is int8 by default" json '.rank == null and .type == "I8" and .energy > 0.9999 and
        .least_cosine > 0.9999 and .bytes_after < 14000'
    good bank get --bank "$full" --rows 0-256 -o full.rows
    good bank get --bank int8 --rows 0-256 -o int8.rows
    check "bank compress to int8" close_to int8.rows features full.rows features 0.01
    run bank compress --bank "$full" --bank "$full" --rank 9 --dtype bf16 -o both
    check "bank compress says what it cost" matches '^cosine  0\.[0-9]+ on average, 0\.[0-9]+ at least$' "$work/out"
    good bank compress --dtype bf16 -o named -q
    check "bank compress -q" empty "$work/out"
    good synth bank:2000x32:1 -o falling
    run bank compress --bank falling --rank 8 --json -o x8
    check "synth: a bank whose directions fall off" json '.energy > 0.6 and .energy < 0.8'
    refuses 2 'unknown architecture' synth bank:30x5: -o x
    refuses 2 'unknown architecture' synth bank:30x5:-1 -o x
    # the built-in model draws from them as they are
    good bank compress --dtype f16 -o same
    good bank compress --rank 64 --dtype f16 -o rank64
    good bank compress -o int8
    good sample $quick --memory 'cat face' pizza -s 3 -o full.png
    for bank in same rank64 int8; do
        good sample $quick --bank $bank --memory 'cat face' pizza -s 3 -o $bank.png
    done
    check "a bank in its own type draws the same" equal "$(pixels "$work/run/full.png")" "$(pixels "$work/run/same.png")"
    refuses 2 'needs -o FILE' bank compress
    refuses 2 'cannot be combined: int8' bank compress --rank 4 --dtype int8 -o x
    refuses 2 '--rank: expected' bank compress --rank 0 -o x
    refuses 1 'bank_full.pth: rank 49 of a bank of 257 rows of width 48' bank compress --bank "$full" --rank 49 -o x
    refuses 1 'missing: ' bank compress --bank missing -o x
    refuses 1 'none/x: ' bank compress -o none/x
    refuses 1 '^gmem: error: x.pth: banks are written as safetensors' bank compress -o x.pth
    printf '\000\000\300\177' | dd of="$work/run/full.rows" bs=1 conv=notrunc status=none seek=$(($(wc -c <"$work/run/full.rows") - 4))
    refuses 1 '^gmem: error: full.rows: row 513 is not finite' bank compress --bank "$full" --bank full.rows --rank 4 -o x
    environment="prlimit --fsize=100000"
    refuses 1 'x: cannot write the file: too large for the file system' bank compress -o x
    environment=
}

test_convert() {
    for type in f32 f16 bf16 int8; do
        good convert "$golden/dit_base.pth" --dtype $type -o $type
        run info $type --json
        check "convert --dtype $type says so" json ".metadata.dtype == \"$type\""
        check "convert carries the configuration" json '.metadata.config | fromjson | .model.num_heads == 4'
        good eval -m $type --input "$golden/dit_base.io.safetensors" -o v_$type # the heads are in the configuration
    done
    run convert "$golden/bank_full.pth" -o "$work/nan"
    printf '\000\000\300\177' | dd of="$work/nan" bs=1 conv=notrunc status=none seek=$(($(wc -c <"$work/nan") - 4))
    refuses 1 'nan: .* is not finite and has no int8 form' convert "$work/nan" --dtype int8 -o x
    check "convert to f32" close_to v_f32 v "$golden/dit_base.io.safetensors" y_checkpoint 1e-5
    check "convert to f16" close_to v_f16 v "$golden/dit_base.io.safetensors" y_checkpoint 2e-3
    check "convert to bf16" close_to v_bf16 v "$golden/dit_base.io.safetensors" y_checkpoint 2e-2
    check "convert to int8" close_to v_int8 v "$golden/dit_base.io.safetensors" y_checkpoint 3e-2
    good convert "$golden/dit_base.pth" --key model -o decoy
    good convert f16 -t 1 --backend cpu -o again
    check "converting again changes nothing" cmp "$work/run/f16" "$work/run/again"
    for form in zip legacy proto4; do
        good convert "$golden/container_$form.pth" --key . -o c
        for name in f32 f16 bf16 f64 i64 view_t view_slice nested.t; do
            check "convert container_$form: $name" close_to c $name "$golden/container.expect.safetensors" $name 0
        done
    done
    sed 's/BFloat16Storage/QUInt4x2Storage/g' "$golden/container_zip.pth" >"$work/quantised.pth"
    refuses 1 'quantised.pth: bf16: a tensor of a type that gmem does not read .torch.QUInt4x2Storage' \
        convert "$work/quantised.pth" -o x
    for type in f32 bf16 int8; do # int8 weights are floating-point ones in native form
        good convert int8 --dtype $type -o "int8_$type"
        run info "int8_$type" --json
        check "int8 to $type says so" json ".metadata.dtype == \"$type\""
        check "int8 to $type: the scales" json "([.tensors[] | select(.name | endswith(\".scale\"))] | length > 0) == $([ $type = int8 ] && echo true || echo false)"
        good eval -m "int8_$type" --input "$golden/dit_base.io.safetensors" -o v_again
        check "int8 to $type: the same weights" close_to v_again v v_int8 v $([ $type = bf16 ] && echo 2e-2 || echo 1e-6)
    done
    run info int8_f32 --json
    check "int8 to f32: no tensor stays int8" json '[.tensors[].type] | all(. == "F32")'
    good convert "$golden/bank_full.pth" --dtype int8 -o bank8
    run info bank8 --json
    check "an int8 bank" json '[.tensors[].name] == ["tensor", "tensor.scale"]'
    good bank get --bank "$golden/bank_full.pth" --rows 0 -o row
    good bank get --bank bank8 --rows 0 -o row8
    check "rows of an int8 bank" close_to row8 features row features 1e-2
}

test_sample() {
    run sample --steps 2 -s 1
    check "sample" equal $rc 0
    check "sample draws a grid into gmem.png" is_png "$work/run/gmem.png"
    check "sample says where" matches '^gmem.png: 16 pictures' "$work/out"
    check "sample says its seed" matches '^seed: 1$' "$work/err"
    check "sample says its backend" matches '^backend: cpu/' "$work/err"
    check "no progress bar in a file" eval '! grep -q "$(printf "\r")" "$work/err"'
    good sample $quick -s 1 -o one.png
    check "one picture" equal "$(png_size "$work/run/one.png")" 64x64
    for text in 'seed.1' 'rng.philox' 'sampler.euler' 'steps 3' 'network.built-in' 'rows.[0-9]' 'Software.gmem'; do
        check "PNG text: $text" grep -aEq "$text" "$work/run/one.png"
    done
    for method in ab2 ab3 DPMPP2M; do
        good sample --method $method --steps 4 --timestep-shift 0.5 --cfg-scale 2 --rows 7 -s 1 -o $method.png --json
        check "$method" json '.passes >= 3 and .passes <= 4'
        check "PNG text: $method" grep -aiq "sampler.$method" "$work/run/$method.png"
        check "PNG text: shift" grep -aq "timestep-shift 0.5" "$work/run/$method.png"
    done
    good sample $quick -s 1 --rows 3,5 --cache-threshold 0 -o off.png
    check "a threshold of 0 is none" eval '! grep -q reused "$work/err"'
    good sample $quick -s 1 --rows 3,5 -o without.png
    check "... and changes nothing" cmp "$work/run/off.png" "$work/run/without.png"
    good sample --method euler --steps 11 -s 1 --rows 3,5 --cache-threshold 1000 -o cached.png --json
    check "all but the first pass is reused" matches '^18 of 20 passes reused$' "$work/err"
    check "... as JSON" json '.passes == 10 and .picture_passes == 20 and .picture_passes_reused == 18'
    check "PNG text: threshold" grep -aq "cache-threshold 1000" "$work/run/cached.png"
    run sample $quick -o quiet.png -q
    check "-q silences standard output" empty "$work/out"
    check "-q silences standard error" empty "$work/err"
    run sample $quick -o verbose.png -v
    check "-v adds" matches 'passes' "$work/err"
    good sample $quick --memory 'CAT face' 'slice of pizza' 7 -s 3 -o three.png --json
    check "sample --json" json '.seed == 3 and (.rows | length) == 3 and .names[0] == "cat face" and .rows[2] == 7'
    run sample $quick -o random.png
    check "a seed is chosen and said" matches '^seed: [0-9]+$' "$work/err"
    # picture i of seed s depends on nothing else
    good sample -s 9 -n 5 --steps 3 -b 5 -o 'a%02d.png' -t 1
    good sample -s 9 -n 5 --steps 3 -b 2 -o 'b%02d.png'
    for i in 00 01 02 03 04; do
        check "picture $i in batches of 5 and of 2" cmp "$work/run/a$i.png" "$work/run/b$i.png"
    done
    good sample $quick --memory pizza -o pizza.png --json
    check "words of one name are enough" json '.names == ["slice of pizza"]'
    refuses 1 'nearest' sample --memory 'face with'
    good sample $quick --mix 'cat face' 'pizza' --frames 3 -s 4 -o mix.png --json
    check "the frames of a mixture" json '.alpha == [0, 0.5, 1]'
    local like=$PWD/examples/like
    good sample $quick --like "$like/drawn-tree.png" "$like/rainbow-flag.png" -n 3 -s 5 -o like.png --json
    check "--like draws so many of each picture" json '(.like | length) == 6 and (.like[5] | endswith("flag.png")) and
        (.made_with.settings | contains("cfg-scale 7.75, cfg-interval 0.89")) and (has("names") | not)'
    check "a sheet of originals and variations" equal "$(png_size "$work/run/like.png")" 296x180
    cp "$like/drawn-tree.png" "$work/run/tree.png"
    refuses 1 '^gmem: error: ./tree.png: it is one of the pictures to read' sample $quick --like tree.png -o ./tree.png
    cp "$like/drawn-tree.png" "$work/run/gmem.png"
    refuses 1 '^gmem: error: gmem.png: it is one of the pictures to read' sample $quick --like gmem.png
    check "--like leaves its picture as it was" cmp "$like/drawn-tree.png" "$work/run/tree.png"
    good sample $quick --like "$like/drawn-tree.png" -n 2 -s 5 --strength 0.5 --cfg-scale 1 -o 'l%d.png' --json
    check "--strength mixes rows in" json '(.rows | length) == 2 and .made_with.strength == "0.5" and
        (.made_with.settings | contains("cfg") | not)'
    good sample $quick --mix "$like/drawn-tree.png" pizza --frames 3 -s 5 -o mixed.png --json
    check "--mix takes pictures" json '.alpha == [0, 0.5, 1] and (.made_with.mix | endswith("drawn-tree.png,493 linear") | not)'
    check "and shows them beside the frames" equal "$(png_size "$work/run/mixed.png")" 296x94
    good sample $quick --memory "$like/pizza-on-blue.png" 3 -s 5 -o both.png --json
    check "--memory takes pictures among rows" json '(.rows[0] | endswith("blue.png")) and .rows[1] == 3 and
        (.made_with.settings | contains("cfg") | not)'
    good sample $quick --mix 3 4 --mix-method mask --frames 2 -s 4 -o 'frame%d.png'
    check "files are numbered from 0" test -f "$work/run/frame0.png" -a -f "$work/run/frame1.png"
    for rng in torch-cpu torch-cuda; do
        good sample $quick --rng $rng -s 1 -n 2 -o $rng.png
    done
    run sample $quick -s 1 --show -o show.png
    check "--show prints blocks" grep -q '38;2;' "$work/out"
    good sample $quick --rows 0-8 -s 2 -o grid.png
    good sample -m "$golden/lightningdit_class.pt" --heads 4 --label 3 9 --autoencoder "$golden/vae_f8.pt" $quick -o class.png
    check "labels" matches 'no --latent-stats' "$work/err"
}

# interrupted NAME ARGUMENT...: Ctrl-C while the command works: 130, one line, no file.
interrupted() {
    local name=$1 before
    shift
    before=$(files)
    (cd "$work/run" && exec "$gmem" "$@" >"$work/out" 2>"$work/err") &
    sleep 1
    kill -INT $!
    wait $!
    check "Ctrl-C in $name: exit code" equal $? 130
    check "Ctrl-C in $name: the error" equal "$(cat "$work/err")" "gmem: error: interrupted"
    check "Ctrl-C in $name: nothing on standard output" empty "$work/out"
    check "Ctrl-C in $name: no file is left" equal "$(files)" "$before"
}

# pixels_of PICTURE ARGUMENT...: the numbers of the picture that the command draws, for a picture as wide as a terminal.
pixels_of() {
    local picture=$1
    shift
    run sample --steps 10 -s 5 -n 1 --show -o shown.png "$@"
    check "gmem sample $*" equal $rc 0
    grep -o '[34]8;2;[0-9;]*' "$work/out" | tr ';' '\n' >"$work/$picture.pixels"
}

# Whether two pictures differ by at most 1 of 255.
nearly_the_same() {
    [ -s "$work/$1.pixels" ] && paste "$work/$1.pixels" "$work/$2.pixels" |
        awk 'NF != 2 || $1 - $2 > 1 || $2 - $1 > 1 { print; bad = 1 } END { exit bad }'
}

# What the flags say of a backend, whether there is an OpenCL device or not.
test_backends() {
    local none="OCL_ICD_VENDORS=$work/nowhere" # where the loader finds no driver
    mkdir "$work/cache"
    chmod 700 "$work/cache"
    refuses 2 '--isa is for the processor' sample --backend opencl --isa avx2
    refuses 1 "device '0' is the processor|driver|library" sample --backend opencl --device 0
    refuses 1 'cache folder' sample --cache-dir "$work/nowhere"
    refuses 1 'is not a folder' sample --cache-dir "$gmem"
    mkdir -m 777 "$work/open"
    refuses 1 'open: others may write' sample --cache-dir "$work/open"
    good sample $quick --cache-dir "$work/cache" --backend cpu -o device.png
    refuses 2 '--tune needs a folder' devices --tune
    refuses 2 '--seconds needs --tune' devices --seconds 3
    refuses 1 'is not a folder' devices --tune --cache-dir "$gmem"
    environment=$none
    refuses 1 'driver|library' sample --backend opencl
    refuses 1 'driver|library' devices --tune --cache-dir "$work/cache"
    refuses 1 'no CPU kernel computes in f16' sample --backend auto --dtype f16
    good sample $quick -o device.png
    check "without OpenCL the CPU computes" matches '^backend: cpu/' "$work/err"
    good devices
    check "without OpenCL: why" matches '^no OpenCL device: ' "$work/err"
    environment=
}

test_opencl() {
    local hidden=${OCL_ICD_VENDORS-}
    unset OCL_ICD_VENDORS # tests/run.sh hides the devices
    test_opencl_devices
    [ -z "$hidden" ] || export OCL_ICD_VENDORS=$hidden
}

test_opencl_devices() {
    local device flags file
    run devices --json --cache-dir "$work/cache"
    check "devices --json" json '.[0].device == 0 and (.[1:] | all(.backend == "opencl"))'
    device=$(jq '[.[1:][] | select(.usable)][0].device // empty' "$work/out")
    if [ -z "$device" ]; then
        echo "no OpenCL device that can be used is here"
        return
    fi
    check "devices --json, what a device is" json '.[1] | .name and .platform and .driver and .version and .kind and
        .memory_bytes > 0 and (.types | index("f32")) and (.self_test == "passed" or .usable == false)'
    check "the cache keeps programs" eval '[ -n "$(ls "$work/cache")" ]'
    good devices --cache-dir "$work/cache"
    check "devices" matches "^$device  opencl  " "$work/out"
    good devices --device "$device" --json --cache-dir "$work/cache"
    check "devices --device" json "length == 1 and .[0].device == $device"
    refuses 1 "no device '33'" sample --backend opencl --device 33
    refuses 1 "no device 'nobody'" sample --backend opencl --device nobody
    refuses 1 "device '0' is the processor" sample --backend opencl --device 0
    refuses 2 'cannot be combined with a device' sample --device "$device" --isa avx2
    flags="--backend opencl --device $device --cache-dir $work/cache"
    pixels_of cpu --backend cpu
    pixels_of opencl $flags
    check "the backend is said" matches '^backend: opencl/' "$work/err"
    check "OpenCL draws what the CPU does" nearly_the_same opencl cpu
    pixels_of named --device "$(jq -r '.[0].name' "$work/out" 2>/dev/null || "$gmem" devices --json | jq -r ".[$device].name")" \
        --cache-dir "$work/cache"
    check "a device by its name" cmp "$work/named.pixels" "$work/opencl.pixels"
    file=$golden/dit_base
    good eval $flags -m "$file.pth" --heads 4 --input "$file.io.safetensors" -o v
    check "eval on OpenCL" close_to v v "$file.io.safetensors" y_checkpoint 1e-5
    run info v --json
    check "what it writes says the backend" json '.metadata.backend | startswith("opencl/")'
    check "what it writes says the type" json '.metadata.dtype == "f32"'
    good eval $flags --dtype f16 -m "$file.pth" --heads 4 --input "$file.io.safetensors" -o v
    check "eval in f16" close_to v v "$file.io.safetensors" y_checkpoint 5e-3
    run info v --json
    check "f16 is said" json '.metadata.dtype == "f16"'
    run bench network --json $flags
    check "bench network" json '(.backend | startswith("opencl/")) and .kernels == "opencl" and .gflops > 0 and
        (.fraction_of_peak == null or .fraction_of_peak > 0)'
    run bench autoencoder --json $flags
    check "bench autoencoder" json '(.backend | startswith("opencl/")) and .gflops > 0'
    # no time: the own kernels are measured all the same, and what is known is kept
    run devices --tune --seconds 1 --device "$device" --cache-dir "$work/cache" --json
    check "devices --tune" json '(.shapes | length) == 12 and any(.shapes[]; .own_gflops > 0 and .choice)'
    check "devices --tune keeps a file" eval 'ls "$work/cache" | grep -q "^tuning-"'
    run eval $flags -v -m "$file.pth" --heads 4 --input "$file.io.safetensors" -o v
    check "the file is used" matches 'tuned parameters of' "$work/err"
    check "eval, tuned" close_to v v "$file.io.safetensors" y_checkpoint 1e-5
    for file in "$work"/cache/tuning-*; do
        printf 'nonsense' >"$file"
    done
    run eval $flags -v -m "$golden/dit_base.pth" --heads 4 --input "$golden/dit_base.io.safetensors" -o v
    check "a damaged file is passed over" close_to v v "$golden/dit_base.io.safetensors" y_checkpoint 1e-5
    check "a damaged file is not used" eval '! matches "tuned parameters of" "$work/err"'
}

test_interrupts() {
    interrupted sample sample --steps 5000 -o long.png
    interrupted synth synth 1.6b/1 -o long.safetensors
    interrupted "synth in torch's format" synth 1.6b/1 -o long.pth
}

test_locale() {
    if localedef -i de_DE -f UTF-8 "$work/de_DE.UTF-8" 2>"$work/err"; then
        check "the locale writes commas" equal "$(env LOCPATH="$work" LC_ALL=de_DE.UTF-8 locale decimal_point)" ,
        environment="LOCPATH=$work LC_ALL=de_DE.UTF-8"
        good sample $quick --timestep-shift 0.3 -s 1 -o de.png --json
        check "numbers in a locale with commas" json .seconds
        environment=
        good sample $quick --timestep-shift 0.3 -s 1 -o c.png
        check "pictures in a locale with commas" cmp "$work/run/de.png" "$work/run/c.png"
    else
        echo "no locale with decimal commas can be made here"
    fi
}

test_install() {
    make -s install PREFIX="$work/prefix" >"$work/err" 2>&1
    check "make install" equal $? 0
    check "the installed command" "$work/prefix/bin/gmem" --version
    export PKG_CONFIG_PATH=$work/prefix/share/pkgconfig
    check "pkg-config" equal "$(pkg-config --modversion gmem)" "$("$work/prefix/bin/gmem" --version | sed 's/gmem //')"
    check "embed.c against the installed header" eval \
        '(cd examples && ${CC:-cc} -std=c99 -O1 $(pkg-config --cflags gmem) embed.c $(pkg-config --libs gmem) -o "$work/embed")'
    check "the embedding example runs" eval '"$work/embed"; [ $? = 2 ]'
    make -s install DESTDIR="$work/stage" PREFIX=/usr >"$work/err" 2>&1
    check "make install DESTDIR" test -x "$work/stage/usr/bin/gmem" -a -f "$work/stage/usr/include/gmem.h"
}

. tests/command_pictures.sh

parts=${*:2}
for part in ${parts:-general usage refusals networks benchmarks autoencoders banks search edits compress features builds killed_builds convert sample backends opencl interrupts \
    locale install}; do
    test_$part
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed != 0 ]

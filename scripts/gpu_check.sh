#!/usr/bin/env bash
# What a machine with a GPU must show beyond the tests, after `make CUDA=1` and `make tests`:
#   steps          200 steps of training in f32 and in bf16 against the same steps on another device
#   deterministic  two runs with deterministic_training in bf16: checkpoints equal bit by bit
#   sanitize       compute-sanitizer (memcheck, racecheck) over the tests of ops
# scripts/gpu_check.sh [--device cuda] [CHECK...]: all of them without a CHECK. With --device cpu (or
# DEVICE=cpu) it runs where there is no GPU: its own logic is checked so, against the device ref.
# REF: the device to compare with (cpu; for --device cpu: ref). STEPS (200). SIZE=small (seconds) or
# tiny (configs/train/tiny.yaml as it is; minutes on the CPU). OUT (runs/gpu-check). KEYS: keys for
# the runs on the device alone; any that changes the result must fail (KEYS=seed=7). SANITIZER: the
# tool's path. Ends with "N passed, N failed, N skipped"; exit code 0 or 1.
# Bounds. f32: each loss to 1e-5, each parameter tensor to 1e-4 by norm (cpu against ref: 6e-8, 2e-6).
# bf16 against f32: the losses to 2e-3 by norm and each to 1e-2, the tensor in the middle to 2e-2 by
# norm (cpu against ref: 3.5e-4, 1.8e-3, 6e-3). A learning rate off by 1 in 200 changes a loss by 3e-3.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
. scripts/env.sh
device=${DEVICE:-cuda}; checks=()
while [ $# -gt 0 ]; do
    case $1 in
    --device) device=${2:?--device wants a name}; shift;;
    steps|deterministic|sanitize) checks+=("$1");;
    -h|--help) sed -n '2,16p' "$0" | sed 's/^# \{0,1\}//'; exit 0;;
    *) echo "unknown: $1 (steps, deterministic, sanitize, --device D)"; exit 64;;
    esac
    shift
done
[ ${#checks[@]} -gt 0 ] || checks=(steps deterministic sanitize)
ref=${REF:-$([ "$device" = cpu ] && echo ref || echo cpu)}
steps=${STEPS:-200}; size=${SIZE:-small}; out=${OUT:-runs/gpu-check}
BUILD=${BUILD:-build/release}
[ -x ./osp ] || { echo "no ./osp: make CUDA=1"; exit 2; }
pass=0; fail=0; skip=0
result() { # what, 0 or 1
    if [ "$2" = 0 ]; then pass=$((pass+1)); echo "  ok   $1"; else fail=$((fail+1)); echo "  FAIL $1"; fi
}
skipped() { skip=$((skip+1)); echo "  skip $1: $2"; }

small=(model_config.dim=32 model_config.ffn_dim=64 model_config.num_heads=2 model_config.freq_dim=32
    model_config.num_layers=4 model_config.num_full_blocks=2 model_config.skiparse_strict=false
    model_config.text_len=16 data_config.global_batch_size=2
    data_config.dataset_config.text_max_length=16 data_config.dataset_config.sample_height=16
    data_config.dataset_config.sample_width=16 data_config.dataset_config.sample_num_frames=4)
case $size in small) keys=("${small[@]}");; tiny) keys=();; *) echo "SIZE=$size: small or tiny"; exit 64;; esac

# train NAME DEVICE TYPE KEY...: a run in OUT/NAME from the start; its log beside it
train() {
    local name=$1 on=$2 type=$3; shift 3
    rm -rf "${out:?}/$name"
    ./osp train configs/train/tiny.yaml device="$on" weight_dtype="$type" output_dir="$out/$name" \
        training_iteration="$steps" log_interval=1 save_interval="$steps" validation.interval=0 \
        data_config.dataset_config.metafile_or_dir_path="$out/clips-$size.h5" ${keys[@]+"${keys[@]}"} "$@" \
        </dev/null >"$out/$name.log" 2>&1 && return 0
    echo "    run $name ended with $?; the end of $out/$name.log:"; tail -n 5 "$out/$name.log" | sed 's/^/    /'
    return 1
}

# judge NAME REFERENCE f32|bf16: losses of every step and parameters of the last checkpoints
judge() {
    ./osp diff --json "$out/$1" "$out/$2" >"$out/$1.diff.json" # 1: there are differences
    [ $? -le 1 ] || { echo "    osp diff $out/$1 $out/$2 failed"; return 1; }
    python3 - "$out" "$1" "$2" "$3" "$steps" <<'P'
import json, math, sys
out, name, ref, kind, steps = sys.argv[1:6]
def losses(run):
    rows = [json.loads(line) for line in open(f"{out}/{run}/metrics.jsonl")]
    return [r["train/loss"] for r in rows if "train/loss" in r]
a, b = losses(name), losses(ref)
bad = [f"{len(a)} and {len(b)} losses, expected {steps}"] if not len(a) == len(b) == int(steps) else []
diff = json.load(open(f"{out}/{name}.diff.json"))
odd = [k for k in ("shape", "only in A", "only in B") if diff["counts"][k]]
if odd: bad.append("tensors: " + ", ".join(odd))
if not diff["step_a"] == diff["step_b"] == int(steps): bad.append("the checkpoints are of other steps")
params = [(t["relative_l2"], t["name"]) for t in diff["tensors"] if t["kind"] == "model"]
if diff["counts"]["different"] and not params: bad.append("no parameters are compared")
# a NaN fails every bound: it is not <= anything
worst = max((abs(x - y) / y for x, y in zip(a, b)), key=lambda e: (math.isnan(e), e), default=math.nan)
norm = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b)) if b else math.nan
top = max(params, key=lambda p: (math.isnan(p[0]), p[0]), default=(0, "none"))
middle = sorted(p[0] for p in params)[len(params) // 2] if params else 0
checks = ([("worst loss", worst, 1e-5), (f"parameters ({top[1]})", top[0], 1e-4)] if kind == "f32" else
          [("losses by norm", norm, 2e-3), ("worst loss", worst, 1e-2), ("middle of the parameters", middle, 2e-2)])
print("    " + "; ".join(f"{n} {v:.2g} of {m:g}" for n, v, m in checks))
bad += [f"{n}: {v:.3g} > {m:g}" for n, v, m in checks if not v <= m]
for line in bad: print("    " + line)
sys.exit(bool(bad))
P
}

check_steps() {
    train reference "$ref" fp32 || { result "$steps steps on $ref, to compare with" 1; return; }
    local type kind
    for type in fp32 bf16; do
        kind=$([ $type = bf16 ] && echo bf16 || echo f32)
        train "$kind" "$device" $type ${KEYS:-} && judge "$kind" reference $kind
        result "$steps steps in $kind on $device against f32 on $ref" $?
    done
}

check_deterministic() {
    train first "$device" bf16 deterministic_training=true &&
        train second "$device" bf16 deterministic_training=true ${KEYS:-} &&
        ./osp diff "$out/first" "$out/second" | tail -n 1 | sed 's/^/    /'
    result "$steps deterministic steps in bf16 on $device, twice: equal bits" $?
}

check_sanitize() {
    local tool=${SANITIZER:-$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)}
    local kind t log program
    if [ -z "$tool" ]; then skipped "compute-sanitizer" "the tool is not on this machine (it is part of the CUDA toolkit)"; return; fi
    if [ "$device" != cuda ] && [ -z "${SANITIZER:-}" ]; then skipped "compute-sanitizer" "it looks at kernels on a GPU, not at device $device"; return; fi
    for kind in memcheck racecheck; do
        for t in ops_rows ops_fused ops_policy ops_exact ops; do
            program=$BUILD/tests/test_$t; log=$out/$kind-$t.log
            [ -x "$program" ] || { echo "    no $program: make tests"; result "$kind: test_$t" 1; continue; }
            # the tool's exit code is 99 where it found something, else the program's own
            OPS_DEVICE=$device timeout 900 "$tool" --tool $kind --error-exitcode 99 "$program" -f </dev/null >"$log" 2>&1
            local rc=$?
            # a program that found no device has tested nothing
            grep -qE '^[1-9][0-9]* passed, 0 failed' "$log" || { [ $rc = 0 ] && rc=1; }
            [ $rc = 0 ] || { echo "    exit code $rc; the end of $log:"; tail -n 5 "$log" | sed 's/^/    /'; }
            result "$kind: test_$t" $rc
        done
    done
}

mkdir -p "$out"
for c in "${checks[@]}"; do echo "== $c"; "check_$c"; done
echo "$pass passed, $fail failed, $skip skipped"
[ "$fail" = 0 ] && [ $((pass + skip)) -gt 0 ]

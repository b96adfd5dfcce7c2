#!/usr/bin/env bash
# One pass over a GPU machine from a bare checkout, no network: correctness of every kernel on the device, kernels and
# whole steps against their peers, profiles. Of a machine that is lent for minutes the most important comes first, and
# what was done or timed is kept: run it again, and it goes on. Short tables come last. STAGES="NAME ..." runs only those.
#   bench/gpu.sh [RESULTS FOLDER] [SECONDS IN ALL]
# Needs torch, triton, and what `requirements.lock` pins of tyro, tomli-w, matplotlib, rich, pytest and pytest-benchmark;
# transformers and liger-kernel add their rows where they are. Takes from build/gpu-kit, where there is one, what
# bench/gpu-kit.sh put there: such packages, kernels compiled ahead, a corpus (else the training run reads python-stdlib). With $OUT, results come there as an archive too.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(mkdir -p "${1:-$root/build/gpu}" && cd "${1:-$root/build/gpu}" && pwd)
end=$((SECONDS + ${2:-540}))
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
kit=${KIT:-$root/build/gpu-kit}
tree=$out/tree/hotplate
mkdir -p "$tree"
for part in kernels model train bench; do ln -sfn "$root/$part" "$tree/$part"; done
export PYTHONPATH=$out/tree:$kit/packages${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=$out/triton
cd "$out" || exit 2
"$python" -c 'import torch, tyro, tomli_w, rich, matplotlib, pytest, pytest_benchmark' || { echo "error: $python lacks one of torch, tyro, tomli_w, rich, matplotlib, pytest, pytest_benchmark; run bench/gpu-kit.sh where there is a network, and carry build/gpu-kit"; exit 2; }
if [ -e "$kit/kernels.tar.gz" ] && [ ! -e triton ]; then
    mkdir triton && tar -xzf "$kit/kernels.tar.gz" -C triton && "$python" -m hotplate.bench.kernel_cache triton
fi

left() { echo $((end - SECONDS)); }
stage() { # NAME MOST-SECONDS COMMAND...
    local name=$1 most=$2 begin=$SECONDS; shift 2
    [ -e "$name.done" ] && return
    [[ -n ${STAGES:-} && " $STAGES " != *" $name "* ]] && return
    [ "$(left)" -lt 15 ] && { echo "== $name: not begun, no time left"; return; }
    [ "$most" -gt "$(left)" ] && most=$(left)
    timeout -k 5 "$most" "$@" >"$name.log" 2>&1
    local code=$?
    case $code in
    0) touch "$name.done"; echo "== $name: $((SECONDS - begin)) s" ;;
    75) echo "== $name: goes on next time, after $((SECONDS - begin)) s" ;;
    *) echo "== $name: FAILED ($code) after $((SECONDS - begin)) s"; tail -n 5 "$name.log" ;;
    esac
}
quick=${QUICK:+--quick}
rows=${QUICK:+2}
data=$([ -e "$kit/data" ] && echo "$kit/data" || echo python-stdlib)
budget=$([ -n "$quick" ] && echo 5s || echo 40s)
check() { # NAME MOST-SECONDS ARGUMENTS...
    local name=$1 most=$2; shift 2
    stage "$name" "$most" "$python" -m hotplate.bench.device_check --device "$device" ${IMPL:+--impl $IMPL} "$@"
}
bench() { # NAME MOST-SECONDS FILE ARGUMENTS...: cases that FILE has are not timed again
    local name=$1 most=$2 file=$3; shift 3
    [ "$most" -gt "$(left)" ] && most=$(left)
    stage "$name" "$most" "$python" -m hotplate.bench --device "$device" --json "$out/$file.json" --add --seconds $((most * 3 / 4)) $quick "$@"
}
profiled() { # MODEL
    stage "profile-$1" 60 "$python" -c "import sys; from hotplate.bench.commands.profile import main; sys.exit(main(sys.argv[1:]))" \
        "$1" --train.device "$device" --train.batch "${rows:-32}" --out "profile-$1"
}
models=(${MODELS:-gpt-small qlstm-small lstm-small})
rooms=(${ROOMS:-attention cross_entropy qlstm lstm mlp rmsnorm layernorm rotary adamw newton_schulz lstm_dense lstm_diagonal})
slow=(reference eager flex "loop of torch operations" "step loop" "block matrix") # take seconds a call, or to compile

stage machine 30 "$python" -c "import json, torch; from hotplate.train.environment import environment as e; print(json.dumps(e(torch.device('$device'))))"
check check-quick 90 --quick
bench ours-steps 150 ours step --only hotplate "hotplate, compiled"
bench ours-rooms 90 ours "${rooms[@]}" --only triton native
for model in "${models[@]:0:1}"; do profiled "$model"; done
stage train 120 "$python" "$root/train/main.py" "${models[0]}" --device "$device" --data.source "$data" --evaluation.splits validation \
    --budget "$budget" --run.folder train --run.resume auto ${QUICK:+--batch 2}
bench peers-steps 150 peers step --without "${slow[@]}"
bench peers-rooms 120 peers "${rooms[@]}" --without "${slow[@]}"
check check 240 $quick
for model in "${models[@]:1}"; do profiled "$model"; done
bench all 600 all step "${rooms[@]}"
if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    stage memcheck 240 compute-sanitizer --tool memcheck "$python" -m hotplate.bench.device_check --quick --dtypes bfloat16
fi
echo; cat check*.log 2>/dev/null | grep -E "WRONG|refused|wrong$" | sort | uniq -c | sort -rn | head -n 20
for log in ours-steps peers-steps ours-rooms peers-rooms all; do [ -e "$log.log" ] && grep -E "│|┃|error above" "$log.log"; done
for log in profile-*.log; do [ -e "$log" ] || continue; grep -m1 "tok/s" "$log"; sed -n '/^largest gaps/,/^trace/p' "$log"; done
[ ! -e train.done ] || sed -n '/━ hours/,/^loss curve/p' train.log
[ -z "${OUT:-}" ] || tar -czf "$OUT/gpu.tar.gz" --exclude=./triton --exclude=./tree --exclude=trace.json --exclude=memory.pickle .

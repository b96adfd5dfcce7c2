#!/usr/bin/env bash
# One pass over a GPU machine from a bare checkout, no network: correctness of every kernel on the device, kernels and
# whole steps against their peers, throughput and profiles of the models. Resumable: a stage whose file is there is
# skipped. Short tables come last. Needs torch, triton, and what `requirements.lock` pins of tyro, tomli-w, matplotlib,
# rich, pytest and pytest-benchmark; transformers and liger-kernel add their rows where they are.
#   bench/gpu.sh [RESULTS FOLDER] [SECONDS PER STAGE]
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(mkdir -p "${1:-$root/build/gpu}" && cd "${1:-$root/build/gpu}" && pwd)
limit=${2:-240}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
tree=$out/tree/hotplate
mkdir -p "$tree"
for part in kernels model train bench; do ln -sfn "$root/$part" "$tree/$part"; done
export PYTHONPATH=$out/tree${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=$out/triton
cd "$out" || exit 2
"$python" -c 'import torch, tyro, tomli_w, rich, matplotlib, pytest, pytest_benchmark' || { echo "error: $python lacks one of torch, tyro, tomli_w, rich, matplotlib, pytest, pytest_benchmark; carry wheels and put them on PYTHONPATH"; exit 2; }

stage() { # NAME COMMAND...
    local name=$1; shift
    [ -e "$name.done" ] && { echo "== $name: done before"; return; }
    echo "== $name: $*"
    if timeout "$limit" "$@" >"$name.log" 2>&1; then touch "$name.done"; else echo "== $name: FAILED ($?)"; tail -n 5 "$name.log"; fi
}
quick=${QUICK:+--quick}
rows=${QUICK:+2}
stage machine "$python" -c "import json, torch; from hotplate.train.environment import environment as e; print(json.dumps(e(torch.device('$device'))))"
stage check "$python" -m hotplate.bench.device_check --device "$device" ${IMPL:+--impl $IMPL} $quick
for bench in qlstm lstm lstm_dense lstm_diagonal attention cross_entropy rmsnorm layernorm mlp rotary adamw newton_schulz step; do
    stage "bench-$bench" "$python" -m hotplate.bench "$bench" --device "$device" --json "$out/bench-$bench.json" $quick
done
for model in ${MODELS-gpt-small qlstm-small lstm-small}; do
    stage "profile-$model" "$python" -c "import sys; from hotplate.bench.commands.profile import main; sys.exit(main(sys.argv[1:]))" \
        "$model" --train.device "$device" --train.batch "${rows:-32}" --out "profile-$model"
done
if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    stage memcheck compute-sanitizer --tool memcheck "$python" -m hotplate.bench.device_check --quick --dtypes bfloat16
fi
echo; grep -hE "WRONG|refused|wrong$" check.log | sort | uniq -c | sort -rn | head -n 20
for log in bench-*.log; do grep -E "│|┃|error above" "$log"; done
for log in profile-*.log; do grep -m1 "tok/s" "$log"; sed -n '/^largest gaps/,/^trace/p' "$log"; done

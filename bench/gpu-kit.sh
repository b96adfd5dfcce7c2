#!/usr/bin/env bash
# What bench/gpu.sh wants beside a checkout on a machine that has torch and triton and no network: build/gpu-kit with the
# packages that such machines lack, and every kernel compiled ahead. Fails where code for the GPU does not run on a
# stand-in. PYTHON has the versions of Python, torch and triton of that machine; a quarter of an hour on two cores.
#   bench/gpu-kit.sh [PYTHON]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-python3}
kit=$root/build/gpu-kit
tree=$root/build/gpu-kit-tree/hotplate
mkdir -p "$kit" "$tree"
for part in kernels model train bench; do ln -sfn "$root/$part" "$tree/$part"; done
rm -rf "$kit/packages" "$root/build/gpu-kit-kernels"
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$kit/packages" -c "$root/requirements.lock" \
    tyro docstring_parser typeguard tomli-w pytest pytest-benchmark py-cpuinfo ${PACKAGES:-}
export PYTHONPATH=$(dirname "$tree"):$kit/packages${PYTHONPATH:+:$PYTHONPATH}
"$python" -W ignore -m hotplate.bench.stand_in.rehearse "$root/build/gpu-kit-kernels" ${PARTS:-} ${QUICK:+--quick}
tar -czf "$kit/kernels.tar.gz" -C "$root/build/gpu-kit-kernels" .
du -sh "$kit"/*

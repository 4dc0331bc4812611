#!/usr/bin/env bash
# What training needs on an offline machine that already has PyTorch, NumPy, pandas, pyarrow,
# PyYAML and TensorBoard: wheels in one folder, at the versions of constraints.txt.
#
#   bench/carry.sh FOLDER [CUDA [PYTHON]]     bench/carry.sh build/wheels 130 3.12
#
# CUDA is that of the machine's torch (13.0 is 130, the default), PYTHON its Python (default: this
# one's). There, bench/carried.sh installs them. Needs git, pip and an index; x86-64 Linux only.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

[[ $# -ge 1 && $# -le 3 ]] || fail "usage: bench/carry.sh FOLDER [CUDA [PYTHON]]"
folder=$1 cuda=${2:-130}
[[ $cuda =~ ^[0-9]{3}$ ]] || fail "CUDA: $cuda: must be digits alone, as 130 for 13.0"
version=${3:-$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
[[ $version =~ ^3\.[0-9]+$ ]] || fail "PYTHON: $version: must be like 3.12"
[[ -z $(ls -A "$folder" 2>/dev/null) ]] || fail "$folder: not empty: two versions would collide"
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH=$root

packages=(
    accelerate annotated-types anyio bitsandbytes click datasets dill filelock fsspec ftfy h11
    hypothesis iniconfig pluggy pygments pytest sortedcontainers
    httpcore2 httpx2 huggingface_hub idna multiprocess nh3 packaging peft psutil pydantic
    pydantic_core python-dateutil regex safetensors tokenizers tqdm transformers trl truststore
    typing-inspection typing_extensions wcwidth xxhash
)
# pip takes the names of platforms as they stand, never an older one for a newer.
platforms=()
for glibc in 2_28 2_27 2_24 2_17 2014 2010 1; do
    case $glibc in
        *_*) platforms+=(--platform "manylinux_${glibc}_x86_64") ;;
        *) platforms+=(--platform "manylinux${glibc}_x86_64") ;;
    esac
done

partial=$(mktemp -d)
trap 'rm -rf "$partial"' EXIT
mkdir "$partial/wheels" "$partial/source"
python -m pip download -qq --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --constraint "$root/constraints.txt" \
    --dest "$partial/wheels" "${packages[@]}"
python "$root/bench/trim_wheel.py" "$partial"/wheels/bitsandbytes-*.whl "$cuda"
# Our own wheel brings the version and the command; the code that runs is the checkout's.
git -C "$root" archive HEAD | tar -x -C "$partial/source"
python -m pip wheel -qq --no-deps --wheel-dir "$partial/wheels" "$partial/source"

mkdir -p "$folder"
mv "$partial"/wheels/*.whl "$folder"
count=$(find "$folder" -name '*.whl' | wc -l)
echo "$folder: $count wheels, $(du -sm "$folder" | cut -f1) MB, Python $version, CUDA $cuda"

#!/usr/bin/env bash
# Run a command with the wheels that bench/carry.sh brought, on a machine without a network.
#
#   bench/carried.sh FOLDER COMMAND...     bench/carried.sh build/wheels python3 bench/micro_gpu.py
#
# They are installed beside the folder, into FOLDER.site, when that is missing or older; nothing of
# the machine's own Python is changed. The checkout comes first on the path, then they, then the
# machine's own packages.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

[[ $# -ge 2 ]] || fail "usage: bench/carried.sh FOLDER COMMAND..."
folder=${1%/} site=${1%/}.site
shift
root=$(cd "$(dirname "$0")/.." && pwd)
compgen -G "$folder/*.whl" >/dev/null || fail "$folder: no wheels there: bench/carry.sh $folder"
if [[ ! -e $site/.installed || -n $(find "$folder" -newer "$site/.installed") ]]; then
    rm -rf "$site"
    python3 -m pip install -qq --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "$folder"/*.whl
    touch "$site/.installed"
fi
site=$(cd "$site" && pwd)
export PYTHONPATH=$root:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH HF_HUB_OFFLINE=1
exec "$@"

#!/usr/bin/env bash
# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
# On a machine without a network: installs what benchmarks/offline.py has packed, runs one part.
#
#   bash benchmarks/offline.sh FOLDER OUT gpu.py --part inference --case resnest50
#   bash benchmarks/offline.sh FOLDER OUT camvid.py run --recipe resnest50 --minutes 7
#   bash benchmarks/offline.sh FOLDER OUT tests
#
# Results go to OUT. PYTHON names the Python that has torch; SITE the folder to install into.
set -euo pipefail
if [ $# -lt 3 ] || [ ! -d "$1/wheels" ]; then
	echo "usage: bash benchmarks/offline.sh FOLDER OUT gpu.py|camvid.py|tests [ARGUMENTS]" >&2
	exit 2
fi
folder=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
job=$3
shift 3
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
site=${SITE:-$(mktemp -d)}
if [ ! -e "$site/.installed" ]; then
	"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
		--disable-pip-version-check --target "$site" "$folder"/wheels/*.whl
	touch "$site/.installed"
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export MMSEG_RESNEST_DATA="$folder" CUBLAS_WORKSPACE_CONFIG=:4096:8
BENCHMARK_COMMIT=$(cat "$folder/COMMIT" 2>/dev/null || true)
export BENCHMARK_COMMIT
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/inductor}
case $job in
gpu.py | camvid.py) ;;
tests)
	# Not the repository's settings: they ask for one version of pytest and its plugins.
	"$python" -m pytest -c /dev/null --rootdir "$PWD" -p no:cacheprovider -q -rs \
		tests/gpu tests/kernels/triton_checks.py "$@" \
		2>&1 | tee "$out/tests.log"
	exit
	;;
*)
	echo "error: $job: must be gpu.py, camvid.py or tests" >&2
	exit 2
	;;
esac
case $job in
gpu.py) set -- "$@" --out "$out" ;;
camvid.py) [ "${1:-}" = report ] || set -- "$@" --out "$out" ;;
esac
exec "$python" -W ignore "benchmarks/$job" "$@"

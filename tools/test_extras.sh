#!/usr/bin/env bash
# The tests that want large extras, each with an environment of its own under runs/extras (made once, reused):
#
#   tools/test_extras.sh             all of them; `make test-all` calls it after the other tests
#   tools/test_extras.sh cuda        CUDA's functions, as cuda-bindings declares them: 110 MB on disk, no GPU
#   tools/test_extras.sh rtx         NVIDIA's TensorRT-RTX parser and builder on our graphs: 300 MB, no GPU
#   tools/test_extras.sh lerobot     LeRobot v2.1 and v3.0 read what we write, and the reverse: 1.5 GB
#
# Every extra is tried, also when one before it fails; the exit status says whether all passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
extras=$PWD/runs/extras
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH

# beside NAME PINS TESTS...: runs tests with what PINS name in a folder of its own, which Python sees beside .venv.
beside() {
  local folder=$extras/$1 pins=$2
  shift 2
  if [[ ! -f $folder/pins.txt || $(<"$folder/pins.txt") != "$pins" ]]; then
    rm -rf "$folder"
    # shellcheck disable=SC2086  # a list of requirements
    "$python" -m pip install --quiet --no-deps --target "$folder" $pins || return
    echo "$pins" >"$folder/pins.txt"
  fi
  PYTHONPATH=$folder "$python" -m pytest "$@"
}

pins() { sed 's/ *#.*//' "requirements/$1.txt" | grep "$2"; }

cuda() { beside cuda "$(pins gpu '^cuda-')" tests/unit/test_policy_engine_files.py; }

rtx() { beside rtx "$(pins rtx .)" tests/rtx; }

lerobot() { tools/lerobot_check.sh "$extras/lerobot"; }

(($#)) || set -- cuda rtx lerobot
failed=()
for name in "$@"; do
  case $name in
    cuda | rtx | lerobot) "$name" || failed+=("$name") ;;
    *) echo "tools/test_extras.sh: unknown extra '$name'; use cuda, rtx or lerobot." >&2; exit 2 ;;
  esac
done
if ((${#failed[@]})); then
  echo "These extras failed: ${failed[*]}. One alone: tools/test_extras.sh ${failed[0]}" >&2
  exit 1
fi

#!/usr/bin/env bash
# The tests that want large extras, each with an environment of its own under runs/extras (made once, reused):
#
#   tools/test_extras.sh             all of them; `make test-all` calls it after the other tests
#   tools/test_extras.sh rtx         NVIDIA's TensorRT-RTX parser and builder on our graphs: a wheel of 147 MB, no GPU
#   tools/test_extras.sh lerobot     LeRobot v2.1 and v3.0 read what we write, and the reverse: 1.5 GB
#
# Every extra is tried, also when one before it fails; the exit status says whether all passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$PWD/.venv/bin/python
extras=$PWD/runs/extras
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH

rtx() {
  local folder=$extras/rtx
  if ! cmp --silent requirements/rtx.txt "$folder/requirements.txt"; then
    rm -rf "$folder"
    "$python" -m pip install --quiet --no-deps --target "$folder" -r requirements/rtx.txt &&
      cp requirements/rtx.txt "$folder/requirements.txt" || return
  fi
  PYTHONPATH=$folder "$python" -m pytest tests/rtx
}

lerobot() { tools/lerobot_check.sh "$extras/lerobot"; }

(($#)) || set -- rtx lerobot
failed=()
for name in "$@"; do
  case $name in
    rtx | lerobot) "$name" || failed+=("$name") ;;
    *) echo "tools/test_extras.sh: unknown extra '$name'; use rtx or lerobot." >&2; exit 2 ;;
  esac
done
if ((${#failed[@]})); then
  echo "These extras failed: ${failed[*]}. One alone: tools/test_extras.sh ${failed[0]}" >&2
  exit 1
fi

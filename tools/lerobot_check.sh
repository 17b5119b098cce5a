#!/usr/bin/env bash
# Do LeRobot and we read each other's datasets? Makes two environments of their own, then runs the interop test:
#
#   tools/lerobot_check.sh [FOLDER]     # default runs/extras/lerobot; 1.5 GB, a few minutes the first time
#
# lerobot 0.4.4 reads and writes v3.0, lerobot 0.3.3 v2.1. Both ask for a torch older than ours, which PyPI has
# for CUDA only (several GB); here they get the torch of requirements/dev.txt as a CPU build, and of their other
# requirements what importing `lerobot.datasets` needs. PIP_EXTRA_INDEX_URL may name where a CPU build is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-runs/extras/lerobot}
python=${PYTHON:-.venv/bin/python}
torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements/dev.txt)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH

if [[ ! -f $folder/ready ]]; then
  "$python" -m venv --clear "$folder/v3" && "$python" -m venv --clear "$folder/v2"
  # torchvision: the last minor version that lerobot allows; its own torch pin would bring CUDA.
  "$folder/v3/bin/pip" install --quiet --no-deps "$torch" torchvision==0.25.0 lerobot==0.4.4 accelerate==1.15.0
  "$folder/v3/bin/pip" install --quiet datasets==4.8.5 huggingface-hub==0.35.3 numpy==2.3.5 pandas==3.1.1 \
    av==15.1.0 jsonlines==4.0.0 'packaging<26' draccus==0.10.0 'deepdiff<9' termcolor==3.3.0 einops==0.8.2 \
    pillow==13.0.0 psutil==7.2.2 safetensors==0.8.0 sympy networkx jinja2 filelock typing-extensions
  # The second one sees the packages of the first, but for the two that differ.
  site=$("$folder/v3/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  own=$("$folder/v2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$site" >"$own/shared.pth"
  "$folder/v2/bin/pip" install --quiet --no-deps lerobot==0.3.3 datasets==3.6.0
  touch "$folder/ready"
fi
DTVLA_LEROBOT_PYTHON=$folder/v3/bin/python DTVLA_LEROBOT_V2_PYTHON=$folder/v2/bin/python \
  "$python" -m pytest tests/training/test_lerobot_interop.py -v "${@:2}"

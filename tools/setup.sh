#!/usr/bin/env bash
# Sets the project up in this folder: system packages, .venv with pinned wheels, ros2_ws. Safe to call again:
# what is up to date is skipped, so a second call takes a moment. Used by the Makefile and the Dockerfile.
#
#   tools/setup.sh runtime    what runs the robot side and the simulator (no torch)
#   tools/setup.sh dev        also training, export, tests, lint and the documentation site
#   tools/setup.sh gpu        runtime, with ONNX Runtime for CUDA in place of the one for the CPU; to have dev
#                             as well, call it after dev
#
# PYTHON=/path/to/python3.x chooses the interpreter .venv is made from (3.10 to 3.13).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

level=${1:-runtime}
case $level in
  runtime | dev | gpu) ;;
  *) echo "tools/setup.sh: unknown level '$level'; use runtime, dev or gpu." >&2; exit 2 ;;
esac

root=$PWD
venv=$root/.venv
python=$venv/bin/python
# The interpreters bring anything from 22.0, which lacks options used here, to 26.3, which fails on Python 3.13.
pip=pip==25.3

# A sourced ROS distribution would put its own rclpy before the wheels' one.
unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

steps_done=0

fail() {
  printf 'Set-up stopped: %s\n' "$*" >&2
  exit 1
}

# step "what happens" "how long it takes" command...: runs quietly, prints the seconds, or why it failed.
step() {
  local what=$1 takes=$2 began=$SECONDS output
  shift 2
  printf '  %-58s %s' "$what" "($takes) "
  output=$(mktemp)
  if "$@" >"$output" 2>&1 </dev/null; then
    printf '%d s\n' $((SECONDS - began))
    steps_done=$((steps_done + 1))
    rm -f "$output"
    return
  fi
  printf 'failed\n\n' >&2
  { grep -E '^ERROR|[Ee]rror: |^E: |Errno' "$output" || tail -n 20 "$output"; } | tail -n 20 >&2
  printf '\nSet-up stopped at "%s". Its whole output: %s\n' "$what" "$output" >&2
  fail "if the network was the cause, call make again: it goes on where it stopped."
}

fingerprint() { # of the named files and of this folder's place
  { echo "$root"; "$python" -c 'import sys; print(sys.version)'; sha256sum "$@"; } 2>/dev/null | sha256sum | cut -c1-64
}

is_current() { [[ -f $1 && $(<"$1") == "$2" ]]; }

usable_python() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}; do
    if usable_python "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  fail "no Python 3.10 to 3.13 was found${PYTHON:+ at $PYTHON}. Install one, for example: sudo apt-get install -y python3.11 python3.11-venv python3.11-dev"
}

# Debian names of what is missing on this machine; $1 is the interpreter .venv is made from.
missing_packages() {
  command -v cmake >/dev/null || echo cmake
  command -v g++ >/dev/null || echo g++
  "$1" - <<'EOF'
import ctypes
import importlib.util
import sys
import sysconfig
from pathlib import Path

version = f"python{sys.version_info.major}.{sys.version_info.minor}"
if not Path(sysconfig.get_path("include"), "Python.h").is_file():
    print(f"{version}-dev")
if importlib.util.find_spec("ensurepip") is None:
    print(f"{version}-venv")


def loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


egl = loads("libEGL.so.1") and (loads("libEGL_mesa.so.0") or loads("libEGL_nvidia.so.0"))
if not (egl or loads("libOSMesa.so.8") or loads("libOSMesa.so.6")):
    print("libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0")
EOF
}

install_system_packages() {
  local missing
  missing=$(missing_packages "$1" | xargs)
  [[ -z $missing ]] && return
  if ! command -v apt-get >/dev/null; then
    fail "these system packages are missing (Debian's names): ${missing}. Install them with your package manager and call make again."
  fi
  if ((EUID != 0)); then
    printf 'Some system packages are missing. Run this line, then call make again:\n\n  sudo apt-get update && sudo apt-get install -y %s\n\n' "$missing" >&2
    exit 1
  fi
  # shellcheck disable=SC2086  # a list of names
  step "System packages: $missing" "about 30 s" env DEBIAN_FRONTEND=noninteractive \
    sh -c 'apt-get update -q && apt-get install -q -y --no-install-recommends "$@"' apt $missing
}

create_venv() {
  local base=$1
  rm -rf "$venv"
  step "Virtual environment .venv ($("$base" -V))" "about 10 s" "$base" -m venv "$venv"
  step "pip ${pip#*==}" "about 5 s" "$python" -m pip install "$pip"
}

# .venv runs, and was not made for another folder: its scripts hold absolute paths.
venv_works() { "$python" -c '' 2>/dev/null && grep -qsF "$venv" "$venv/bin/activate"; }

same_version() { # of the two interpreters
  local print='import sys; print(*sys.version_info[:2])'
  [[ "$("$1" -c "$print" 2>/dev/null)" == "$("$2" -c "$print" 2>/dev/null)" ]]
}

pip_install() { "$python" -m pip install --no-compile --prefer-binary -c requirements/lock.txt "$@"; }

# Two packages for one folder: installed over each other they would mix their files. Fetched first: when the
# network fails, what is there still runs.
replace_onnxruntime() {
  local wheels
  wheels=$(mktemp -d)
  "$python" -m pip download --only-binary :all: -c requirements/lock.txt -d "$wheels" -r requirements/gpu.txt &&
    "$python" -m pip uninstall -y onnxruntime onnxruntime-gpu &&
    "$python" -m pip install --no-compile --no-index --find-links "$wheels" -r requirements/gpu.txt &&
    rm -r "$wheels"
}

build_workspace() {
  local libraries jobs
  jobs=-j$(nproc) # said here, else colcon adds a load limit, and a busy machine compiles one file at a time
  libraries=$("$python" -c 'import ros_wheels_bootstrapper as r; print(r.get_ros_paths())') &&
    (cd ros2_ws && PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv LD_LIBRARY_PATH=$libraries MAKEFLAGS=$jobs \
      "$python" -m colcon build --symlink-install --event-handlers console_direct+ --cmake-args -G Ninja \
      -DBUILD_TESTING=OFF -DCMAKE_PROJECT_INCLUDE="$root/ros2_ws/ros_wheels_paths.cmake" -DPython3_EXECUTABLE="$python")
}

# Makes dtvla_msgs and dtvla visible to .venv/bin/python from any folder, without sourcing anything: the wheels'
# bootstrapper puts .venv/lib on the library path, and a .pth file names the folder of the generated modules.
link_workspace() {
  local prefix=$root/ros2_ws/install/dtvla_msgs packages
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    ln -sf "$prefix"/lib/libdtvla_msgs__*.so "$venv/lib/" &&
    echo "$prefix/lib/$(basename "$(dirname "$packages")")/site-packages" >"$packages/dtvla_msgs.pth" &&
    "$python" -m pip install --no-deps --no-build-isolation --use-pep517 --config-settings editable_mode=compat \
      -e ros2_ws/src/dtvla
}

# Two calls at the same time take turns.
exec 9<"${BASH_SOURCE[0]}"
flock 9

if ! venv_works; then
  [[ -d $venv ]] && echo "The .venv here does not run, or this folder was moved: .venv is made anew."
  echo "Setting up in $root (once; three to five minutes)"
  base=$(find_python)
  install_system_packages "$base"
    create_venv "$base"
elif [[ -n ${PYTHON:-} ]] && ! same_version "$python" "$PYTHON"; then
  fail "PYTHON is $PYTHON, but .venv holds $("$python" -V). To start again with the other one: make distclean"
fi

declare -A files stamp
files[runtime]=$(echo requirements/{lock,runtime,ros,sim,sim-nodeps}.txt)
files[dev]="${files[runtime]} requirements/dev.txt requirements/docs.txt requirements/ray.txt"
files[gpu]="${files[runtime]} requirements/gpu.txt"
for each in runtime dev gpu; do
  # shellcheck disable=SC2086  # a list of names
  stamp[$each]=$(fingerprint ${files[$each]})
done
if [[ $level == gpu ]] && ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  fail "onnxruntime-gpu with CUDA 13 has no wheel for $("$python" -V); 3.11 to 3.13 have. To start again with another one: make distclean && PYTHON=python3.12 tools/setup.sh gpu"
fi
if ! is_current "$venv/.$level.stamp" "${stamp[$level]}"; then
  if [[ -f $venv/.gpu.stamp ]]; then # what follows installs the one for the CPU again
    rm "$venv/.gpu.stamp"
    step "ONNX Runtime for CUDA goes" "about 5 s" "$python" -m pip uninstall -y onnxruntime-gpu
  fi
  # The build tools first: what comes as source wants the pinned setuptools.
  step "ROS 2 and build tools" "about 60 s" pip_install -r requirements/ros.txt
  step "Simulator, ONNX Runtime and tools" "about 60 s" pip_install -r requirements/runtime.txt
  step "LIBERO and robosuite" "about 10 s" pip_install --no-deps --no-build-isolation -r requirements/sim-nodeps.txt
  echo "${stamp[runtime]}" >"$venv/.runtime.stamp"
  if [[ $level == dev ]]; then
    step "torch, export and test tools" "about 60 s" pip_install -r requirements/dev.txt
    echo "${stamp[dev]}" >"$venv/.dev.stamp"
  elif [[ $level == gpu ]]; then
    step "ONNX Runtime and bindings for CUDA" "about 30 s" replace_onnxruntime
    echo "${stamp[gpu]}" >"$venv/.gpu.stamp"
  fi
fi

mapfile -t sources < <(find ros2_ws/src/dtvla_msgs ros2_ws/ros_wheels_paths.cmake ros2_ws/src/dtvla/{setup.py,setup.cfg,package.xml} -type f | sort)
wanted=$(fingerprint "${sources[@]}")
if ! is_current "$venv/.workspace.stamp" "$wanted" || [[ ! -d ros2_ws/install/dtvla_msgs ]]; then
  step "ROS 2 workspace (colcon build)" "about 60 s" build_workspace
  step "dtvla into .venv" "about 5 s" link_workspace
  echo "$wanted" >"$venv/.workspace.stamp"
fi

if ((steps_done)); then
  echo "Set up in $SECONDS s. Nothing needs sourcing: .venv/bin/dtvla --help"
fi

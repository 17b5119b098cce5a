#!/usr/bin/env bash
# Writes requirements/lock.txt anew after a change of the other requirement files. Needs uv (`pip install uv`).
# The platform it solves for stands in pyproject.toml; torch pins its own CUDA packages, so they are left out
# and a CPU build of torch fits as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
solved=$(uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header requirements/dev.txt)
{
  echo "# Made by tools/lock.sh: every version that any requirement file here leads to, Python 3.10 to 3.13."
  grep -vE '^(cuda|nvidia)' <<<"$solved" | sed -E \
    -e "s/(platform_python_implementation|implementation_name|platform_machine|sys_platform) [!=]= '[^']*'( and )?//g" \
    -e "s/python_full_version < '3.14'( and )?//" \
    -e "s/( and | ; )$//" -e "s/ and $//" -e "s/ ; $//" \
    -e "s/python_full_version (<|>=)/python_version \1/g" -e "s/python_full_version == '3.11.\*'/python_version == '3.11'/"
} >requirements/lock.txt

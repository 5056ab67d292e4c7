#!/usr/bin/env bash
# Fetch released weights into this script's folder, from any working directory: bash download.sh --help
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")  # of the script, where it is called by a link
exec "${PYTHON:-python}" "$here/download.py" "$@"

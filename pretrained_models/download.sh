#!/usr/bin/env bash
# Fetch released weights into this script's folder, from any working directory: bash download.sh --help
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname -- "${BASH_SOURCE[0]}")/download.py" "$@"

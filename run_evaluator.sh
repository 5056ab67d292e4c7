#!/usr/bin/env bash
# Sample 50,000 images, then evaluate them, from any working directory: bash run_evaluator.sh --help
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# The project comes first, and the working directory not at all, whatever modules it holds: an empty entry would mean it.
others=":${PYTHONPATH:-}:"
while [[ $others == *::* ]]; do others=${others//::/:}; done
export PYTHONSAFEPATH=1 PYTHONPATH="$here${others%:}"
exec "${PYTHON:-python}" -m evaluation.run "$@"

#!/usr/bin/env bash
# Sample 50,000 images, then evaluate them, from any working directory: bash run_evaluator.sh --help
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m evaluation.run "$@"

#!/usr/bin/env bash
# Sample 50,000 images, then evaluate them, from any working directory: bash run_evaluator.sh --help
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")  # of the script, where it is called by a link
python=${PYTHON:-python}
if ! command -v "$python" > /dev/null; then
    echo "error: there is no $python; activate the environment, or name its interpreter as PYTHON=" >&2
    exit 2
fi
# The project comes first, and the working directory not at all, whatever modules it holds: an empty entry would mean it.
others=":${PYTHONPATH:-}:"
while [[ $others == *::* ]]; do others=${others//::/:}; done
export PYTHONSAFEPATH=1 PYTHONPATH="$here${others%:}"
exec "$python" -m evaluation.run "$@"

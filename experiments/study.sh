#!/usr/bin/env bash
# Trains and measures every model of the study, going on where it stopped, from any working directory: docs/study.md.
set -euo pipefail
project=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/..  # of the script, where it is called by a link
export PYTHONSAFEPATH=1 PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m experiments.study "$@"

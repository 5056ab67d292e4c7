#!/usr/bin/env bash
# Trains and measures every model of the study, going on where it stopped: docs/study.md.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m experiments.study "$@"

#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Environment of the recipe: the interpreter, and thread counts that suit small models.
if [ -x ../../../.venv/bin/python ]; then
    python=$(cd ../../../.venv/bin && pwd)/python
else
    python=python3
fi
export PYTHONIOENCODING=UTF-8
export LC_ALL=C.UTF-8
# The transfer of usage statistics and downloads is never needed with local models.
export HF_HUB_DISABLE_TELEMETRY=1

#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# What this recipe adds to ESPnet's path.sh, which sources this file last.
python=python3
# Models are local files; nothing is to be reported about their use.
export HF_HUB_DISABLE_TELEMETRY=1

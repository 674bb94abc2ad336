#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Where corpora are. The mini corpus needs none; --corpus manifest takes --manifest.
MLSUPERB=

#!/usr/bin/env bash
# Lamer-SSL: extend a HuBERT to new languages with layer-aware LoRA experts.
# ./run.sh --help shows stages and options; they are declared in espnet2_lamer/recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. ./path.sh
. ./cmd.sh
. ./db.sh
. ../utils/options.sh

python=$(given python "${python}" "$@")
if asks_only "$@"; then
    exec "${python}" -m espnet2_lamer.bin.recipe "$@"
fi
if [ -n "${train_cmd}" ]; then # mistakes are said before anything is queued
    "${python}" -m espnet2_lamer.bin.recipe "$@" --print_commands true > /dev/null
fi
exec ${train_cmd} "${python}" -m espnet2_lamer.bin.recipe "$@"

#!/usr/bin/env bash
# LoRA language experts on a frozen Whisper: MoLE, distilled student, baselines.
# ./run.sh --help shows stages and options; they are declared in espnet2_lamer/recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. ./path.sh
. ./cmd.sh
. ./db.sh
. ../utils/options.sh

python=$(given python "${python}" "$@")
if asks_only "$@"; then
    exec "${python}" -m espnet2_lamer.bin.whisper_recipe "$@"
fi
if [ -n "${train_cmd}" ]; then # mistakes are said before anything is queued
    "${python}" -m espnet2_lamer.bin.whisper_recipe "$@" --print_commands true > /dev/null
fi
exec ${train_cmd} "${python}" -m espnet2_lamer.bin.whisper_recipe "$@"

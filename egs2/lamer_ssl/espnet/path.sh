#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154  # shared with run.sh and cmd.sh
# What this recipe adds to ESPnet's path.sh, which sources this file last.
python=python3
# Models are local files; nothing is to be reported about their use.
export HF_HUB_DISABLE_TELEMETRY=1

# export_corpora: hand what ESPnet's db.sh names to the environment that stage 1 reads.
export_corpora() {
    local corpus
    AISHELL1=${AISHELL1:-${AISHELL:-}}
    for corpus in MLSUPERB MLSUPERB2 COMMONVOICE THCHS30 AISHELL1 AISHELL3 FLEURS \
        MHUBERT147_MANIFEST MHUBERT147_AUDIO; do
        # "downloads" is a corpus that its own recipe fetches; this one fetches none.
        if [ "${!corpus:-downloads}" = downloads ]; then
            printf -v "${corpus}" '%s' ''
        fi
        export "${corpus?}"
    done
}

# launch LOG NGPU COMMAND...: run it by the launcher of cmd.sh, which shows nothing; where
# it failed, show how its log ends.
launch() {
    local log=$1 ngpu=$2 code=0
    shift 2
    echo "run.sh: by ${cuda_cmd}; what it does stands in ${log}" >&2
    ${cuda_cmd} --gpu "${ngpu}" "${log}" "$@" || code=$?
    if [ "${code}" != 0 ] && [ -f "${log}" ]; then
        # Lines that begin with # are the launcher's.
        grep -v '^#' "${log}" | tail -n 5 >&2
        echo "run.sh: failed; the whole log: $(cd "$(dirname "${log}")" && pwd)/${log##*/}" >&2
    fi
    return "${code}"
}

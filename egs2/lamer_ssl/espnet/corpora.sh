#!/usr/bin/env bash
# From ESPnet's db.sh, which sets variables, to the environment that stage 1 reads.
AISHELL1=${AISHELL1:-${AISHELL:-}}
for corpus in MLSUPERB COMMONVOICE THCHS30 AISHELL1 AISHELL3 FLEURS MHUBERT147_MANIFEST \
    MHUBERT147_AUDIO; do
    # "downloads" is a corpus that its own recipe fetches; this one fetches none.
    if [ "${!corpus:-downloads}" = downloads ]; then
        printf -v "${corpus}" '%s' ''
    fi
    export "${corpus?}"
done

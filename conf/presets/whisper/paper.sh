#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Whisper medium as in arXiv 2506.21555: rank-64 experts, L1 = 20, students of rank 256.
# The paper names neither its eight languages nor its corpora; these are this project's.
# CommonVoice and AISHELL-1: paths in db.sh.
corpus="commonvoice aishell1"
langs="eng cmn yue"
train_minutes=0
dev_utts=500
test_utts=0
min_duration=0.5
max_duration=30
whisper=medium
prompts="eng=en cmn=zh yue=zh"
systems="frozen multilingual full experts mole kd_none kd_output kd_layerwise"
expert_config=conf/train_asr_whisper_expert.yaml
multilingual_config=conf/train_asr_whisper_multilingual.yaml
full_config=conf/train_asr_whisper_full.yaml
mole_config=conf/train_asr_whisper_mole.yaml
kd_config=conf/train_asr_whisper_kd.yaml
decode_config=conf/decode_asr_whisper.yaml
pack="experts mole kd_layerwise"

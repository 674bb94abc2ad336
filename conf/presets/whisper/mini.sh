#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Whisper base on the embedded synthetic corpus: about half an hour on two CPU cores.
corpus=mini
langs="eng cmn yue"
train_minutes=0
dev_utts=12
test_utts=30
min_duration=1
max_duration=12
whisper=base
prompts="eng=en cmn=zh yue=zh"
systems="frozen multilingual experts mole kd_none kd_output kd_layerwise"
expert_config=conf/tuning/train_asr_whisper_expert_mini.yaml
multilingual_config=conf/tuning/train_asr_whisper_multilingual_mini.yaml
full_config=conf/tuning/train_asr_whisper_full_mini.yaml
mole_config=conf/tuning/train_asr_whisper_mole_mini.yaml
kd_config=conf/tuning/train_asr_whisper_kd_mini.yaml
decode_config=conf/decode_asr_whisper.yaml
pack="experts mole kd_layerwise"

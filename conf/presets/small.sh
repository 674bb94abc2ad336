#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Own recordings: 5 to 50 hours of a new language, a 12-layer base, one GPU for a day.
# --corpus manifest --manifest PATH --new_langs LANG; English replay comes from the same
# manifest. The schedule follows from the hours: docs/planning.md, recipe/schedule.py.
corpus=manifest
new_langs=
replay_langs=eng
replay_hours=5
min_duration=2
max_duration=30
base=facebook/hubert-base-ls960
teacher=utter-project/mHuBERT-147
teacher_layer=9
kmeans_hours=5
n_clusters=500
passes=40
ssl_config=conf/train_ssl_lamer_small.yaml
upstreams="base lamer"
asr_config=conf/train_asr_mlsuperb.yaml
finetune_config=conf/train_asr_finetune.yaml
lm_config=conf/train_lm_transformer.yaml
asr_layer=11
multi_config=conf/train_multi_asr_mlsuperb.yaml
lid_config=conf/train_lid_mlsuperb.yaml
lid_layer=10
store_dtype=float16

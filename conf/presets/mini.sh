#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Embedded synthetic corpus and the committed mini base and teacher: minutes on a CPU.
corpus=mini
new_langs="cmn yue"
replay_langs=eng
replay_hours=0.2
min_duration=2
max_duration=30
base=mini/base
teacher=mini/teacher
teacher_layer=3
kmeans_hours=0.25
n_clusters=100
ssl_config=conf/train_ssl_lamer_mini.yaml
upstreams="random base lamer"
asr_config=conf/tuning/train_asr_mlsuperb_mini.yaml
asr_layer=3
finetune_config=conf/tuning/train_asr_finetune_mini.yaml
lm_config=conf/train_lm_transformer.yaml
multi_config=conf/tuning/train_asr_mlsuperb_mini.yaml
lid_config=conf/tuning/train_lid_mlsuperb_mini.yaml
lid_layer=3
store_dtype=float32
spread="conf/spread/mini.csv conf/spread/mini_lid.csv"

#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Lamer-SSL as in arXiv 2602.12746: HuBERT-Large, mHuBERT-147 layer 9, layers 22 and 21.
# Stated by the paper: languages, about 100 h of replay, 2-30 s, teacher layer, 50 h per
# language for k-means, evaluation layers. Not stated: K; 1000 is mHuBERT's.
# THCHS-30 and AISHELL are for pretraining only, FLEURS for evaluation only; paths: db.sh.
corpus="commonvoice thchs30 aishell1 aishell3 fleurs"
new_langs="cmn yue"
replay_langs=eng
replay_hours=100
min_duration=2
max_duration=30
base=facebook/hubert-large-ll60k
teacher=utter-project/mHuBERT-147
teacher_layer=9
kmeans_hours=50
n_clusters=1000
ssl_config=conf/train_ssl_lamer.yaml
upstreams="base lamer"
benchmark=paper
budgets=1h
asr_config=conf/train_asr_mlsuperb.yaml
asr_layer=22
finetune_config=conf/train_asr_finetune.yaml
lm_config=conf/train_lm_transformer.yaml
multi_config=conf/train_multi_asr_mlsuperb.yaml
lid_config=conf/train_lid_mlsuperb.yaml
lid_layer=21
store_dtype=float16

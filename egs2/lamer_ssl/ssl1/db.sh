#!/usr/bin/env bash
# shellcheck disable=SC2034  # read by run.sh
# Where corpora are: write a path after ":-", or set the variable in the environment.
# The mini corpus needs none; --corpus manifest takes --manifest.
# ML-SUPERB's data, with commonvoice/ fleurs/ mls/ ... in it
export MLSUPERB=${MLSUPERB:-}
# ML-SUPERB 2.0's: espnet/ml_superb_hf (*.parquet), or ESPnet's egs2/ml_superb2/asr1 with
# its data/train/ data/dev/ data/dev_dialect/
export MLSUPERB2=${MLSUPERB2:-}
# cv-corpus-11.0-2022-09-21, with en/ zh-CN/ zh-HK/ yue/ in it
export COMMONVOICE=${COMMONVOICE:-}
# data_thchs30, data_aishell, and AISHELL-3's folder with train/ and test/
export THCHS30=${THCHS30:-}
export AISHELL1=${AISHELL1:-}
export AISHELL3=${AISHELL3:-}
# en_us/ cmn_hans_cn/ yue_hant_hk/, each with *.tsv and audio/*.tar.gz
export FLEURS=${FLEURS:-}
# Folder of mHuBERT-147's manifests, and of the audio that they list
export MHUBERT147_MANIFEST=${MHUBERT147_MANIFEST:-}
export MHUBERT147_AUDIO=${MHUBERT147_AUDIO:-}

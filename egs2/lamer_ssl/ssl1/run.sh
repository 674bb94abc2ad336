#!/usr/bin/env bash
# Lamer-SSL: extend a HuBERT to new languages with layer-aware LoRA experts.
# shellcheck disable=SC2034,SC2154  # variables that preset, path.sh and options.sh share
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

help_message() {
    cat << EOF
Usage: ./run.sh [--option value] ...

Without options: the mini preset, from data to packed models, on a CPU. A stage whose
inputs and options did not change is skipped; one that was killed goes on.

Stages
   0  base and teacher checkpoints        8  analysis
   1  data preparation                    9  ML-SUPERB data
   2  formatting and selection           10  ASR fine-tuning
   3  teacher features                   11  LID fine-tuning
   4  k-means                            12  decoding and results
   5  pseudo-labels                      13  packing
   6  statistics                         14  upload (off without --hf_repo)
   7  continual pretraining

General
  --preset           mini | paper, see conf/presets (${preset})
  --stage            first stage to run (${stage})
  --stop_stage       last stage to run (${stop_stage})
  --skip_stages      stages to leave out, e.g. "5 6" (${skip_stages:-none})
  --nj               parallel jobs of data, features, labels, probes and, without GPU,
                     of heads (${nj})
  --dask             run those of stages 2-5 and 9 on the workers of this Dask scheduler,
                     such as tcp://host:8786; see docs/scale_out.md (${dask:-none})
  --ngpu             GPUs per node, 0 = CPU (${ngpu})
  --num_nodes        nodes of pretraining (${num_nodes})
  --seed             seed of everything random (${seed})
  --datadir          data directories of stage 1 (${datadir})
  --dumpdir          formatted data, features, units (${dumpdir})
  --expdir           experiments, logs, results (${expdir})
  --python           Python interpreter (${python})

Data
  --corpus           mini | manifest | public corpora, joined, of:
                     commonvoice thchs30 aishell1 aishell3 fleurs mhubert147, whose
                     paths are in db.sh (${corpus})
  --manifest         TSV, or folder of audio per language (${manifest:-none})
  --exclude_sources  sources of the manifest to leave out (${exclude_sources:-none})
  --max_missing      most missing clips per set of a public corpus, in % (${max_missing})
  --new_langs        languages to learn, ISO 639-3 (${new_langs})
  --replay_langs     languages to keep (${replay_langs})
  --replay_hours     hours of replay per kept language (${replay_hours})
  --replay_sampling  uniform | temperature (shares the hours over kept languages) |
                     speaker | cluster (one of each in turn) (${replay_sampling})
  --replay_alpha     exponent of temperature: 0 = equal, 1 = in proportion (${replay_alpha})
  --replay_clusters  file with units of the replay candidates (${replay_clusters:-none})
  --dev_hours        most validation speech per language, in hours, 0 = all (${dev_hours})
  --min_duration     shortest utterance in seconds (${min_duration})
  --max_duration     longest utterance in seconds (${max_duration})
  --max_bad_audio    most unusable audio files per set, in % (${max_bad_audio})
  --drop_overlap     leave out clips that are in an evaluation set (${drop_overlap})

Models
  --base             HuBERT to extend: Hugging Face directory or id, torchaudio
                     bundle, fairseq .pt file, ESPnet experiment (${base})
  --teacher          model that gives the units (${teacher})
  --teacher_layer    its layer (${teacher_layer})
  --trust_s3prl_files true: let S3PRL read the FILE of s3prl:NAME:FILE in --teacher and
                     --upstreams, which runs code that it may hold (${trust_s3prl_files})
  --retrain          true: stage 0 trains mini base and teacher anew, hours (${retrain})
  --kmeans_hours     hours per language for k-means (${kmeans_hours})
  --n_clusters       number of units K (${n_clusters})
  --ssl_config       pretraining config (${ssl_config})
  --allocation       LoRA experts per group of layers, or auto: by language separability
                     of the base (${allocation:-as in --ssl_config})
  --ssl_tag          name of the pretraining (${ssl_tag:-from --ssl_config and --allocation})
  --control          also train the head-only control (${control})
  --sanity           true: instead of training, overfit one batch and say whether it
                     could be learnt; nothing after stage 7 runs (${sanity})

Evaluation
  --upstreams        of: random base lamer, names of conf/upstreams/NAME.yaml,
                     s3prl:NAME, paths, Hugging Face ids (${upstreams})
  --tracks           of: asr multi_asr lid asr_lid (${tracks})
  --benchmark        own (sets of stage 1) | paper (CommonVoice and FLEURS in
                     ML-SUPERB's sizes) | mlsuperb (its data, db.sh) (${benchmark})
  --budgets          training speech, of: 10min 1h; own: all (${budgets})
  --eval_langs       languages to evaluate; mlsuperb: all (${eval_langs:-those learnt and kept})
  --eval_lists       paper: folder of utterance lists to use again (${eval_lists:-none})
  --cross_corpus     paper: also test ASR on the other corpus (${cross_corpus})
  --lid_reading      paper: mixtures take the budget per_set | in total (${lid_reading})
  --units            LANG=char|word|pinyin|jyutping|phone|bpe of monolingual ASR
                     (${units:-eng=char cmn=pinyin yue=jyutping, else char})
  --multi_unit       char | bpe of multi_asr and asr_lid (${multi_unit})
  --nbpe             size of a bpe vocabulary (${nbpe})
  --asr_config       head and schedule of asr; for 10min NAME_10min.yaml beside it,
                     where there is one, as for the next two (${asr_config})
  --asr_layer        layer that asr and multi_asr read, or all: the learned weighted
                     sum (${asr_layer})
  --multi_config     head and schedule of multi_asr and asr_lid (${multi_config})
  --lid_config       head and schedule of lid (${lid_config})
  --lid_layer        layer that lid and asr_lid read, or all (${lid_layer})
  --store_dtype      float32 | float16 of stored features (${store_dtype})
  --feature_store_gb most features of a head, in GB; above it the upstream runs in
                     every epoch (${feature_store_gb})
  --eval_seeds       seeds of the heads, e.g. "0 1 2": mean and deviation (${eval_seeds:-that of --seed})
  --learning_rates   rates that each head is trained at, e.g. "1e-3 1e-4 1e-5"; the
                     lowest dev loss is scored (${learning_rates:-that of the config})
  --baselines        systems the others are tested against (${baselines:-random and base})

Publishing
  --hf_repo          Hugging Face repository of stage 14 (${hf_repo:-none})
  --dry_run          true: stage 14 only lists what it would upload (${dry_run})
EOF
}

. ../utils/options.sh
find_preset conf/presets "$@"
. ./path.sh
. ./cmd.sh
. ./db.sh

stage=0
stop_stage=14
skip_stages=
nj=2
dask=
ngpu=0
num_nodes=1
seed=0
datadir=data
dumpdir=dump
expdir=exp
manifest=
exclude_sources=
max_missing=1
replay_sampling=uniform
replay_alpha=0.7
replay_clusters=
dev_hours=1
max_bad_audio=1
drop_overlap=true
retrain=false
trust_s3prl_files=false
allocation=
ssl_tag=
control=true
sanity=false
benchmark=own
budgets=all
tracks="asr lid"
eval_langs=
eval_lists=
cross_corpus=false
lid_reading=per_set
units=
multi_unit=char
nbpe=200
multi_config=conf/train_multi_asr_mlsuperb.yaml
feature_store_gb=50
eval_seeds=
learning_rates=
baselines=
hf_repo=
dry_run=false
# shellcheck source=../../../conf/presets/mini.sh
. "conf/presets/${preset}.sh"

options="stage stop_stage skip_stages nj dask ngpu num_nodes seed datadir dumpdir expdir
 preset corpus manifest exclude_sources max_missing new_langs replay_langs replay_hours
 replay_sampling replay_alpha replay_clusters dev_hours min_duration max_duration
 max_bad_audio drop_overlap base teacher teacher_layer retrain trust_s3prl_files kmeans_hours n_clusters
 ssl_config allocation ssl_tag control sanity upstreams benchmark
 budgets tracks eval_langs eval_lists cross_corpus lid_reading units multi_unit nbpe
 asr_config asr_layer multi_config lid_config lid_layer store_dtype feature_store_gb
 eval_seeds learning_rates baselines hf_repo dry_run"

last_stage=14
read_options "$@"
run_recipe espnet2_lamer.bin.recipe

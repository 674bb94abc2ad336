"""Command lines run in this process, as ``python -m`` runs them, on the sound files."""

from dataclasses import fields
from importlib import import_module

import yaml

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.recipe.options import Options
from tests.foreign.sound_files import ASR


def command(name, *arguments):
    """Run a command line as its process would, in this one."""
    module = import_module(f"espnet2_lamer.bin.{name}")
    run_main(lambda: module.main([str(argument) for argument in arguments]))


def pretraining(good, here, *more, **changes):
    """Arguments of ``hubert_train`` for one update on the sound data."""
    config = {
        "num_classes": 5,
        "encoder_conf": {"base": str(good.base), "final_dim": 8, "mask_length": 3}
        | changes.pop("encoder_conf", {"lamer": {"allocation": "2,4", "rank": 2}}),
        "optim": "adamw",
        "batch_bins": 24000,
        "collate_fn_conf": {"max_sample_size": 8000, "bucket_samples": 1600},
        "max_epoch": 1,
        "num_workers": 0,
        "monitor_utts": 0,
        "use_tensorboard": False,
        "use_matplotlib": False,
    }
    path = here / "train.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    data, options = good.data, []
    for part in ("train", "valid"):
        options += [
            f"--{part}_data_path_and_name_and_type={data}/wav.scp,speech,sound",
            f"--{part}_data_path_and_name_and_type={data}/text.km,text,text",
            f"--{part}_shape_file={data}/speech_shape",
            f"--{part}_shape_file={data}/text_shape",
        ]
    return [
        *(f"--config={path}", f"--output_dir={here / 'out'}", "--resume=true"),
        *(f"--token_list={data}/tokens.txt", *options, *more),
    ]


def head_training(good, here, *more, speech="wav.scp,speech,sound", **changes):
    """Arguments of ``asr_train`` for one update on the sound data."""
    config = {key: value for key, value in ASR.items() if key != "token_list"} | {
        "frontend_conf": {"upstream": str(good.base), "layer": 1},
        "max_epoch": 1,
        "batch_type": "unsorted",
        "num_workers": 0,
        "num_att_plot": 0,
        "use_tensorboard": False,
        "use_matplotlib": False,
    }
    path = here / "train.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    data, options = good.data, []
    for part in ("train", "valid"):
        options += [
            f"--{part}_data_path_and_name_and_type={speech.replace('DATA', str(data))}",
            f"--{part}_data_path_and_name_and_type={data}/text,text,text",
            f"--{part}_shape_file={data}/speech_shape",
        ]
    return [
        *(f"--config={path}", f"--output_dir={here / 'out'}", "--resume=true"),
        *(f"--token_list={data}/letters.txt", *options, *more),
    ]


def recipe_options(good, **changes):
    """Arguments of ``bin.recipe`` for stages that need no training."""
    values = dict.fromkeys((field.name for field in fields(Options)), "")
    values |= dict.fromkeys(("nj", "n_clusters", "teacher_layer", "nbpe"), 1)
    values |= {"stage": 0, "stop_stage": 1, "ngpu": 0, "seed": 0, "num_nodes": 1}
    numbers = ("replay_hours", "replay_alpha", "dev_hours", "kmeans_hours")
    numbers += ("max_missing", "min_duration", "max_duration", "max_bad_audio")
    values |= dict.fromkeys((*numbers, "feature_store_gb"), 1)
    flags = ("dry_run", "drop_overlap", "retrain", "control", "sanity", "cross_corpus")
    values |= dict.fromkeys((*flags, "trust_s3prl_files"), "false")
    values |= {"corpus": "mini", "preset": "mini", "new_langs": "cmn"}
    values |= {"benchmark": "own", "tracks": "asr", "budgets": "all"}
    values |= {"lid_reading": "per_set", "multi_unit": "char", "upstreams": "base"}
    values |= {"asr_layer": 1, "lid_layer": 1, "store_dtype": "float32"}
    values |= {"base": str(good.base), "teacher": "mfcc", "datadir": "data"}
    values |= {"dumpdir": "dump", "expdir": "exp"}
    with open("train.yaml", "w") as config:
        config.write("encoder_conf: {lamer: {allocation: '2,4'}}\n")
    for name in ("ssl_config", "asr_config", "multi_config", "lid_config"):
        values[name] = "train.yaml"
    values |= changes
    return [f"--{field.name}={values[field.name]}" for field in fields(Options)]

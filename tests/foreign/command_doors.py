"""Doors of the command lines, run in this process as ``python -m`` runs them."""

import json
import shutil
from dataclasses import fields
from importlib import import_module

import yaml

from espnet2_lamer.bin.common import run_main
from espnet2_lamer.recipe.options import Options
from tests.foreign.sound_files import (
    ASR,
    changed_zip,
    door,
    experiment,
    member,
    named_door,
)

DEFINITION = """
title: Small
seeds: [0]
baseline: good
data: {{preset: tiny, teacher: {text}}}
systems:
    good: {{cell: {{upstreams: {text}}}}}
"""


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


@door
def export_zoo(good, here, payload):
    directory = experiment(good, here, payload)
    command(
        "export",
        *("--task=ssl", f"--experiment={directory}", f"--output={here / 'm.zip'}"),
    )


@door
def export_head(good, here, payload):
    directory = shutil.copytree(good.root / "head", here / "head")
    (directory / "model.pth").write_bytes(payload.content())
    command("export", f"--experiment={directory}", f"--output={here / 'm.zip'}")


@door
def export_adapter(good, here, payload):
    directory = experiment(good, here, payload)
    output = here / "a.safetensors"
    command(
        "export", "--kind=adapter", f"--experiment={directory}", f"--output={output}"
    )


@door
def export_s3prl(good, here, payload):
    path = changed_zip(good, here, "ssl.zip", model_pth=payload.content())
    command("export", "--kind=s3prl", f"--experiment={path}", f"--output={here / 'o'}")


@door
def export_hugging_face(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}"
    command("export", "--kind=hf", f"--experiment={source}", f"--output={here / 'o'}")


@door
def export_dense(good, here, payload):
    config = payload.in_config(member(good, "ssl.zip", "config.yaml"))
    path = changed_zip(good, here, "ssl.zip", config_yaml=config)
    command(
        "export",
        *("--kind=dense", f"--experiment={path}", f"--output={here / 'o'}"),
        *("--language=eng", f"--wav_scp={good.data / 'wav.scp'}"),
    )


@named_door
def analyze_model(good, here, payload):
    command(
        "analyze",
        *("--model", payload.text(), "--data", good.data, "--output", here / "out"),
        *("--max_utts=4", "--layers=1"),
    )


@named_door
def analyze_data(good, here, payload):
    data = shutil.copytree(good.data, here / "data")
    (data / "wav.scp").write_text(
        "".join(f"u{number} {payload.text()}\n" for number in range(4))
    )
    command(
        "analyze",
        *("--model", good.base, "--data", data, "--output", here / "out"),
        "--max_utts=4",
    )


@door
def extract_model(good, here, payload):
    command(
        "extract",
        *("--model", f"s3prl:hubert_local:{payload.text()}", "--layer=1"),
        *("--wav_scp", good.data / "wav.scp", "--output", here / "f.npz"),
    )


@named_door
def extract_wav_scp(good, here, payload):
    (here / "wav.scp").write_text(f"u0 {payload.text()}\n")
    command(
        "extract",
        *("--model", good.base, "--layer=1", "--wav_scp", here / "wav.scp"),
        *("--output", here / "f.npz"),
    )


@door
def score_texts(good, here, payload):
    for name in ("ref", "hyp"):
        (here / name).write_text(f"u0 {payload.document().strip()}\n")
    command(
        "score",
        *("--ref", here / "ref", "--hyp", here / "hyp", "--unit=char"),
        *("--json", here / "score.json"),
    )


@named_door
def pretraining_base(good, here, payload):
    conf = {"base": payload.text(), "lamer": {"allocation": "2,4", "rank": 2}}
    command("hubert_train", *pretraining(good, here, encoder_conf=conf))


@door
def pretraining_option_value(good, here, payload):
    value = payload.code if payload.form == "text for eval" else payload.text()
    command("hubert_train", *pretraining(good, here), f"--encoder_conf=lamer={value}")
    raise AssertionError("no such value is an option of the experts")


@named_door
def pretraining_config(good, here, payload):
    arguments = pretraining(good, here, init_param=[payload.text()])
    with open(here / "train.yaml", "a") as config:
        config.write(payload.document() if payload.form == "YAML tag" else "")
    command("hubert_train", *arguments)


@door
def pretraining_init_param(good, here, payload):
    command(
        "hubert_train", *pretraining(good, here), f"--init_param={payload.file()}:a:b"
    )


@door
def pretraining_expand_from(good, here, payload):
    directory = experiment(good, here, payload)
    command("hubert_train", *pretraining(good, here), f"--expand_from={directory}")


@door
def pretraining_resume(good, here, payload):
    from espnet2_lamer.fileio.hashing import sha256_file

    path = here / "out" / "checkpoints" / "update_00000001.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(payload.content())
    path.with_name(f"{path.name}.sha256").write_text(f"{sha256_file(path)}  x\n")
    command("hubert_train", *pretraining(good, here))


@door
def heads_init_param(good, here, payload):
    command(
        "asr_train", *head_training(good, here), f"--init_param={payload.file()}:a:b"
    )


@door
def heads_resume(good, here, payload):
    (here / "out").mkdir()
    (here / "out" / "checkpoint.pth").write_bytes(payload.content())
    command("asr_train", *head_training(good, here))


@door
def heads_upstream(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}"
    command("asr_train", *head_training(good, here, frontend_conf={"upstream": source}))


@door
def heads_stock_s3prl_frontend(good, here, payload):
    conf = {"upstream": "hubert_custom", "path_or_url": payload.text()}
    command(
        "asr_train",
        *head_training(
            good, here, frontend="s3prl", frontend_conf={"frontend_conf": conf}
        ),
    )


@door
def heads_stored_features(good, here, payload):
    """Features of others: ``kaldi_ark``, which kaldiio reads."""
    ark = here / "feats.ark"
    content = payload.content()
    ark.write_bytes((b"PKL" if payload.form == "bare pickle" else b"") + content)
    value = payload.pipe if payload.form == "shell pipe" else f"{ark}:0"
    (here / "feats.scp").write_text(
        "".join(f"u{number} {value}\n" for number in range(4))
    )
    command(
        "asr_train",
        *head_training(
            good,
            here,
            speech=f"{here}/feats.scp,speech,kaldi_ark",
            frontend=None,
            frontend_conf={},
            input_size=16,
        ),
    )


@door
def decoding_weights(good, here, payload):
    command(
        "asr_inference",
        f"--asr_train_config={good.root / 'head' / 'config.yaml'}",
        f"--asr_model_file={payload.file()}",
        f"--data_path_and_name_and_type={good.data}/wav.scp,speech,sound",
        *(f"--output_dir={here / 'out'}", "--ngpu=0", "--num_workers=0"),
    )


@door
def decoding_config(good, here, payload):
    config = yaml.safe_load((good.root / "head" / "config.yaml").read_text())
    conf = {"upstream": "hubert_custom", "path_or_url": payload.text()}
    config |= {"frontend": "s3prl", "frontend_conf": {"frontend_conf": conf}}
    text = yaml.safe_dump(config)
    text += payload.document() if payload.form == "YAML tag" else ""
    (here / "config.yaml").write_text(text)
    command(
        "asr_inference",
        f"--asr_train_config={here / 'config.yaml'}",
        f"--asr_model_file={good.root / 'head' / 'model.pth'}",
        f"--data_path_and_name_and_type={good.data}/wav.scp,speech,sound",
        *(f"--output_dir={here / 'out'}", "--ngpu=0", "--num_workers=0"),
    )


@door
def teacher(good, here, payload):
    command(
        "dump_features",
        *("--teacher", f"s3prl:hubert_custom:{payload.text()}", "--layer=1"),
        *("--wav_scp", good.data / "wav.scp", "--output", here / "features"),
    )


@named_door
def teacher_path(good, here, payload):
    command(
        "dump_features",
        *("--teacher", payload.text(), "--layer=1"),
        *("--wav_scp", good.data / "wav.scp", "--output", here / "features"),
    )


@named_door
def teacher_wav_scp(good, here, payload):
    (here / "wav.scp").write_text(f"u0 {payload.text()}\n")
    command(
        "dump_features",
        *("--teacher=mfcc", "--wav_scp", here / "wav.scp", "--output", here / "f"),
    )


@door
def codebook(good, here, payload):
    command(
        "assign_units",
        *("--teacher=mfcc", "--codebook", payload.file("npz")),
        *("--wav_scp", good.data / "wav.scp", "--output", here / "text.km"),
    )


@door
def feature_index(good, here, payload):
    folder = here / "features"
    folder.mkdir()
    shard = {"file": payload.text(), "frames": 1}
    index = {"dim": 1, "dtype": "float32", "shards": [shard]}
    text = payload.document() if payload.form == "YAML tag" else json.dumps(index)
    (folder / "index.json").write_text(text)
    command(
        "learn_kmeans",
        *("--features", folder, "--n_clusters=2", "--output", here / "codebook.npz"),
    )


@door
def joblib_kmeans(good, here, payload):
    command(
        "import_kmeans",
        *("--joblib", payload.file("km"), "--teacher=mfcc", "--layer=0"),
        *("--output", here / "codebook.npz"),
    )


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


@door
def recipe_teacher(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}"
    command("recipe", *recipe_options(good, teacher=source, stop_stage=0))


@named_door
def recipe_base(good, here, payload):
    command("recipe", *recipe_options(good, base=payload.text(), stop_stage=0))


@door
def recipe_upstreams(good, here, payload):
    source = f"s3prl:hubert_custom:{payload.text()}".replace(" ", "_")
    command("recipe", *recipe_options(good, upstreams=source, stop_stage=0))


@door
def recipe_upstream_file(good, here, payload):
    folder = here / "conf" / "upstreams"
    folder.mkdir(parents=True)
    text = yaml.safe_dump({"source": f"s3prl:hubert_custom:{payload.text()}"})
    text = payload.document() if payload.form == "YAML tag" else text
    (folder / "theirs.yaml").write_text(text)
    command("recipe", *recipe_options(good, upstreams="theirs", stop_stage=0))


@door
def recipe_ssl_config(good, here, payload):
    arguments = recipe_options(good, stop_stage=0)
    (here / "train.yaml").write_text(payload.document())
    command("recipe", *arguments)


@door
def recipe_corpus(good, here, payload):
    (here / "local").mkdir()
    (here / "evil.py").write_text(payload.code)
    corpus = "../evil" if payload.form == "remote code" else payload.text()
    command("recipe", *recipe_options(good, corpus=corpus.replace(" ", "_")))


@door
def definition(good, here, payload):
    """An experiment that others defined; its values become options of run.sh."""
    (here / "run.sh").write_text(f'#!/bin/sh\n[ -z "$2" ] || touch {payload.mark}\n')
    (here / "train.yaml").write_text("{}")
    text = DEFINITION.format(text=json.dumps(payload.text()))
    text += payload.document() if payload.form == "YAML tag" else ""
    text = text.replace("preset", "python=x") if payload.is_pickle else text
    (here / "theirs.yaml").write_text(text)
    command(
        "experiment",
        *(here / "theirs.yaml", "--recipe", here, "--expdir", here / "e", "--plan"),
    )

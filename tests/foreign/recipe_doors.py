"""Doors of the recipe's options, of units, and of experiments that others defined."""

import json

import yaml

from tests.foreign.command_lines import command, recipe_options
from tests.foreign.sound_files import door, named_door

DEFINITION = """
title: Small
seeds: [0]
baseline: good
data: {{preset: tiny, teacher: {text}}}
systems:
    good: {{cell: {{upstreams: {text}}}}}
"""


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

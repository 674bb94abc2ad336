"""Stage 8: what was learned, what was forgotten, and how the routers decide."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet2_lamer.analysis.curves import (
    read_curves,
    write_curves,
    write_forgetting_curves,
)
from espnet2_lamer.analysis.listening import has_routers
from espnet2_lamer.analysis.masked_accuracy import masked_accuracy
from espnet2_lamer.analysis.plots import plot_languages, plot_layers
from espnet2_lamer.analysis.routing import RoutingStatistics
from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.layers import record_routing
from espnet2_lamer.metrics.probe import PhoneProbe, frame_phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA
from espnet2_lamer.parallel import run_each
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.upstreams import base_path
from espnet2_lamer.tasks.pretrained import load_pretraining_model
from espnet2_lamer.upstream import load_model

# Frames of a probe are capped, so more training utterances than these add nothing.
PROBE_UTTERANCES = 150


def analyse(options: Options) -> None:
    """Write routing, masked accuracy and forgetting under ``<expdir>/analysis``."""
    dev = options.raw / "ssl_dev"
    utt2lang = read_table(dev / "utt2lang")
    _routing(options, dev, utt2lang)
    _masked(options, dev, utt2lang)
    _forgetting(options, dev, utt2lang)
    _curves(options)


def _read(audio: dict[str, str], utts: list[str], title: str):
    for utt in tqdm(utts, desc=title, disable=not sys.stderr.isatty()):
        speech, _ = soundfile.read(audio[utt], dtype="float32")
        yield utt, torch.from_numpy(speech)[None], torch.tensor([len(speech)])


def _routing(options: Options, dev: Path, utt2lang: dict[str, str]) -> None:
    model = load_model(options.ssl_experiment)
    statistics = RoutingStatistics()
    audio = read_table(dev / "wav.scp")
    for utt, speech, length in _read(audio, sorted(utt2lang), "routing"):
        with record_routing(model) as record:
            _, frames = model.extract_features(speech, length)
        statistics.add_record([utt2lang[utt]], record, frames)
    statistics.save(options.analysis / "routing.json")
    found = statistics.information(options.seed)
    write_json(
        options.analysis / "expert_language.json",
        [
            # Block numbers from 1, as in routing.json.
            {"layer": layer + 1, "router": router, **asdict(information)}
            for (layer, router), information in found.items()
        ],
    )
    if has_routers(model):
        rows = statistics.table()
        plot_layers(rows, options.analysis / "routing_heatmap.png")
        plot_languages(rows, options.analysis / "routing_by_layer.png")
    else:
        logging.info("no layer has a router: no heat-map is drawn")


def _masked(options: Options, dev: Path, utt2lang: dict[str, str]) -> None:
    result: dict[str, dict[str, Any]] = {}
    for experiment in options.trainings:
        model = load_pretraining_model(experiment)
        measures = masked_accuracy(model, dev, utt2lang, options.seed)
        result[experiment.name] = {lang: asdict(m) for lang, m in measures.items()}
    write_json(options.analysis / "masked_accuracy.json", result)


def _curves(options: Options) -> None:
    """Draw what the trainings logged per language at each validation."""
    trainings = {
        path.name: path
        for path in options.trainings
        if (path / "checkpoint.pth").exists()
    }
    logged = {
        key for path in trainings.values() for r in read_curves(path) for key in r
    }
    keys = tuple(f"acc_m_{x}" for x in options.langs if f"acc_m_{x}" in logged)
    if keys:
        # The head-only control's curve is what a base that forgets nothing reaches.
        path = options.analysis / "masked_accuracy_curves.csv"
        write_curves(trainings, path, keys)
    measured = options.ssl_experiment / "forgetting.jsonl"
    if measured.is_file() and measured.stat().st_size:
        path = options.analysis / "forgetting_curves.csv"
        write_forgetting_curves(measured, path, options.langs)


def _forgetting(options: Options, dev: Path, utt2lang: dict[str, str]) -> None:
    """Phone probe and CKA of base and adapted model, on the layer that ASR uses."""
    train = options.raw / "ssl_train"
    layer = options.asr_layer
    if layer == "all":
        layer = read_architecture(base_path(options))["encoder_num_layers"] - 1
    files = {
        "random": options.random_upstream,
        "base": base_path(options),
        "lamer": options.ssl_experiment,
    }
    sets = {"train": train, "dev": dev}
    audio = {k: read_table(path / "wav.scp") for k, path in sets.items()}
    train_lang = read_table(train / "utt2lang")
    phones = {}
    if all((path / "phones.ctm").is_file() for path in sets.values()):
        phones = {k: frame_phones(path / "phones.ctm") for k, path in sets.items()}
    else:
        logging.info("no phones.ctm: forgetting is measured by CKA alone")
    rng = np.random.default_rng(options.seed)
    calls = []
    for lang in options.langs:
        utts = {
            "train": sorted(u for u, other in train_lang.items() if other == lang),
            "dev": sorted(u for u, other in utt2lang.items() if other == lang),
        }
        if not phones:
            utts["train"] = []
        elif len(utts["train"]) > PROBE_UTTERANCES:
            chosen = rng.choice(len(utts["train"]), PROBE_UTTERANCES, replace=False)
            utts["train"] = [utts["train"][i] for i in sorted(chosen)]
        wavs = {k: {u: audio[k][u] for u in chosen} for k, chosen in utts.items()}
        spoken = {
            k: {u: of_set[u] for u in utts[k] if u in of_set}
            for k, of_set in phones.items()
        }
        for name in options.analysed:
            base = files["base"] if name != "base" else None
            calls.append(
                (lang, name, files[name], base, layer, wavs, spoken, options.seed)
            )
    result: dict[str, Any] = {"layer": layer, "phone_probe": {}, "cka": {}}
    found = run_each(_compare, calls, options.nj, "forgetting")
    for (lang, name, *_), (probe, cka) in zip(calls, found, strict=True):
        if probe is not None:
            result["phone_probe"].setdefault(lang, {})[name] = asdict(probe)
        if cka is not None:
            result["cka"].setdefault(lang, {})[name] = cka
    write_json(options.analysis / "forgetting.json", result)


def _compare(
    lang: str,
    name: str,
    file: Path,
    base: Path | None,
    layer: int,
    wavs: dict[str, dict[str, str]],
    phones: dict[str, dict[str, list[str | None]]],
    seed: int,
) -> tuple[PhoneProbe | None, float | None]:
    """Phone probe of a model, and its CKA with the base where that is given.

    ``wavs`` holds the audio file of each utterance of ``train`` and ``dev``,
    ``phones`` its frames' phones; without training utterances there is no probe.
    """
    features = _features(file, wavs["dev"], layer)
    cka = None
    if base is not None:
        cka = _cka(_features(base, wavs["dev"], layer), features)
    if not wavs["train"]:
        return None, cka
    trained = _features(file, wavs["train"], layer)
    probe = phone_probe(trained, phones["train"], features, phones["dev"], seed=seed)
    logging.info(
        "phone probe, %s, %s, layer %d: %.1f %% (majority %.1f %%)",
        lang,
        name,
        layer,
        probe.accuracy.value,
        probe.majority,
    )
    return probe, cka


def _features(file: Path, wavs: dict[str, str], layer: int) -> dict[str, np.ndarray]:
    model = load_model(file)
    return {
        utt: model.extract_features(speech, length)[0][layer][0].numpy()
        for utt, speech, length in _read(wavs, list(wavs), "probe features")
    }


def _cka(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> float:
    cka = LinearCKA()
    for utt, features in x.items():
        cka.add(features, y[utt])
    return float(cka.value())

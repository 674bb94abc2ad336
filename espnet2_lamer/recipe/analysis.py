"""Stage 8: what was learned, what was forgotten, and how the routers decide."""

import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from espnet2_lamer.analysis.listening import has_routers
from espnet2_lamer.analysis.masked_accuracy import masked_accuracy
from espnet2_lamer.analysis.norms import norms_report, read_courses, write_norms
from espnet2_lamer.analysis.plots import (
    plot_languages,
    plot_layers,
    read_curves,
    write_curves,
    write_forgetting_curves,
    write_routing_curves,
)
from espnet2_lamer.analysis.routing import RoutingStatistics
from espnet2_lamer.constants import SAMPLE_RATE
from espnet2_lamer.convert.load import read_architecture
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.gpus import run_on_gpus
from espnet2_lamer.layers import record_routing
from espnet2_lamer.metrics.probe import PhoneProbe, frame_phones, phone_probe
from espnet2_lamer.metrics.similarity import LinearCKA
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.reporting import report_pretraining
from espnet2_lamer.recipe.upstreams import base_path
from espnet2_lamer.tasks.pretrained import load_pretraining_model
from espnet2_lamer.upstream import load_model

# Frames of a probe are capped, so more training utterances than these add nothing.
PROBE_UTTERANCES = 150


def analyse(options: Options) -> None:
    """Write routing, masked accuracy and forgetting under ``<expdir>/analysis``.

    And a page of them, until there are results of heads.
    """
    dev = options.ssl_dev
    utt2lang = read_table(dev / "utt2lang")
    _routing(options, dev, utt2lang)
    _masked(options, dev, utt2lang)
    _forgetting(options, dev)
    _curves(options)
    report_pretraining(options)


def read_speech(
    audio: dict[str, str], utts: Iterable[str], title: str, seconds: int | None = None
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield utterance, waveform ``[1, samples]`` and its length, of the start."""
    frames = -1 if seconds is None else seconds * SAMPLE_RATE
    for utt in tqdm(list(utts), desc=title, disable=not sys.stderr.isatty()):
        speech, _ = soundfile.read(audio[utt], frames, dtype="float32")
        yield utt, torch.from_numpy(speech)[None], torch.tensor([len(speech)])


def by_language(utt2lang: dict[str, str]) -> dict[str, list[str]]:
    """Sort the utterances of each language."""
    found: dict[str, list[str]] = {}
    for utt in sorted(utt2lang):
        found.setdefault(utt2lang[utt], []).append(utt)
    return found


def draw(utts: list[str], size: int, rng: np.random.Generator) -> list[str]:
    """Draw some utterances and keep their order."""
    return [utts[i] for i in sorted(rng.choice(len(utts), size, replace=False))]


def _routing(options: Options, dev: Path, utt2lang: dict[str, str]) -> None:
    device = options.device
    model = load_model(options.ssl_experiment).to(device)
    statistics = RoutingStatistics()
    audio = read_table(dev / "wav.scp")
    for utt, speech, length in read_speech(audio, sorted(utt2lang), "routing"):
        with record_routing(model) as record:
            _, frames = model.extract_features(speech.to(device), length.to(device))
        statistics.add(utt2lang[utt], record, int(frames[0]))
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
        model = load_pretraining_model(experiment).to(options.device)
        measures = masked_accuracy(model, dev, utt2lang, options.seed)
        result[experiment.name] = {lang: asdict(m) for lang, m in measures.items()}
    write_json(options.analysis / "masked_accuracy.json", result)


def _curves(options: Options) -> None:
    """Draw what the trainings logged per language at each validation."""
    found = [path for path in options.trainings if (path / "checkpoint.pth").exists()]
    trainings = {path.name: path for path in found}
    logged = {key for path in found for row in read_curves(path) for key in row}
    langs = [x for x in options.langs if f"acc_m_{x}" in logged]
    if langs:
        # The head-only control's curve is what a base that forgets nothing reaches.
        path = options.analysis / "masked_accuracy_curves.csv"
        titles = {f"acc_m_{x}": f"masked accuracy, {x}" for x in langs}
        write_curves(trainings, path, titles)
    if "loss_m" in logged:
        path = options.analysis / "training_curves.csv"
        write_curves(trainings, path, {"loss_m": "masked-prediction loss"})
    routed = options.ssl_experiment / "routing.jsonl"
    if routed.is_file() and routed.stat().st_size:
        write_routing_curves(routed, options.analysis / "routing_curves.csv")
    measured = options.ssl_experiment / "forgetting.jsonl"
    if measured.is_file() and measured.stat().st_size:
        path = options.analysis / "forgetting_curves.csv"
        write_forgetting_curves(measured, path, options.langs)
    followed = options.ssl_experiment / "norms.jsonl"
    if followed.is_file() and followed.stat().st_size:
        courses = read_courses([options.ssl_experiment])
        write_norms(courses, norms_report(courses, {}), options.analysis)


def _forgetting(options: Options, dev: Path) -> None:
    """Phone probe and CKA of base and adapted model, on the layer that ASR uses."""
    layer = options.asr_layer
    if layer == "all":
        layer = read_architecture(base_path(options))["encoder_num_layers"] - 1
    files = {
        "random": options.random_upstream,
        "base": base_path(options),
        "lamer": options.ssl_experiment,
    }
    sets = {"train": options.raw / "ssl_train", "dev": dev}
    audio = {k: read_table(path / "wav.scp") for k, path in sets.items()}
    langs = {k: by_language(read_table(p / "utt2lang")) for k, p in sets.items()}
    phones = {}
    if all((path / "phones.ctm").is_file() for path in sets.values()):
        phones = {k: frame_phones(path / "phones.ctm") for k, path in sets.items()}
    else:
        logging.info("no phones.ctm: forgetting is measured by CKA alone")
    rng = np.random.default_rng(options.seed)
    calls = []
    for lang in options.langs:
        utts = {k: of_set.get(lang, []) for k, of_set in langs.items()}
        if not phones:
            utts["train"] = []
        elif len(utts["train"]) > PROBE_UTTERANCES:
            utts["train"] = draw(utts["train"], PROBE_UTTERANCES, rng)
        wavs = {k: {u: audio[k][u] for u in chosen} for k, chosen in utts.items()}
        spoken = {
            k: {u: of_set[u] for u in utts[k] if u in of_set}
            for k, of_set in phones.items()
        }
        for name in options.analysed:
            models = (files[name], files["base"] if name != "base" else None)
            settings = (options.seed, options.device)
            calls.append((lang, name, *models, layer, wavs, spoken, *settings))
    result: dict[str, Any] = {"layer": layer, "phone_probe": {}, "cka": {}}
    names = [f"forgetting, {lang}, {name}" for lang, name, *_ in calls]
    how = (options.nj, options.ngpu, "forgetting", names)
    found = run_on_gpus(_compare, calls, *how)
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
    device: str,
) -> tuple[PhoneProbe | None, float | None]:
    """Phone probe of a model, and its CKA with the base where that is given.

    ``wavs`` holds the audio file of each utterance of ``train`` and ``dev``,
    ``phones`` its frames' phones; without training utterances there is no probe.
    """
    features = _features(file, wavs["dev"], layer, device)
    cka = None
    if base is not None:
        similarity = LinearCKA()
        for utt, of_base in _features(base, wavs["dev"], layer, device).items():
            similarity.add(of_base, features[utt])
        cka = float(similarity.value())
    if not wavs["train"]:
        return None, cka
    trained = _features(file, wavs["train"], layer, device)
    probe = phone_probe(trained, phones["train"], features, phones["dev"], seed=seed)
    found = f"{probe.accuracy.value:.1f} % (majority {probe.majority:.1f} %)"
    logging.info("phone probe, %s, %s, layer %d: %s", lang, name, layer, found)
    return probe, cka


def _features(
    file: Path, wavs: dict[str, str], layer: int, device: str
) -> dict[str, np.ndarray]:
    model = load_model(file).to(device)
    found = {}
    for utt, speech, length in read_speech(wavs, wavs, "probe features"):
        moved = speech.to(device), length.to(device)
        states, _ = model.extract_features(*moved, layer)
        found[utt] = states[layer][0].cpu().numpy()
    return found

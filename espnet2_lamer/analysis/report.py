"""What is measured about one model on one set of speech, as plain values."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from espnet2_lamer.analysis.language_probe import (
    chance_level,
    held_out_folds,
    language_probe,
)
from espnet2_lamer.analysis.listening import (
    Heard,
    SpeechSet,
    has_experts,
    has_routers,
    listen,
)
from espnet2_lamer.layers import LamerFeedForward, parameter_report
from espnet2_lamer.metrics.tables import p_value

OWN_BASE = "the model with its experts switched off"
# Of a loaded model: it has no head, and nothing of it trains.
_ABSENT = ("trainable", "head")


def report_on(
    model: nn.Module,
    base: nn.Module | None,
    speech: SpeechSet,
    layers: list[int],
    names: dict[str, str | None],
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Listen to the speech and collect every figure: what ``report.json`` holds.

    Parts that the model or the speech does not allow are None, and ``notes`` says why;
    see :doc:`/analysis`. Arguments are those of
    :func:`~espnet2_lamer.analysis.listening.listen`, but that without ``base`` the
    model's experts are switched off, where it has any, and ``names`` are ``model`` and
    ``base`` as the user gave them.
    """
    notes: list[str] = []
    compared = model if base is None and has_experts(model) else base
    if compared is None:
        notes.append(
            "Nothing is said about forgetting: the model has no experts that could be "
            "switched off, and no --base was given."
        )
    if speech.confounded:
        notes.append(
            "Channel-confounded: no source of the speech covers two languages, so the "
            "recording tells the language. Figures that tell languages apart are no "
            "evidence about languages."
        )
    heard = listen(model, compared, speech, layers, device, seed)
    base_name = names["base"] or (OWN_BASE if compared is not None else None)
    return {
        "model": _model(model, names["model"]),
        "base": base_name,
        "data": _data(speech, heard),
        "seed": seed,
        "routing": _routing(model, heard, seed, notes),
        "language_probe": _language_probe(heard, seed, notes),
        "forgetting": heard.forgetting or None,
        "notes": notes,
    }


def _model(model: nn.Module, source: str | None) -> dict[str, Any]:
    counts = parameter_report(model)
    routed = [m for m in model.modules() if isinstance(m, LamerFeedForward)]
    experts = {m.layer + 1: m.num_experts for m in routed}
    lamer = getattr(model, "lamer", None)
    options = ("rank", "alpha", "top_k", "targets", "router", "balance", "merge")
    trained, in_training = Path(source or "") / "parameters.json", None
    if trained.is_file():
        in_training = json.loads(trained.read_text(encoding="utf-8"))
    return {
        "source": source,
        "kind": "S3PRL upstream" if hasattr(model, "source") else "HuBERT",
        "layers": model.num_layers,
        "dim": model.dim,
        "parameters": {k: v for k, v in counts.items() if not k.startswith(_ABSENT)},
        "parameters_in_training": in_training,
        "experts": [experts.get(k, 0) for k in range(1, model.num_layers + 1)],
        "options": {key: lamer.get(key) for key in options} if lamer else None,
    }


def _data(speech: SpeechSet, heard: Heard) -> dict[str, Any]:
    return {
        "source": speech.source,
        "languages": {
            lang: {
                "utterances": len(utterances),
                "available": speech.available[lang],
                "seconds": round(heard.seconds[lang], 2),
                "speakers": len({u.speaker for u in utterances if u.speaker}) or None,
                "with_phones": sum(u.utt_id in speech.phones for u in utterances),
            }
            for lang, utterances in speech.utterances.items()
        },
        "speakers_known": speech.speakers_known,
        "channel_confounded": speech.confounded,
    }


def _routing(
    model: nn.Module, heard: Heard, seed: int, notes: list[str]
) -> dict[str, Any] | None:
    if not has_routers(model):
        notes.append(
            "Nothing is said about routing: no layer chooses between experts (that "
            "takes two or more in a layer)."
        )
        return None
    information = heard.routing.information(seed)
    rows = []
    for row in heard.routing.layers():
        found = asdict(information[row["layer"] - 1, row["router"]])
        row["mutual_information"] = found.pop("value")
        rows.append(row | {f"information_{key}": v for key, v in found.items()})
    return {"layers": rows, "table": heard.routing.table()}


def _language_probe(heard: Heard, seed: int, notes: list[str]) -> dict[str, Any] | None:
    langs = [u.lang for u in heard.utterances]
    if len(set(langs)) < 2:
        notes.append(
            "Nothing is said about telling languages apart: the speech has one "
            "language."
        )
        return None
    utts, speakers = zip(
        *((u.utt_id, u.speaker) for u in heard.utterances), strict=True
    )
    folds = held_out_folds(utts, langs, speakers, seed=seed)
    if not folds.by_speaker:
        notes.append(
            "The language probe is tested on other utterances, not on other speakers: "
            "speakers are not known, or a language has one speaker only. It may tell "
            "speakers or recordings instead of languages."
        )
    systems = {"model": heard.vectors}
    if heard.base_vectors is not None:
        systems["base"] = heard.base_vectors
    layers = []
    for state in range(heard.vectors.shape[1]):
        row: dict[str, Any] = {"layer": state}
        measures = {}
        for name, vectors in systems.items():
            found = language_probe(vectors[:, state], langs, folds, seed)
            measures[name] = found
            row[name] = {"value": found.value, "interval": list(found.interval)}
        if "base" in measures:
            test = measures["model"].compare(measures["base"])
            row |= {"difference": test.value, "p": test.p}
        layers.append(row)
    return {
        "chance": chance_level(langs, folds),
        "folds": folds.number,
        "by_speaker": folds.by_speaker,
        "drawn": len(set(folds.owners)),
        "utterances": len(langs),
        "layers": layers,
    }


def summary(report: dict[str, Any]) -> list[str]:
    """Say in a few sentences what was found."""
    lines = []
    if report["routing"]:
        rows = report["routing"]["layers"]
        dead = sum(len(row["dead_experts"]) for row in rows)
        every = sum(row["experts"] for row in rows)
        lines.append(f"{dead} of {every} experts are dead.")
        most = max(rows, key=lambda row: row["mutual_information"])
        lines.append(
            f"The choice of experts tells most about the language in layer "
            f"{most['layer']}: {most['mutual_information']:.4f} nats (chance "
            f"{most['information_chance']:.4f}, p {p_value(most['information_p'])})."
        )
    if probe := report["language_probe"]:
        best = max(probe["layers"], key=lambda row: row["model"]["value"])
        low, high = best["model"]["interval"]
        lines.append(
            f"The language is told best by layer {best['layer']}: "
            f"{best['model']['value']:.1f} % of utterances ({low:.1f} to {high:.1f}; "
            f"chance {probe['chance']:.1f})."
        )
    for lang, found in (report["forgetting"] or {}).items():
        line = f"{lang}: CKA to the base {min(found['cka']):.3f} or more"
        if rows := found["phone_probe"]:
            worst = min(rows, key=lambda row: row["difference"])
            line += (
                f"; phone accuracy differs most downwards in layer {worst['layer']}: "
                f"{worst['base']['value']:.1f} to {worst['model']['value']:.1f} % "
                f"(p {p_value(worst['p'])}, the worst of {len(rows)} layers)"
            )
        lines.append(line + ".")
    return lines

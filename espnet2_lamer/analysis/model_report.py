"""Everything measured about one model on one set of speech, as plain values."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from espnet2_lamer.analysis.language_probe import (
    Folds,
    chance_level,
    held_out_folds,
    language_probe,
)
from espnet2_lamer.analysis.listening import Heard, has_experts, has_routers, listen
from espnet2_lamer.analysis.speech_set import SpeechSet
from espnet2_lamer.layers import LamerFeedForward, parameter_report
from espnet2_lamer.metrics.measure import Measure

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
    """Listen to the speech and collect every figure.

    Args:
        model: From :func:`espnet2_lamer.load_model`.
        base: Likewise; None: the model without its experts, where it has any.
        speech: What to listen to.
        layers: States that are compared with the base's.
        names: ``model`` and ``base`` as the user gave them.
        device: Where to compute.
        seed: Of splits, bootstrap and shufflings.

    Returns:
        What ``report.json`` holds; see :doc:`/analysis`. Parts that the model or the
        speech does not allow are None, and ``notes`` says why.

    Raises:
        RecipeError: See :func:`~espnet2_lamer.analysis.listening.listen`.
    """
    notes: list[str] = []
    compared = base
    if base is None and has_experts(model):
        compared = model
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
        "forgetting": {lang: asdict(f) for lang, f in heard.forgetting.items()} or None,
        "notes": notes,
    }


def _model(model: nn.Module, source: str | None) -> dict[str, Any]:
    counts = {
        key: value
        for key, value in parameter_report(model).items()
        if not key.startswith(_ABSENT)
    }
    experts = {
        m.layer + 1: m.num_experts
        for m in model.modules()
        if isinstance(m, LamerFeedForward)
    }
    lamer = getattr(model, "lamer", None)
    trained = Path(source or "") / "parameters.json"
    return {
        "source": source,
        "kind": "S3PRL upstream" if hasattr(model, "source") else "HuBERT",
        "layers": model.num_layers,
        "dim": model.dim,
        "parameters": counts,
        "parameters_in_training": (
            json.loads(trained.read_text(encoding="utf-8"))
            if trained.is_file()
            else None
        ),
        "experts": [experts.get(k, 0) for k in range(1, model.num_layers + 1)],
        "options": {
            key: (lamer or {}).get(key)
            for key in ("rank", "alpha", "top_k", "targets", "router", "balance")
        }
        if lamer
        else None,
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
    information = heard.choices.information(seed)
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
    folds = held_out_folds(
        [u.utt_id for u in heard.utterances],
        langs,
        [u.speaker for u in heard.utterances],
        seed=seed,
    )
    if not folds.by_speaker:
        notes.append(
            "The language probe is tested on other utterances, not on other speakers: "
            "speakers are not known, or a language has one speaker only. It may tell "
            "speakers or recordings instead of languages."
        )
    systems = {"model": heard.vectors}
    if heard.base_vectors is not None:
        systems["base"] = heard.base_vectors
    measured = {
        name: [
            language_probe(vectors[:, state], langs, folds, seed)
            for state in range(vectors.shape[1])
        ]
        for name, vectors in systems.items()
    }
    return {
        "chance": chance_level(langs, folds),
        "folds": folds.number,
        "by_speaker": folds.by_speaker,
        "drawn": len(set(folds.owners)),
        "utterances": len(langs),
        "layers": [
            _probe_row(state, measured, folds)
            for state in range(heard.vectors.shape[1])
        ],
    }


def _probe_row(
    state: int, measured: dict[str, list[Measure]], folds: Folds
) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": state}
    for name, measures in measured.items():
        measure = measures[state]
        row[name] = {"value": measure.value, "interval": list(measure.interval)}
    if "base" in measured:
        test = measured["model"][state].compare(measured["base"][state])
        row |= {"difference": test.value, "p": test.p}
    return row

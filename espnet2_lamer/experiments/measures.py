"""What a cell measured: read from the files of stages 8 and 12, per utterance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError

#: Per utterance id its (numerator, denominator).
Parts = Mapping[str, tuple[float, float]]
BETTER = ("higher", "lower", "neither")
_CKA = "CKA to base"
_TRAINABLE = "trainable parameters (%)"
_INFORMATION = "expert-language information (nats)"
#: Kinds of which neither direction is better.
UNDIRECTED = (_CKA, _TRAINABLE, _INFORMATION)


@dataclass(frozen=True)
class CellMeasure:
    """One figure of one cell.

    Attributes:
        name: E.g. ``"phone probe eng"``.
        kind: What it is, without the language: ``"phone probe"``.
        lang: Language, or "" where it is of all.
        better: ``higher``, ``lower`` or ``neither``.
        heads_free: Whether no downstream head was trained for it.
        value: The figure, in per cent for rates.
        parts: Where it is a rate.
        null: What chance alone would give, or None.
    """

    name: str
    kind: str
    lang: str
    better: str
    heads_free: bool
    value: float
    parts: Parts = field(default_factory=dict, repr=False)
    null: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a record."""
        return {**vars(self), "parts": {u: list(p) for u, p in self.parts.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CellMeasure":
        """Read what :meth:`as_dict` returned."""
        parts = {u: tuple(p) for u, p in values["parts"].items()}
        return cls(**{**values, "parts": parts})


def rate(
    kind: str, lang: str, parts: Parts, better: str, heads_free: bool
) -> CellMeasure:
    """Make a measure in per cent from its parts; utterances of weight 0 are left out.

    Raises:
        RecipeError: No utterance is left.
    """
    kept = {u: (float(n), float(d)) for u, (n, d) in sorted(parts.items()) if d > 0}
    if not kept:
        raise RecipeError(f"{kind} {lang}: no utterance has anything to count")
    value = 100 * sum(n for n, _ in kept.values()) / sum(d for _, d in kept.values())
    name = f"{kind} {lang}".strip()
    return CellMeasure(name, kind, lang, better, heads_free, value, kept)


def read_measures(
    expdir: str | Path, raw: str | Path, seed: int = 0
) -> list[CellMeasure]:
    """Collect all figures of a cell whose pretraining is tagged ``lamer``.

    Args:
        expdir: Its ``--expdir``.
        raw: ``dump/raw``.
        seed: Of the scoring's own intervals, which are not used here.

    Raises:
        RecipeError: There are none.
    """
    expdir = Path(expdir)
    measures = [
        *_probes(expdir / "analysis" / "forgetting.json"),
        *_masked(expdir / "analysis" / "masked_accuracy.json"),
        *_parameters(expdir / "ssl_lamer" / "parameters.json"),
        *_routing(expdir / "analysis" / "expert_language.json"),
        *_loads(expdir / "analysis" / "routing.json"),
        *_heads(expdir, Path(raw), seed),
    ]
    if not measures:
        raise RecipeError(
            f"{expdir}: found no results of stages 8 or 12; expected a cell to run "
            "at least one of them"
        )
    return measures


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _probes(path: Path) -> list[CellMeasure]:
    saved = _read(path)
    measures = [
        rate("phone probe", lang, probes["lamer"]["accuracy"]["parts"], "higher", True)
        for lang, probes in saved.get("phone_probe", {}).items()
    ]
    return measures + [
        CellMeasure(f"{_CKA} {lang}", _CKA, lang, "neither", True, cka["lamer"])
        for lang, cka in saved.get("cka", {}).items()
    ]


def _masked(path: Path) -> list[CellMeasure]:
    return [
        rate("masked accuracy", lang, fields["parts"], "higher", True)
        for lang, fields in _read(path).get("ssl_lamer", {}).items()
    ]


def _parameters(path: Path) -> list[CellMeasure]:
    saved = _read(path)
    key = "trainable_percent_of_total"
    if key not in saved:
        return []
    return [CellMeasure(_TRAINABLE, _TRAINABLE, "", "neither", True, saved[key])]


def _routing(path: Path) -> list[CellMeasure]:
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    several = len({row["router"] for row in rows}) > 1
    return [
        CellMeasure(
            name=f"{_INFORMATION} layer {row['layer']}"
            + (f" {row['router']}" if several else ""),
            kind=_INFORMATION,
            lang="",
            better="neither",
            heads_free=True,
            value=row["value"],
            null=row["chance"],
        )
        for row in rows
    ]


def _loads(path: Path) -> list[CellMeasure]:
    """Mean over routers of the busiest expert's load; 1: all experts get the same.

    A router that uses all its experts has 1 by construction.
    """
    layers = _read(path).get("layers", [])
    if not layers:
        return []
    kind = "busiest expert's load (even: 1)"
    value = sum(max(layer["load"]) for layer in layers) / len(layers)
    return [CellMeasure(kind, kind, "", "lower", True, value)]


def _heads(expdir: Path, raw: Path, seed: int) -> list[CellMeasure]:
    from espnet2_lamer.evaluation.runs import RECORD, Run
    from espnet2_lamer.evaluation.scored_runs import score_run

    measures = []
    for path in sorted(expdir.glob(f"*/{RECORD}")):
        run = Run.read(path)
        for test in score_run(run, expdir, raw, seed):
            label = f"{test.task.label} ({test.task.unit})"
            if test.score is not None:
                parts = {
                    u: (c.errors, c.ref_length) for u, c in test.score.counts.items()
                }
                kind = "ASR error" if run.track == "asr" else f"{run.track} error"
                measures.append(rate(kind, label, parts, "lower", False))
            if test.found is not None:
                parts = {u: (int(ok), 1) for u, ok in test.found.correct.items()}
                measures.append(
                    rate("LID accuracy", f"({test.task.unit})", parts, "higher", False)
                )
    return measures


def with_averages(measures: Mapping[str, CellMeasure]) -> dict[str, list[CellMeasure]]:
    """Group measures for the tables: each alone, and averages over languages.

    An average is of the languages' figures, each with the same weight, as the
    "avg" of the paper's tables.

    Returns:
        Name to the measures whose mean it is.
    """
    groups = {name: [measure] for name, measure in measures.items()}
    by_kind: dict[str, list[CellMeasure]] = {}
    for measure in measures.values():
        if measure.lang and measure.parts and measure.kind != "LID accuracy":
            by_kind.setdefault(measure.kind, []).append(measure)
    for kind, same in by_kind.items():
        if len(same) > 1:
            groups[f"{kind} average"] = same
    return groups

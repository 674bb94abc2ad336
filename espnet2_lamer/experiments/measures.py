"""What a cell measured: read from the files of its analysis and scoring."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.metrics.measure import Parts


@dataclass(frozen=True)
class Kind:
    """What holds for all figures of one kind.

    Attributes:
        better: ``higher``, ``lower`` or ``neither``.
        heads_free: Whether no downstream head was trained for it.
        digits: Decimals in tables.
        highest: No figure can be higher; none is negative.
    """

    better: str
    heads_free: bool = True
    digits: int = 2
    highest: float = math.inf

    def possible(self, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the part of an interval that figures can have.

        With few seeds its ends come from their deviation, which knows no limits.
        """
        return ends and (max(ends[0], 0.0), min(ends[1], self.highest))


#: In the order of the tables.
KINDS = {
    "ASR error": Kind("lower", heads_free=False),
    "multi_asr error": Kind("lower", heads_free=False),
    "asr_lid error": Kind("lower", heads_free=False),
    "LID accuracy": Kind("higher", heads_free=False, highest=100),
    "phone probe": Kind("higher", highest=100),
    "masked accuracy": Kind("higher", highest=100),
    "CKA to base": Kind("neither", digits=3, highest=1),
    "trainable parameters (%)": Kind("neither", highest=100),
    # A router that uses all its experts has 1 by construction.
    "busiest expert's load (even: 1)": Kind("lower"),
    "expert-language information (nats)": Kind("neither", digits=3),
}


# Ends of names: what is counted in brackets, and where in the model.
_PLACE = re.compile(
    r"(?P<label>.*?) ?(?:\((?P<unit>[^()]*)\))?"
    r"(?: ?layer (?P<layer>\d+)(?: (?P<router>.+))?)?"
)


@dataclass(frozen=True)
class Name:
    """What was measured, as tables call it: ``str`` is ``"ASR error eng (char)"``.

    Attributes:
        kind: A key of :data:`KINDS`.
        label: Test set or language, "average" of languages, or "".
        unit: What is counted, or how a language is identified.
        layer: Of a router, or None.
        router: Where a layer has several.
    """

    kind: str
    label: str = ""
    unit: str = ""
    layer: int | None = None
    router: str = ""

    def __str__(self) -> str:
        words = [self.kind, self.label]
        words += [f"({self.unit})"] if self.unit else []
        words += [] if self.layer is None else [f"layer {self.layer}"]
        return " ".join(filter(None, [*words, self.router]))

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Read what ``str`` gave.

        Raises:
            RecipeError: It begins with no kind.
        """
        kind = next((k for k in KINDS if text == k or text.startswith(f"{k} ")), None)
        if kind is None:
            raise RecipeError(
                f"measure {text!r}: expected a name that begins with one of "
                f"{', '.join(KINDS)}"
            )
        found = _PLACE.fullmatch(text.removeprefix(kind).strip()).groupdict()
        layer = None if found["layer"] is None else int(found["layer"])
        return cls(
            kind, found["label"], found["unit"] or "", layer, found["router"] or ""
        )

    @property
    def about(self) -> Kind:
        """What holds for its kind."""
        return KINDS[self.kind]

    @property
    def lang(self) -> str:
        """Language of its label: ``yue`` of the test set ``yue fleurs``."""
        return self.label.partition(" ")[0]

    @property
    def order(self) -> tuple[int, str]:
        """Its place in tables: by kind, then by name."""
        return [*KINDS].index(self.kind), str(self)


@dataclass(frozen=True)
class CellMeasure:
    """One figure of one cell; a rate is in per cent and has its parts.

    Attributes:
        lang: Language, the name of a test set that mixes them, or "".
        test: Name of the test set, where that is not the language.
        unit: What is counted, or how a language is identified.
        layer: Of a router, or None.
        router: Where a layer has several.
        null: What chance alone would give, or None.
    """

    kind: str
    value: float
    lang: str = ""
    test: str = ""
    unit: str = ""
    layer: int | None = None
    router: str = ""
    parts: Parts = field(default_factory=dict, repr=False)
    null: float | None = None

    @property
    def name(self) -> str:
        """What the tables call it, e.g. ``"ASR error eng (char)"``."""
        label = self.test or self.lang
        return str(Name(self.kind, label, self.unit, self.layer, self.router))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a record."""
        parts = {utt: list(part) for utt, part in self.parts.items()}
        return {"name": self.name, **vars(self), "parts": parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CellMeasure":
        """Read what :meth:`as_dict` returned, now or when names held more."""
        found = {key: values[key] for key in ("kind", "value", "null")}
        found["parts"] = {utt: tuple(part) for utt, part in values["parts"].items()}
        if "unit" in values:
            return cls(
                **found,
                **{k: values[k] for k in ("lang", "test", "unit", "layer", "router")},
            )
        test, _, unit = values["lang"].partition("(")
        lang = test.partition(" ")[0]
        found |= {"lang": lang, "unit": unit.rstrip(")")}
        found["test"] = "" if test.strip() == lang else test.strip()
        _, in_layer, place = values["name"].partition(" layer ")
        if in_layer:
            layer, _, found["router"] = place.partition(" ")
            found["layer"] = int(layer)
        return cls(**found)


def rate(
    kind: str, lang: str, parts: Parts, unit: str = "", test: str = ""
) -> CellMeasure:
    """Make a measure in per cent from its parts; utterances of weight 0 are left out.

    Raises:
        RecipeError: No utterance is left.
    """
    kept = {u: (float(n), float(d)) for u, (n, d) in sorted(parts.items()) if d > 0}
    if not kept:
        raise RecipeError(f"{kind} {lang}: no utterance has anything to count")
    value = 100 * sum(n for n, _ in kept.values()) / sum(d for _, d in kept.values())
    return CellMeasure(kind, value, lang, test, unit, parts=kept)


def read_measures(
    expdir: str | Path, raw: str | Path, seed: int = 0
) -> list[CellMeasure]:
    """Collect all figures of a cell whose pretraining is tagged ``lamer``.

    ``raw`` is ``dump/raw``; ``seed`` is of the scoring's own intervals, which are not
    used here.

    Raises:
        RecipeError: There are none.
    """
    expdir = Path(expdir)
    analysis = expdir / "analysis"
    forgetting = _read(analysis / "forgetting.json", {})
    measures = [
        rate("phone probe", lang, probes["lamer"]["accuracy"]["parts"])
        for lang, probes in forgetting.get("phone_probe", {}).items()
    ]
    measures += [
        CellMeasure("CKA to base", cka["lamer"], lang)
        for lang, cka in forgetting.get("cka", {}).items()
    ]
    masked = _read(analysis / "masked_accuracy.json", {})
    measures += [
        rate("masked accuracy", lang, fields["parts"])
        for lang, fields in masked.get("ssl_lamer", {}).items()
    ]
    parameters = _read(expdir / "ssl_lamer" / "parameters.json", {})
    share = parameters.get("trainable_percent_of_total")
    if share is not None:
        measures.append(CellMeasure("trainable parameters (%)", share))
    rows = _read(analysis / "expert_language.json", [])
    several = len({row["router"] for row in rows}) > 1
    measures += [
        CellMeasure(
            "expert-language information (nats)",
            row["value"],
            layer=row["layer"],
            router=row["router"] if several else "",
            null=row["chance"],
        )
        for row in rows
    ]
    layers = _read(analysis / "routing.json", {}).get("layers", [])
    if layers:
        # Mean over routers; 1: all experts get the same.
        load = sum(max(layer["load"]) for layer in layers) / len(layers)
        measures.append(CellMeasure("busiest expert's load (even: 1)", load))
    measures += _heads(expdir, Path(raw), seed)
    if not measures:
        raise RecipeError(
            f"{expdir}: found no results of analysis or scoring; expected a cell to "
            "run at least one of them"
        )
    return measures


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _heads(expdir: Path, raw: Path, seed: int) -> list[CellMeasure]:
    from espnet2_lamer.evaluation.runs import RECORD, Run
    from espnet2_lamer.evaluation.scored_runs import score_run

    measures = []
    for path in sorted(expdir.glob(f"*/{RECORD}")):
        run = Run.read(path)
        for test in score_run(run, expdir, raw, seed):
            label, unit = test.task.label, test.task.unit
            if test.score is not None:
                alone = run.track == "asr"
                kind = "ASR error" if alone else f"{run.track} error"
                lang = run.langs[0] if alone else label
                name = "" if label == lang else label
                measures.append(rate(kind, lang, test.score.measure.parts, unit, name))
            if test.found is not None:
                truth, parts = test.found.languages, test.found.measure.parts
                measures.append(rate("LID accuracy", "", parts, unit))
                for lang in sorted(set(truth.values())):
                    own = {
                        utt: part for utt, part in parts.items() if truth[utt] == lang
                    }
                    measures.append(rate("LID accuracy", lang, own, unit))
    return measures

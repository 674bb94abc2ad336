"""The report as one HTML page that needs no other file and no network."""

import base64
import math
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from espnet2_lamer.analysis.heatmap import plot_languages, plot_layers
from espnet2_lamer.analysis.layer_plots import Series, plot_over_layers

_TEMPLATE = "report.html.jinja"


def render_page(report: dict[str, Any]) -> str:
    """Render a report of :func:`espnet2_lamer.analysis.model_report.report_on` as HTML.

    Plots are inside, as PNG.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"count": _count, "share": _share, "p": _p}
    source = files("espnet2_lamer.analysis").joinpath(_TEMPLATE)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    loaded = report["model"]["parameters"]
    trained = report["model"]["parameters_in_training"] or {}
    return template.render(
        report=report,
        parameters={key: loaded.get(key) for key in dict.fromkeys([*loaded, *trained])},
        summary=summary(report),
        images=_images(report),
    )


def summary(report: dict[str, Any]) -> list[str]:
    """Say in a few sentences what was found."""
    lines = []
    if report["routing"]:
        rows = report["routing"]["layers"]
        dead = sum(len(row["dead_experts"]) for row in rows)
        lines.append(
            f"{dead} of {sum(row['experts'] for row in rows)} experts are dead."
        )
        most = max(rows, key=lambda row: row["mutual_information"])
        lines.append(
            f"The choice of experts tells most about the language in layer "
            f"{most['layer']}: {most['mutual_information']:.4f} nats (chance "
            f"{most['information_chance']:.4f}, p {_p(most['information_p'])})."
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
                f"(p {_p(worst['p'])}, the worst of {len(rows)} layers)"
            )
        lines.append(line + ".")
    return lines


def _images(report: dict[str, Any]) -> dict[str, str]:
    """Draw the plots of the parts that are there, each as a data URI."""
    images: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:

        def draw(name: str, plot: Callable[[Path], None]) -> None:
            path = Path(folder) / f"{name}.png"
            plot(path)
            content = base64.b64encode(path.read_bytes()).decode()
            images[name] = f"data:image/png;base64,{content}"

        if report["routing"]:
            table = report["routing"]["table"]
            draw("layers", lambda path: plot_layers(table, path))
            draw("languages", lambda path: plot_languages(table, path))
        if probe := report["language_probe"]:
            rows = probe["layers"]
            lines = {n: _line(rows, n) for n in ("model", "base") if n in rows[0]}
            draw(
                "probe",
                lambda path: plot_over_layers(
                    {"language": lines}, path, "accuracy (%)", probe["chance"]
                ),
            )
        if forgetting := report["forgetting"]:
            cka = {
                lang: Series(found["layers"], found["cka"])
                for lang, found in forgetting.items()
            }
            draw("cka", lambda path: plot_over_layers({"all": cka}, path, "CKA"))
            phones = {
                lang: {
                    name: _line(found["phone_probe"], name)
                    for name in ("model", "base")
                }
                for lang, found in forgetting.items()
                if found["phone_probe"]
            }
            images["phones"] = ""
            if phones:
                draw(
                    "phones",
                    lambda path: plot_over_layers(phones, path, "frame accuracy (%)"),
                )
    return images


def _line(rows: list[dict[str, Any]], name: str) -> Series:
    return Series(
        [row["layer"] for row in rows],
        [row[name]["value"] for row in rows],
        [row[name]["interval"] for row in rows],
        dashed=name == "base",
    )


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f} %"


def _share(value: float, experts: int) -> str:
    return f"{value / math.log(experts):.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

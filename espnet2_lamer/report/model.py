"""The page of ``bin.analyze``: what is inside one model, with its pictures."""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from espnet2_lamer.analysis.plots import Line, plot_languages, plot_layers, plot_lines
from espnet2_lamer.analysis.report import summary
from espnet2_lamer.metrics.tables import p_value
from espnet2_lamer.report.page import data_uri, render_html


def render_page(report: dict[str, Any]) -> str:
    """Render what :func:`~espnet2_lamer.analysis.report.report_on` found as HTML."""
    loaded = report["model"]["parameters"]
    trained = report["model"]["parameters_in_training"] or {}
    return render_html(
        "model.html.jinja",
        {
            "count": _count,
            "p": p_value,
            "share": lambda nats, n: f"{nats / math.log(n):.2f}",
        },
        report=report,
        parameters={key: loaded.get(key) for key in dict.fromkeys([*loaded, *trained])},
        summary=summary(report),
        images=_images(report),
    )


def _images(report: dict[str, Any]) -> dict[str, str]:
    """Draw the plots of the parts that are there, each as a data URI."""
    plots: dict[str, Callable[[Path], None]] = {}
    if report["routing"]:
        table = report["routing"]["table"]
        plots |= {
            "layers": partial(plot_layers, table),
            "languages": partial(plot_languages, table),
        }

    def plot(name: str, rows, chance: float | None = None) -> None:
        plots[name] = partial(plot_lines, rows, xlabel="layer", chance=chance)

    if probe := report["language_probe"]:
        rows = probe["layers"]
        lines = [_line(rows, name) for name in ("model", "base") if name in rows[0]]
        plot("probe", {"accuracy (%)": {"language": lines}}, probe["chance"])
    images: dict[str, str] = {}
    if forgetting := report["forgetting"]:
        cka = [
            Line(found["layers"], found["cka"], lang, colour=f"C{number}")
            for number, (lang, found) in enumerate(forgetting.items())
        ]
        plot("cka", {"CKA": {"all": cka}})
        phones = {
            lang: [_line(found["phone_probe"], name) for name in ("model", "base")]
            for lang, found in forgetting.items()
            if found["phone_probe"]
        }
        images["phones"] = ""
        if phones:
            plot("phones", {"frame accuracy (%)": phones})
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in plots.items():
            path = Path(folder) / f"{name}.png"
            draw(path=path)
            images[name] = data_uri(path.read_bytes(), "image/png")
    return images


def _line(rows: list[dict[str, Any]], name: str) -> Line:
    return Line(
        [row["layer"] for row in rows],
        [row[name]["value"] for row in rows],
        name,
        [row[name]["interval"] for row in rows],
        style="o--" if name == "base" else "o-",
        colour="0.45" if name == "base" else "C0",
    )


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f} %"

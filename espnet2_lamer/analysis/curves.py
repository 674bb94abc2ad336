"""Training curves of ESPnet experiments as CSV and PNG."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from espnet2_lamer.fileio.atomic import atomic_path, write_text
from espnet2_lamer.train.monitor import read_curves


def write_curves(
    experiments: Mapping[str, Path], csv_path: Path, keys: tuple[str, ...]
) -> None:
    """Write the curves of several experiments to a CSV and a PNG beside it.

    Args:
        experiments: Experiment directories by name.
        csv_path: ``NAME.csv``; the picture is ``NAME.png``.
        keys: Which figures, one panel each.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {name: read_curves(path) for name, path in experiments.items()}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["experiment", "epoch", "phase", *keys])
    for name, rows in curves.items():
        for row in rows:
            values = [f"{row[key]:.5g}" if key in row else "" for key in keys]
            writer.writerow([name, row["epoch"], row["phase"], *values])
    write_text(csv_path, buffer.getvalue())
    figure, axes = pyplot.subplots(
        1, len(keys), figsize=(4.5 * len(keys), 3.5), squeeze=False
    )
    for axis, key in zip(axes[0], keys, strict=True):
        for number, (name, rows) in enumerate(curves.items()):
            for phase, style in (("train", ":"), ("valid", "-")):
                points = [r for r in rows if r["phase"] == phase and key in r]
                axis.plot(
                    [r["epoch"] for r in points],
                    [r[key] for r in points],
                    style,
                    color=f"C{number}",
                    label=f"{name}, {phase}",
                )
        axis.set_xlabel("epoch")
        axis.set_title(key)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(csv_path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)

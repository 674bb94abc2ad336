"""A run: one head on one frozen upstream, its experiment directory and its record."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json

RECORD = "run.json"
TRACKS = ("asr", "multi_asr", "lid", "asr_lid")
#: What the heads of a track write, see ``evaluation.tokens.read_targets``.
TARGETS: Mapping[str, str] = {
    "asr": "text",
    "multi_asr": "text",
    "lid": "lang",
    "asr_lid": "lang_text",
}
#: Tracks whose training set mixes languages.
MIXED_TRACKS = ("multi_asr", "lid", "asr_lid")
BENCHMARKS = ("own", "paper", "mlsuperb")
#: Training speech in minutes per data set; None: all there is.
BUDGETS: Mapping[str, float | None] = {"all": None, "10min": 10.0, "1h": 60.0}
LID_READINGS = ("per_set", "total")
LID_UNIT = "lang"


@dataclass(frozen=True)
class Run:
    """What one head is trained and tested on; also the content of ``run.json``.

    Attributes:
        track: ``asr`` (one language), ``multi_asr``, ``lid`` or ``asr_lid``.
        benchmark: Where its sets come from: ``own``, ``paper`` or ``mlsuperb``.
        budget: Training speech: ``10min``, ``1h`` or ``all``.
        corpus: Corpus of the training set; empty where there is one only, and for
            tracks that mix them.
        langs: ISO 639-3 codes of the training set.
        unit: Unit of the text, see ``evaluation.units``; ``lang`` for LID.
        system: The upstream's name in tables.
        upstream: What was loaded, see ``evaluation.upstreams``.
        layer: State index, or ``"all"`` for the learned weighted sum.
        lid_reading: Of mixed tracks of the paper's sets: whether the budget counts for
            each set (``per_set``) or for all together (``total``).
        seed: Of the head's training.
        learning_rate: Instead of the config's, or None.
        config: Head and schedule.
        train_sets: Data directories below ``dump/raw``. dev_sets: likewise.
        tests: Name of a test set in tables to data directories below ``dump/raw``.
    """

    track: str
    benchmark: str
    budget: str
    corpus: str
    langs: tuple[str, ...]
    unit: str
    system: str
    upstream: str
    layer: int | str
    config: str
    train_sets: tuple[str, ...]
    dev_sets: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]] = field(hash=False)
    lid_reading: str | None = None
    seed: int = 0
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """Name of the experiment directory: everything in which two runs may differ."""
        if self.track == "asr":
            parts = ["asr", self.corpus, *self.langs]
        else:
            parts = [self.track, "" if self.benchmark == "own" else self.benchmark]
        parts += ["" if self.budget == "all" else self.budget, self.lid_reading or ""]
        parts += ["" if self.unit == LID_UNIT else self.unit, self.system]
        parts.append("sum" if self.layer == "all" else f"layer{self.layer}")
        if self.learning_rate is not None:
            parts.append(f"lr{self.learning_rate:g}")
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "_".join(part for part in parts if part)

    def directory(self, expdir: str | Path) -> Path:
        """Experiment directory of the run."""
        return Path(expdir) / self.name

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` holds."""
        return {"name": self.name, **asdict(self)}

    def write(self, expdir: str | Path) -> Path:
        """Write ``run.json`` and return its path."""
        path = self.directory(expdir) / RECORD
        write_json(path, self.as_dict())
        return path

    @classmethod
    def read(cls, path: str | Path) -> "Run":
        """Read ``run.json``.

        Args:
            path: The file, or the experiment directory.

        Raises:
            RecipeError: It is missing, or no such record.
        """
        path = Path(path)
        path = path / RECORD if path.is_dir() else path
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("name", None)
            for key in ("langs", "train_sets", "dev_sets"):
                values[key] = tuple(values[key])
            values["tests"] = {k: tuple(v) for k, v in values["tests"].items()}
            return cls(**values)
        except FileNotFoundError:
            raise RecipeError(
                f"{path}: file not found; it is written by stages 10 and 11"
            ) from None
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise RecipeError(
                f"{path}: not a record of a run ({error}); expected the keys name, "
                f"{', '.join(f.name for f in fields(cls))}; train the run again"
            ) from error

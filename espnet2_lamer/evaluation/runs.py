"""A run: one head on one frozen upstream, its record, and whether it is up to date."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import rename_old
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.fileio.prints import older_than

RECORD = "run.json"
#: Tracks in the order of the tables, with their headings.
TRACKS: Mapping[str, str] = {
    "asr": "Monolingual speech recognition",
    "multi_asr": "Multilingual speech recognition",
    "lid": "Language identification",
    "asr_lid": "Speech recognition with language identification",
}
#: What the heads of a track write, see ``evaluation.tokens.read_targets``.
TARGETS: Mapping[str, str] = {
    "asr": "text",
    "multi_asr": "text",
    "lid": "lang",
    "asr_lid": "lang_text",
}
#: Tracks whose training set mixes languages.
MIXED_TRACKS = ("multi_asr", "lid", "asr_lid")
BENCHMARKS = ("own", "paper", "mlsuperb", "mlsuperb2")
#: Training speech in minutes per data set; None: all there is.
BUDGETS: Mapping[str, float | None] = {"all": None, "10min": 10.0, "1h": 60.0}
LID_READINGS = ("per_set", "total")
LID_UNIT = "lang"
#: Behind the name of a system that decodes with language models.
LM_SUFFIX = "_lm"
#: The folder of its hypotheses.
WITH_LM = "with_lm"


@dataclass(frozen=True)
class Run:
    """What one head is trained and tested on; also the content of ``run.json``.

    Attributes:
        budget: Training speech, one of :data:`BUDGETS`.
        corpus: Corpus of the training set; empty where there is one only, and for
            tracks that mix them.
        unit: Unit of the text; ``lang`` for LID.
        system: The upstream's name in tables.
        layer: State index, or ``"all"`` for the learned weighted sum.
        train_sets: Data directories below ``dump/raw``. dev_sets: likewise.
        tests: Name of a test set in tables to data directories below ``dump/raw``.
        tune: What trains with the head, of ``constants.TUNES``; ``system`` says it,
            too, so that frozen and tuned upstreams are never one row of a table.
        lid_reading: Of mixed tracks of the paper's sets: whether the budget counts for
            each set (``per_set``) or for all together (``total``).
        corpora: Those that were chosen of a benchmark (``--eval_corpora``), each tested
            apart; empty: all, and ML-SUPERB's own tasks.
        upstream_mode: Whether the frozen upstream drops what it dropped in its training
            (``train``) while the head trains; ``system`` says it, too.
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
    tune: str = "head"
    corpora: tuple[str, ...] = ()
    upstream_mode: str = "eval"

    @property
    def head(self) -> str:
        """Name of the run without its seed and learning rate."""
        return replace(self, seed=0, learning_rate=None).name

    @property
    def name(self) -> str:
        """Name of the experiment directory: everything in which two runs may differ."""
        benchmark = "" if self.benchmark == "own" else self.benchmark
        if self.track != "asr":
            parts = [self.track, benchmark, "-".join(self.corpora)]
        elif self.benchmark != "mlsuperb":
            parts = ["asr", self.corpus, *self.langs]
        elif self.corpora:
            parts = ["asr", benchmark, self.corpus, *self.langs]
        else:
            # What the benchmark calls its task.
            parts = ["asr", benchmark, *self.tests]
        parts += ["" if self.budget == "all" else self.budget, self.lid_reading or ""]
        parts += ["" if self.unit == LID_UNIT else self.unit, self.system]
        parts.append("sum" if self.layer == "all" else f"layer{self.layer}")
        if self.benchmark == "mlsuperb2":
            # Its heads differ in kind.
            parts.append(self.head_kind)
        if self.learning_rate is not None:
            parts.append(f"lr{self.learning_rate:g}")
        if self.seed:
            parts.append(f"seed{self.seed}")
        return "_".join(part for part in parts if part)

    @property
    def head_kind(self) -> str:
        """Name of the head by its config."""
        return head_kind(self.config)

    def directory(self, expdir: str | Path) -> Path:
        """Experiment directory of the run."""
        return Path(expdir) / self.name

    def as_dict(self) -> dict[str, Any]:
        """Return what ``run.json`` holds."""
        return {"name": self.name, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read ``run.json``.

        Raises:
            RecipeError: It is missing, or no such record.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("name", None)
            values.setdefault("corpora", ())
            for key in ("langs", "train_sets", "dev_sets", "corpora"):
                values[key] = tuple(values[key])
            values["tests"] = {k: tuple(v) for k, v in values["tests"].items()}
            return cls(**values)
        except FileNotFoundError:
            raise RecipeError(
                f"{path}: file not found; it is written when a head is trained"
            ) from None
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise RecipeError(
                f"{path}: not a record of a run ({error}); expected the keys name, "
                f"{', '.join(f.name for f in fields(cls))}; train the run again"
            ) from error


@dataclass(frozen=True)
class Task:
    """What heads were trained for and tested on; figures of one task compare.

    Attributes:
        unit: What is counted: the scoring unit, or for LID how the language is chosen.
        train: Training speech: corpus, amount and how it was mixed.
        part: The language, or ``group`` of them, that alone counts of the test set.
    """

    track: str
    test: str
    unit: str
    train: str = ""
    part: str = ""
    group: bool = False

    @property
    def label(self) -> str:
        """Name of what was tested."""
        return f"{self.test}: {self.part}" if self.part else self.test


@dataclass(frozen=True)
class Rate:
    """What a learning rate (None: the config's own) gave a head of a system.

    ``dev_loss`` is the best on the dev set, mean over seeds; the lowest is chosen.
    """

    head: str
    system: str
    learning_rate: float | None
    dev_loss: float
    chosen: bool


def choose_rates(
    runs: Sequence[Run], expdir: str | Path
) -> tuple[list[Run], list[Rate]]:
    """Keep each head's runs at its best learning rate.

    ML-SUPERB's hidden set is evaluated at several learning rates, everything else
    fixed, and the best result counts. Here the best is the one with the lowest dev
    loss, mean over seeds, as ``training.json`` says: test sets choose nothing.
    Returns the runs that are scored, and what every rate of a head with several gave.

    Raises:
        RecipeError: A run of a sweep was not trained.
    """
    heads: dict[str, dict[float | None, list[Run]]] = {}
    for run in runs:
        heads.setdefault(run.head, {}).setdefault(run.learning_rate, []).append(run)
    best: dict[str, float | None] = {}
    rates = []
    for head, by_rate in heads.items():
        if len(by_rate) == 1:
            best[head] = next(iter(by_rate))
            continue
        losses = {
            rate: fmean(_dev_loss(run, expdir) for run in trained)
            for rate, trained in by_rate.items()
        }
        best[head] = min(losses, key=losses.__getitem__)
        rates += [
            Rate(head, by_rate[rate][0].system, rate, loss, rate == best[head])
            for rate, loss in losses.items()
        ]
    return [run for run in runs if run.learning_rate == best[run.head]], rates


def _dev_loss(run: Run, expdir: str | Path) -> float:
    path = run.directory(expdir) / "training.json"
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["valid_loss"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: no dev loss ({error!r}); it is written when training ends"
        ) from error


def made_from(
    path: Path, inputs: Mapping[str, Any], tables: Sequence[Path] = ()
) -> bool:
    """Tell whether ``path`` records exactly ``inputs`` (``False`` without a file).

    A record of an earlier version says nothing of the ``audio`` that ``tables`` name:
    there it must be older than the record.
    """
    if not path.is_file():
        return False
    # Through JSON, which turns tuples into lists and keys into strings.
    recorded = json.loads(path.read_text(encoding="utf-8"))
    if tables and "audio" not in recorded and older_than(path, tables):
        recorded["audio"] = inputs["audio"]
    return recorded == json.loads(json.dumps(inputs))


def put_aside(directory: Path) -> None:
    """Rename a directory after what its ``inputs.json`` records; nothing is lost."""
    tag = sha256_file(directory / "inputs.json")[:8]
    target = rename_old(directory, tag)
    logging.info("%s: inputs changed, training anew; before: %s", directory, target)


def head_kind(config: str | Path) -> str:
    """Name a head of ML-SUPERB 2.0 by its ``train_asr_mlsuperb2_NAME.yaml``."""
    return Path(config).stem.removeprefix("train_asr_mlsuperb2_")

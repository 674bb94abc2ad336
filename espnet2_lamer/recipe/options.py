"""The options of run.sh, as one value that every stage receives."""

import os
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, MHUBERT147_AUDIO

LAST_STAGE = 14
#: The run that the recipe is about; its files carry no further name.
LAMER_TAG = "lamer"
HEAD_ONLY_TAG = "head_only"


@dataclass
class CommonOptions:
    """The options that every recipe has, and what follows from them."""

    stage: int
    stop_stage: int
    skip_stages: list[int]
    ngpu: int
    nj: int
    seed: int
    datadir: Path
    dumpdir: Path
    expdir: Path
    preset: str
    corpus: str
    manifest: str
    exclude_sources: list[str]
    max_missing: float
    min_duration: float
    max_duration: float
    max_bad_audio: float
    hf_repo: str
    dry_run: bool

    @property
    def raw(self) -> Path:
        """Where formatted data directories are."""
        return self.dumpdir / "raw"

    @property
    def corpus_paths(self) -> dict[str, str] | None:
        """Where ``db.sh`` says that the public corpora are; None if none is in use."""
        used = [CORPORA[name] for name in self.corpus.split() if name in CORPORA]
        if "mhubert147" in self.corpus.split():
            used.append(MHUBERT147_AUDIO)
        return {variable: os.environ.get(variable, "") for variable in used} or None

    @property
    def manifest_files(self) -> list[Path]:
        """The manifest, unless it is a folder or not asked for."""
        if self.corpus != "manifest" or not self.manifest:
            return []
        path = Path(self.manifest)
        return [] if path.is_dir() else [path]


@dataclass
class Options(CommonOptions):
    """Options of the recipe; names and meaning as ``run.sh --help`` shows them.

    ``recipe.ssl_config.resolve_ssl_config`` fills in what follows from the pretraining
    YAML: ``allocation`` (empty where the whole model trains) and ``ssl_tag``.
    """

    num_nodes: int
    dask: str
    base: str
    teacher: str
    teacher_layer: int
    retrain: bool
    trust_s3prl_files: bool
    new_langs: list[str]
    replay_langs: list[str]
    replay_hours: float
    replay_sampling: str
    replay_alpha: float
    replay_clusters: str
    dev_hours: float
    drop_overlap: bool
    kmeans_hours: float
    n_clusters: int
    allocation: str
    ssl_config: Path
    ssl_tag: str
    control: bool
    sanity: bool
    upstreams: list[str]
    benchmark: str
    budgets: list[str]
    tracks: list[str]
    eval_langs: list[str]
    eval_lists: str
    cross_corpus: bool
    lid_reading: str
    units: dict[str, str]
    multi_unit: str
    nbpe: int
    asr_config: Path
    asr_layer: int | str
    multi_config: Path
    lid_config: Path
    lid_layer: int | str
    store_dtype: str
    feature_store_gb: float
    eval_seeds: list[int]
    learning_rates: list[float]
    baselines: list[str]

    @property
    def langs(self) -> list[str]:
        """Every language: replayed ones first, then the new ones."""
        return [*self.replay_langs, *self.new_langs]

    @property
    def checkpoints(self) -> Path:
        """The file in which stage 0 says which base and teacher are used."""
        return self.expdir / "checkpoints.json"

    @property
    def features(self) -> Path:
        """Teacher features for clustering."""
        return self.dumpdir / "features"

    @property
    def codebook(self) -> Path:
        """Centroids."""
        return self.dumpdir / "units" / "codebook.npz"

    @property
    def stats(self) -> Path:
        """Shape files of pretraining."""
        return self.expdir / "ssl_stats"

    @property
    def variant(self) -> str:
        """Suffix of what belongs to one pretraining; empty for Lamer-SSL itself."""
        return "" if self.ssl_tag == LAMER_TAG else f"_{self.ssl_tag}"

    @property
    def ssl_experiment(self) -> Path:
        """The continual pretraining."""
        return self.expdir / f"ssl_{self.ssl_tag}"

    @property
    def control_experiment(self) -> Path:
        """The head-only control, shared by all pretrainings."""
        return self.expdir / f"ssl_{HEAD_ONLY_TAG}"

    @property
    def analysis(self) -> Path:
        """Reports and pictures of stage 8."""
        return self.expdir / f"analysis{self.variant}"

    @property
    def analysed(self) -> list[str]:
        """Models that stage 8 compares: the pretraining and, if upstreams, others."""
        others = ("random", "base")
        return [*(name for name in others if name in self.upstreams), "lamer"]

    @property
    def results(self) -> Path:
        """Directory of ``RESULTS.md``, one per pretraining and benchmark."""
        benchmark = "" if self.benchmark == "own" else f"_{self.benchmark}"
        suffix = self.variant + benchmark
        return self.expdir / f"results{suffix}" if suffix else self.expdir

    def system(self, upstream: str) -> str:
        """Name of an upstream in file names and tables: the pretraining by its own."""
        return self.ssl_tag if upstream == "lamer" else upstream

    @property
    def random_upstream(self) -> Path:
        """The base's network with random weights."""
        return self.expdir / "random"

    @property
    def overlap_tree(self) -> str:
        """ML-SUPERB's data by ``db.sh``, whatever the benchmark: it comes later."""
        return "" if self.corpus == "mini" else os.environ.get("MLSUPERB", "")

    @property
    def mlsuperb(self) -> str:
        """Where ``db.sh`` says that ML-SUPERB's data are; empty if not in use."""
        return os.environ.get("MLSUPERB", "") if self.benchmark == "mlsuperb" else ""

    @property
    def feature_stores(self) -> Path:
        """Stored features of the upstreams, shared by all heads."""
        return self.dumpdir / "feature_store"

    @property
    def eval_list_files(self) -> list[Path]:
        """The utterance lists of ``--eval_lists``."""
        return sorted(Path(self.eval_lists).glob("*.txt")) if self.eval_lists else []

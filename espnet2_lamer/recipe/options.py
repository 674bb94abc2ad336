"""The options of run.sh, as one value that every stage receives."""

import os
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, MHUBERT147_AUDIO
from espnet2_lamer.evaluation.runs import BENCHMARKS, BUDGETS, LID_READINGS, TRACKS
from espnet2_lamer.recipe.declaration import (
    DATA,
    EVALUATION,
    MODELS,
    PUBLISHING,
    option,
)

#: The run that the recipe is about; its files carry no further name.
LAMER_TAG = "lamer"
HEAD_ONLY_TAG = "head_only"


@dataclass(kw_only=True)
class CommonOptions:
    """The options that every recipe has, and what follows from them."""

    preset: str = option("mini | paper, see conf/presets", "mini")
    stage: int = option("first stage to run", 0, least=0)
    stop_stage: int = option("last stage to run", -1, empty="the last")
    skip_stages: list[int] = option('stages to leave out, e.g. "5 6"', [])
    print_commands: bool = option(
        "true: print the commands that do these stages' work by hand, run nothing",
        False,
    )
    nj: int = option("parallel jobs of this machine", 2, least=1)
    ngpu: int = option("GPUs per node, 0 = CPU", 0, least=0)
    seed: int = option("seed of everything random", 0)
    datadir: Path = option("data directories of stage 1", Path("data"))
    dumpdir: Path = option("formatted data, features, units", Path("dump"))
    expdir: Path = option("experiments, logs, results", Path("exp"))
    python: str = option("Python interpreter", "", empty="that of path.sh")
    corpus: str = option(
        "mini | manifest | public corpora, joined, of: commonvoice thchs30 aishell1 "
        "aishell3 fleurs mhubert147, whose paths are in db.sh",
        group=DATA,
    )
    manifest: str = option("TSV, or folder of audio per language", "", group=DATA)
    exclude_sources: list[str] = option(
        "sources of the manifest to leave out", [], group=DATA
    )
    max_missing: float = option(
        "most missing clips per set of a public corpus, in %", 1.0, group=DATA, least=0
    )
    min_duration: float = option("shortest utterance in seconds", group=DATA)
    max_duration: float = option("longest utterance in seconds", group=DATA)
    max_bad_audio: float = option(
        "most unusable audio files per set, in %", 1.0, group=DATA, least=0
    )
    hf_repo: str = option("Hugging Face repository to upload to", "", group=PUBLISHING)
    dry_run: bool = option(
        "true: only list what would be uploaded", False, group=PUBLISHING
    )

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


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of ssl1; ``./run.sh --help`` shows them.

    ``recipe.settle.resolve_ssl_config`` fills in what follows from the pretraining
    YAML: ``allocation`` (empty where the whole model trains) and ``ssl_tag``.
    """

    dask: str = option(
        "run the parallel jobs of data and units on the workers of this Dask "
        "scheduler, such as tcp://host:8786; see docs/scale_out.md",
        "",
    )
    num_nodes: int = option("nodes of pretraining", 1, least=1)
    new_langs: list[str] = option("languages to learn, ISO 639-3", group=DATA)
    replay_langs: list[str] = option("languages to keep", group=DATA)
    replay_hours: float = option("hours of replay per kept language", group=DATA)
    replay_sampling: str = option(
        "uniform | temperature (shares the hours over kept languages) | speaker | "
        "cluster (one of each in turn)",
        "uniform",
        group=DATA,
    )
    replay_alpha: float = option(
        "exponent of temperature: 0 = equal, 1 = in proportion", 0.7, group=DATA
    )
    replay_clusters: str = option(
        "file with units of the replay candidates", "", group=DATA
    )
    dev_hours: float = option(
        "most validation speech per language, in hours, 0 = all", 1.0, group=DATA
    )
    drop_overlap: bool = option(
        "leave out clips that are in an evaluation set", True, group=DATA
    )
    base: str = option(
        "HuBERT to extend: Hugging Face directory or id, torchaudio bundle, fairseq "
        ".pt file, ESPnet experiment",
        group=MODELS,
    )
    teacher: str = option("model that gives the units", group=MODELS)
    teacher_layer: int = option("its layer", group=MODELS)
    trust_s3prl_files: bool = option(
        "true: let S3PRL read the FILE of s3prl:NAME:FILE in --teacher and "
        "--upstreams, which runs code that it may hold",
        False,
        group=MODELS,
    )
    retrain: bool = option(
        "true: train mini base and teacher anew, hours", False, group=MODELS
    )
    kmeans_hours: float = option("hours per language for k-means", group=MODELS)
    n_clusters: int = option("number of units K", group=MODELS, least=1)
    ssl_config: Path = option("pretraining config", group=MODELS, exists=True)
    allocation: str = option(
        "LoRA experts per group of layers, or auto: by language separability of the "
        "base",
        "",
        group=MODELS,
        empty="as in --ssl_config",
    )
    ssl_tag: str = option(
        "name of the pretraining",
        "",
        group=MODELS,
        empty="from --ssl_config and --allocation",
    )
    control: bool = option("also train the head-only control", True, group=MODELS)
    sanity: bool = option(
        "true: instead of pretraining, overfit one batch and say whether it could be "
        "learnt; nothing after that runs",
        False,
        group=MODELS,
    )
    upstreams: list[str] = option(
        "of: random base lamer, names of conf/upstreams/NAME.yaml, s3prl:NAME, paths, "
        "Hugging Face ids",
        group=EVALUATION,
    )
    tracks: list[str] = option(
        "of: asr multi_asr lid asr_lid",
        ["asr", "lid"],
        group=EVALUATION,
        choices=TRACKS,
    )
    benchmark: str = option(
        "own (sets of stage 1) | paper (CommonVoice and FLEURS in ML-SUPERB's sizes) "
        "| mlsuperb (its data, db.sh)",
        "own",
        group=EVALUATION,
        choices=BENCHMARKS,
    )
    budgets: list[str] = option(
        "training speech, of: 10min 1h; own: all",
        ["all"],
        group=EVALUATION,
        choices=tuple(BUDGETS),
    )
    eval_langs: list[str] = option(
        "languages to evaluate; mlsuperb: all",
        [],
        group=EVALUATION,
        empty="those learnt and kept",
    )
    eval_lists: str = option(
        "paper: folder of utterance lists to use again", "", group=EVALUATION
    )
    cross_corpus: bool = option(
        "paper: also test ASR on the other corpus", False, group=EVALUATION
    )
    lid_reading: str = option(
        "paper: mixtures take the budget per_set | in total",
        "per_set",
        group=EVALUATION,
        choices=LID_READINGS,
    )
    units: dict[str, str] = option(
        "LANG=char|word|pinyin|jyutping|phone|bpe of monolingual ASR",
        {},
        group=EVALUATION,
        empty="eng=char cmn=pinyin yue=jyutping, else char",
    )
    multi_unit: str = option(
        "char | bpe of multi_asr and asr_lid",
        "char",
        group=EVALUATION,
        choices=("char", "bpe"),
    )
    nbpe: int = option("size of a bpe vocabulary", 200, group=EVALUATION, least=1)
    asr_config: Path = option(
        "head and schedule of asr; for 10min NAME_10min.yaml beside it, where there "
        "is one, as for the next two",
        group=EVALUATION,
        exists=True,
    )
    asr_layer: int | str = option(
        "layer that asr and multi_asr read, or all: the learned weighted sum",
        group=EVALUATION,
    )
    multi_config: Path = option(
        "head and schedule of multi_asr and asr_lid", group=EVALUATION, exists=True
    )
    lid_config: Path = option("head and schedule of lid", group=EVALUATION, exists=True)
    lid_layer: int | str = option(
        "layer that lid and asr_lid read, or all", group=EVALUATION
    )
    store_dtype: str = option(
        "float32 | float16 of stored features",
        group=EVALUATION,
        choices=("float32", "float16"),
    )
    feature_store_gb: float = option(
        "most features of a head, in GB; above it the upstream runs in every epoch",
        50.0,
        group=EVALUATION,
        least=0,
    )
    eval_seeds: list[int] = option(
        'seeds of the heads, e.g. "0 1 2": mean and deviation',
        [],
        group=EVALUATION,
        empty="that of --seed",
    )
    learning_rates: list[float] = option(
        'rates that each head is trained at, e.g. "1e-3 1e-4 1e-5"; the lowest dev '
        "loss is scored",
        [],
        group=EVALUATION,
        empty="that of the config",
    )
    baselines: list[str] = option(
        "systems the others are tested against",
        [],
        group=EVALUATION,
        empty="random and base",
    )

    @property
    def langs(self) -> list[str]:
        """Every language: replayed ones first, then the new ones."""
        return [*self.replay_langs, *self.new_langs]

    @property
    def checkpoints(self) -> Path:
        """The file that says which base and teacher are used."""
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
    def trainings(self) -> list[Path]:
        """The pretraining and, if wanted, its control."""
        control = [self.control_experiment] if self.control else []
        return [self.ssl_experiment, *control]

    @property
    def analysis(self) -> Path:
        """Reports and pictures of the analysis."""
        return self.expdir / f"analysis{self.variant}"

    @property
    def analysed(self) -> list[str]:
        """Models that the analysis compares: the pretraining, others if upstreams."""
        others = ("random", "base")
        return [*(name for name in others if name in self.upstreams), "lamer"]

    @property
    def evaluation(self) -> str:
        """Suffix of what belongs to one pretraining on one benchmark."""
        benchmark = "" if self.benchmark == "own" else f"_{self.benchmark}"
        return self.variant + benchmark

    @property
    def results(self) -> Path:
        """Directory of ``RESULTS.md``, one per pretraining and benchmark."""
        name = self.evaluation
        return self.expdir / f"results{name}" if name else self.expdir

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

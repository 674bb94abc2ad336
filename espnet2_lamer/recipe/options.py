"""The options of ssl1's run.sh, as one value that every stage receives."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.constants import TUNES, UPSTREAM_MODES
from espnet2_lamer.evaluation.runs import (
    BENCHMARKS,
    BUDGETS,
    LID_READINGS,
    TRACKS,
    head_kind,
)
from espnet2_lamer.evaluation.text_units import NORMALISATIONS
from espnet2_lamer.recipe.common_options import CommonOptions
from espnet2_lamer.recipe.declaration import (
    data_option,
    head_option,
    model_option,
    option,
)

#: The run that the recipe is about; its files carry no further name.
LAMER_TAG = "lamer"
HEAD_ONLY_TAG = "head_only"
#: Ends the name of a pretraining that went on after re-clustering.
RECLUSTERED = "_reclustered"


@dataclass(kw_only=True)
class Options(CommonOptions):
    """Options of ssl1; ``./run.sh --help`` shows them.

    ``recipe.settle.settle`` fills in what follows from others: ``text_norm``, units,
    and from the pretraining YAML ``allocation`` (empty where the whole model trains)
    and ``ssl_tag``.
    """

    plan: bool = option(
        "true: say what a run would take and lose, write nothing, run nothing", False
    )
    dask: str = option(
        "run the parallel jobs of data and units on the workers of this Dask "
        "scheduler, such as tcp://host:8786; see docs/scale_out.md",
        "",
    )
    num_nodes: int = option("nodes of pretraining", 1, least=1)
    new_langs: list[str] = data_option("languages to learn, ISO 639-3")
    replay_langs: list[str] = data_option("languages to keep")
    replay_hours: float = data_option("hours of replay per kept language")
    replay_sampling: str = data_option(
        "uniform | temperature (shares the hours over kept languages) | speaker | "
        "cluster (one of each in turn)",
        "uniform",
    )
    replay_alpha: float = data_option(
        "exponent of temperature: 0 = equal, 1 = in proportion", 0.7
    )
    replay_clusters: str = data_option("file with units of the replay candidates", "")
    dev_hours: float = data_option(
        "most validation speech per language, in hours, 0 = all", 1.0
    )
    drop_overlap: bool = data_option(
        "leave out clips that are in an evaluation set", True
    )
    base: str = model_option(
        "model to extend (HuBERT, wav2vec 2.0, XLS-R, MMS, data2vec-audio, WavLM): "
        "Hugging Face directory or id, torchaudio bundle, fairseq or fairseq2 .pt "
        "file, ESPnet experiment"
    )
    teacher: str = model_option("model that gives the units")
    teacher_layer: int = model_option("its layer")
    trust_s3prl_files: bool = model_option(
        "true: let S3PRL read the FILE of s3prl:NAME:FILE in --teacher and "
        "--upstreams, which runs code that it may hold",
        False,
    )
    retrain: bool = model_option(
        "true: train a base (the old languages) and a teacher (all) from nothing on "
        "--corpus, as the mini ones were: hours",
        False,
    )
    kmeans_hours: float = model_option("hours per language for k-means")
    n_clusters: int = model_option("number of units K", least=1)
    ssl_config: Path = model_option("pretraining config", exists=True)
    allocation: str = model_option(
        "LoRA experts per group of layers; auto: by language separability of the "
        "base; learnt: and their ranks, by a trial training",
        "",
        empty="as in --ssl_config",
    )
    ssl_tag: str = model_option(
        "name of the pretraining", "", empty="from --ssl_config and --allocation"
    )
    passes: float = model_option(
        "passes of pretraining over the speech, within bounds; 0: the updates of "
        "--ssl_config",
        0.0,
        least=0,
    )
    control: bool = model_option("also train the head-only control", True)
    recluster: int = model_option(
        "layer of the trained model to cluster into new units, on which its training "
        "then goes on; 0: it ends after one round",
        0,
        least=0,
    )
    sanity: bool = model_option(
        "true: instead of pretraining, overfit one batch and say whether it could be "
        "learnt; nothing after that runs",
        False,
    )
    upstreams: list[str] = head_option(
        "of: random base lamer, names of conf/upstreams/NAME.yaml, s3prl:NAME, paths, "
        "Hugging Face ids"
    )
    tracks: list[str] = head_option(
        "of: asr multi_asr lid asr_lid", ["asr", "lid"], choices=TRACKS
    )
    benchmark: str = head_option(
        "own (sets of stage 1) | paper (CommonVoice and FLEURS in ML-SUPERB's sizes) "
        "| mlsuperb (its data, db.sh) | mlsuperb2 (those of version 2.0)",
        "own",
        choices=BENCHMARKS,
    )
    budgets: list[str] = head_option(
        "training speech, of: 10min 1h; own: all", ["all"], choices=tuple(BUDGETS)
    )
    eval_langs: list[str] = head_option(
        "languages to evaluate; mlsuperb and mlsuperb2: all",
        [],
        empty="those learnt and kept",
    )
    eval_corpora: list[str] = head_option(
        "mlsuperb and paper: corpora to evaluate; a head per language and corpus, "
        "each tested apart",
        [],
        empty="mlsuperb: the official tasks; paper: commonvoice fleurs",
    )
    text_norm: str = head_option(
        "transcripts lose their punctuation: unicode (of every script; forms of a "
        "character are one) | official (ASCII's alone, as in ML-SUPERB's scripts) | "
        "as written (none)",
        "",
        choices=("", *NORMALISATIONS),
        empty="mlsuperb: official; mlsuperb2: as written; own, paper: unicode",
    )
    eval_lists: str = head_option("paper: folder of utterance lists to use again", "")
    cross_corpus: bool = head_option("paper: also test ASR on the other corpus", False)
    lid_reading: str = head_option(
        "paper, --eval_corpora: mixtures take the budget per_set | in total",
        "per_set",
        choices=LID_READINGS,
    )
    units: dict[str, str] = head_option(
        "LANG=char|word|pinyin|jyutping|phone|bpe of monolingual ASR",
        {},
        empty="eng=char cmn=pinyin yue=jyutping, else char",
    )
    multi_unit: str = head_option(
        "char | bpe of multi_asr and asr_lid", "char", choices=("char", "bpe")
    )
    nbpe: int = head_option("size of a bpe vocabulary", 200, least=1)
    asr_config: Path = head_option(
        "head and schedule of asr; for 10min NAME_10min.yaml beside it, where there "
        "is one, as for the next two",
        exists=True,
    )
    tune: list[str] = head_option(
        "what trains with the heads of asr and multi_asr, of: head (nothing else) "
        "experts (LoRA, routers) all (transformer, too) lid_routed (multi_asr: LoRA "
        "added to an upstream without experts, in upper layers one of each language); "
        "each is a system of its own",
        ["head"],
        choices=TUNES,
    )
    upstream_mode: list[str] = head_option(
        "frozen upstreams while heads train, of: eval (drops nothing, features are "
        "stored) train (with the dropout of its own training, as ML-SUPERB's recipe "
        "does; runs in every epoch); each is a system of its own",
        ["eval"],
        choices=UPSTREAM_MODES,
    )
    finetune_config: Path = head_option(
        "head, rates and schedule of all --tune but head",
        Path("conf/train_asr_finetune.yaml"),
        exists=True,
    )
    use_ngram: bool = head_option(
        "true: an n-gram model of the training text; decode ASR with and without it",
        False,
    )
    ngram_num: int = head_option("its order, in tokens", 6, least=1)
    use_lm: bool = head_option(
        "true: the same with a transformer LM of ESPnet's LM task", False
    )
    lm_config: Path = head_option(
        "its training", Path("conf/train_lm_transformer.yaml"), exists=True
    )
    lm_train_text: dict[str, str] = head_option(
        "LANG=FILE of more sentences, one a line, for both", {}
    )
    inference_config: Path = head_option(
        "beam and weights of decoding with language models",
        Path("conf/decode_asr_finetune.yaml"),
        exists=True,
    )
    asr_layer: int | str = head_option(
        "layer that asr and multi_asr read, or all: the learned weighted sum"
    )
    multi_config: Path = head_option(
        "head and schedule of multi_asr and asr_lid", exists=True
    )
    lid_config: Path = head_option("head and schedule of lid", exists=True)
    lid_layer: int | str = head_option("layer that lid and asr_lid read, or all")
    store_dtype: str = head_option(
        "float32 | float16 of stored features", choices=("float32", "float16")
    )
    feature_store_gb: float = head_option(
        "most features of a head, in GB; above it the upstream runs in every epoch",
        50.0,
        least=0,
    )
    eval_seeds: list[int] = head_option(
        'seeds of the heads, e.g. "0 1 2": mean and deviation',
        [],
        empty="that of --seed",
    )
    learning_rates: list[float] = head_option(
        'rates that each head is trained at, e.g. "1e-3 1e-4 1e-5"; the lowest dev '
        "loss is scored",
        [],
        empty="that of the config",
    )
    spread: list[str] = head_option(
        "CSVs of bin.experiment that say how far two runs lie apart: inside that "
        "nothing is called gained or lost; of a measure the first that has it counts",
        [],
        empty="not known",
        exists=True,
    )
    baselines: list[str] = head_option(
        "systems the others are tested against", [], empty="random and base"
    )

    @property
    def langs(self) -> list[str]:
        """Every language: replayed ones first, then the new ones."""
        return [*self.replay_langs, *self.new_langs]

    @property
    def retrains_on_corpus(self) -> bool:
        """Whether base and teacher are trained on speech that is not the mini set's."""
        return self.retrain and self.corpus.split() != ["mini"]

    @property
    def checkpoints(self) -> Path:
        """The file that says which base and teacher are used."""
        return self.expdir / "checkpoints.json"

    @property
    def first_round(self) -> "Options":
        """The same run without ``--recluster``: what is clustered anew is its model.

        ``exp/ssl_lamer_reclustered`` goes on from ``exp/ssl_lamer``, and a training
        that ``--ssl_tag`` named NAME from ``NAME_first_round``.
        """
        found = copy.copy(self)
        found.recluster = 0
        found.ssl_tag = self.ssl_tag.removesuffix(RECLUSTERED)
        if found.ssl_tag == self.ssl_tag:
            found.ssl_tag += "_first_round"
        return found

    @property
    def round_dir(self) -> Path:
        """Where units are: the ``dumpdir``, or a folder there of re-clustered ones."""
        own = self.dumpdir / f"units_{self.ssl_tag}"
        return own if self.recluster else self.dumpdir

    @property
    def ssl_train(self) -> Path:
        """Training speech of pretraining with its units."""
        return self.round_dir / "raw" / "ssl_train"

    @property
    def ssl_dev(self) -> Path:
        """Validation speech of pretraining with its units."""
        return self.round_dir / "raw" / "ssl_dev"

    @property
    def features(self) -> Path:
        """Teacher features for clustering."""
        return self.round_dir / "features"

    @property
    def units_dir(self) -> Path:
        """Codebook and list of the units."""
        return self.round_dir / "units"

    @property
    def codebook(self) -> Path:
        """Centroids."""
        return self.units_dir / "codebook.npz"

    @property
    def label_quality(self) -> Path:
        """What the units are worth."""
        folder = self.round_dir if self.recluster else self.expdir
        return folder / "label_quality.json"

    @property
    def stats(self) -> Path:
        """Shape files of pretraining."""
        return (self.round_dir if self.recluster else self.expdir) / "ssl_stats"

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
        """The head-only control, shared by all pretrainings on the same units."""
        own = f"_{self.ssl_tag}" if self.recluster else ""
        return self.expdir / f"ssl_{HEAD_ONLY_TAG}{own}"

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
        return [*(n for n in ("random", "base") if n in self.upstreams), "lamer"]

    @property
    def evaluation(self) -> str:
        """Suffix of what belongs to one pretraining on one benchmark.

        Version 2.0 has heads of several kinds, each with results of its own.
        """
        benchmark = "" if self.benchmark == "own" else f"_{self.benchmark}"
        if self.benchmark == "mlsuperb2":
            benchmark += f"_{head_kind(self.multi_config)}"
        corpora = f"_{'-'.join(self.eval_corpora)}" if self.eval_corpora else ""
        return self.variant + benchmark + corpora

    @property
    def results(self) -> Path:
        """Directory of ``RESULTS.md``, one per :attr:`evaluation`."""
        return self.expdir / (f"results{self.evaluation}" if self.evaluation else "")

    def system(self, upstream: str) -> str:
        """Name of an upstream in file names and tables: the pretraining by its own."""
        return self.ssl_tag if upstream == "lamer" else upstream

    @property
    def language_models(self) -> bool:
        """Whether recognisers get language models."""
        return self.use_ngram or self.use_lm

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
        """Where ``db.sh`` says that the benchmark's data are; empty if not in use."""
        official = self.benchmark in ("mlsuperb", "mlsuperb2")
        return os.environ.get(self.benchmark.upper(), "") if official else ""

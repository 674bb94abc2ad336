"""Files that stages of ssl1 read and write, as functions of the options."""

from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.evaluation.mlsuperb_tree import scan_tree
from espnet2_lamer.recipe.benchmark import (
    adapter_files,
    eval_langs,
    packages,
    planned_runs,
    planned_sets,
)
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.upstreams import (
    BUILT_IN,
    CONFIGS,
    upstream_specs,
    weight_files,
)


def mini_sums(options: Options) -> list[Path]:
    """Checksums of the committed checkpoints."""
    path = Path("mini") / "SHA256SUMS"
    return [path] if path.is_file() else []


def ssl_sets(options: Options) -> list[Path]:
    """Formatted speech of pretraining."""
    return [
        options.raw / split / name
        for split in ("ssl_train", "ssl_dev")
        for name in ("wav.scp", "utt2num_samples", "utt2lang")
    ]


def corpus_sets(options: Options) -> list[Path]:
    """Prepared speech of every language."""
    return [
        options.datadir / f"train_{lang}" / name
        for lang in options.langs
        for name in ("wav.scp", "utt2lang")
    ]


def selection_inputs(options: Options) -> list[Path]:
    """Everything that decides what pretraining takes, evaluation sets included."""
    from espnet2_lamer.data.overlap import evaluation_dirs

    tables = [
        options.datadir / f"{split}_{lang}" / name
        for split in ("train", "dev")
        for lang in options.langs
        for name in ("text", "utt2spk", "utt2source")
    ]
    tables += [
        folder / name
        for folder in evaluation_dirs(options.datadir, options.langs)
        for name in ("wav.scp", "text")
    ]
    if options.replay_sampling == "cluster" and options.replay_clusters:
        tables.append(Path(options.replay_clusters))
    there = [path for path in tables if path.is_file()]
    return list(dict.fromkeys([*corpus_sets(options), *there]))


def selection_outputs(options: Options) -> list[Path]:
    """Formatted speech, and reports on it."""
    reports = ("hours.json", "overlap.tsv", "skipped_audio.tsv")
    return [*ssl_sets(options), *(options.raw / name for name in reports)]


def features(options: Options) -> list[Path]:
    """Teacher features."""
    return [options.features / "index.json"]


def codebook(options: Options) -> list[Path]:
    """Centroids."""
    return [options.codebook]


def labels(options: Options) -> list[Path]:
    """Units and their list."""
    return [options.dumpdir / "units" / "tokens.txt"] + [
        options.raw / split / name
        for split in ("ssl_train", "ssl_dev")
        for name in ("text.km", "text.km.json")
    ]


def shapes(options: Options) -> list[Path]:
    """Shape files."""
    return [
        options.stats / split / name
        for split in ("train", "valid")
        for name in ("speech_shape", "text_shape")
    ]


def trained(options: Options) -> list[Path]:
    """What pretraining leaves."""
    return [e / "parameters.json" for e in options.trainings] + [
        options.ssl_experiment / "config.yaml",
        options.ssl_experiment / "valid.loss_m.best.pth",
    ]


def reports(options: Options) -> list[Path]:
    """Reports on the pretraining."""
    names = ["masked_accuracy.json", "forgetting.json", "routing.json"]
    return [options.analysis / name for name in names]


def reports_used(options: Options) -> list[Path]:
    """Reports on the pretraining, where it is among the upstreams."""
    return reports(options) if "lamer" in options.upstreams else []


def set_sources(options: Options) -> list[Path]:
    """Prepared corpora, or the transcripts of ML-SUPERB."""
    if options.benchmark == "mlsuperb":
        folders = scan_tree(options.mlsuperb, eval_langs(options)).values()
        return [p for folder in folders for p in sorted(folder.glob("transcript_*"))]
    if options.benchmark == "own":
        return corpus_sets(options)
    from espnet2_lamer.data.corpora import EVAL_DIR
    from espnet2_lamer.evaluation.paper_sets import PAPER_CORPORA

    return [
        *options.eval_list_files,
        *(
            options.datadir / EVAL_DIR / corpus / f"{split}_{lang}" / name
            for corpus in PAPER_CORPORA
            for lang in eval_langs(options)
            for split in ("train", "dev", "test")
            for name in ("wav.scp", "text")
        ),
    ]


def eval_sets(options: Options) -> list[Path]:
    """Sets of the benchmark."""
    return [
        options.raw / name / file
        for name in planned_sets(options)
        for file in ("wav.scp", "text", "text.char", "utt2lang", "set.json")
    ]


def heads(options: Options, tracks: Sequence[str]) -> list[Path]:
    """What the heads of some tracks leave."""
    return [
        run.directory(options.expdir) / name
        for run in planned_runs(options, tracks)
        for name in ("run.json", "final/config.yaml", "final/model.pth")
    ]


def configs(options: Options, tracks: Sequence[str]) -> list[Path]:
    """Configs of heads and upstreams."""
    paths = [Path(run.config) for run in planned_runs(options, tracks)]
    paths += [
        CONFIGS / f"{name}.yaml"
        for name in options.upstreams
        if (CONFIGS / f"{name}.yaml").is_file()
    ]
    return list(dict.fromkeys(paths))


def results(options: Options) -> list[Path]:
    """Tables."""
    return [options.results / n for n in ("RESULTS.md", "results.json", "results.csv")]


def published(options: Options) -> list[Path]:
    """Packages and adapter files."""
    return [*packages(options).values(), *adapter_files(options).values()]


def upstreams(options: Options) -> list[Path]:
    """What heads are trained on."""
    built_in = set(BUILT_IN) & set(options.upstreams)
    found = [options.checkpoints] if built_in else []
    if "lamer" in options.upstreams:
        found += trained(options)
    for name, spec in upstream_specs(options).items():
        found += [] if name in BUILT_IN else weight_files(spec.source)
    return found


def of_heads(options: Options, tracks: Sequence[str]) -> list[Path]:
    """What training the heads of some tracks reads."""
    return [*upstreams(options), *configs(options, tracks), *eval_sets(options)]

"""Files that stages of ssl1 read and write, as functions of the options."""

from collections.abc import Sequence
from pathlib import Path

from espnet2_lamer.data.segmented_rows import REPORT
from espnet2_lamer.data.sets import SPLITS
from espnet2_lamer.evaluation.mlsuperb import scan_tree
from espnet2_lamer.evaluation.mlsuperb2_tree import open_tree
from espnet2_lamer.recipe.benchmark import (
    ASR_TRACKS,
    adapter_files,
    eval_corpora,
    eval_langs,
    packages,
    planned_runs,
    planned_sets,
)
from espnet2_lamer.recipe.options import Options
from espnet2_lamer.recipe.stage import (
    below,
    corpus_sets,
    wav_scps,
    with_those_there,
)
from espnet2_lamer.recipe.upstreams import (
    BUILT_IN,
    CONFIGS,
    upstream_specs,
    weight_files,
)

_KINDS = ("", "asr_")
_SSL_SETS = ("ssl_train", "ssl_dev")


def ssl_sets(options: Options) -> list[Path]:
    """Formatted speech of pretraining."""
    return below(options.raw, _SSL_SETS, ("wav.scp", "utt2num_samples", "utt2lang"))


def ssl_audio(options: Options) -> list[Path]:
    """Audio of pretraining, training speech first."""
    return wav_scps(ssl_sets(options))


def selection_inputs(options: Options) -> list[Path]:
    """Everything that decides what pretraining takes, evaluation sets included."""
    from espnet2_lamer.data.overlap import evaluation_dirs

    sets = [f"{split}_{lang}" for split in ("train", "dev") for lang in options.langs]
    tables = below(options.datadir, sets, ("text", "utt2spk", "utt2source", "segments"))
    for folder in evaluation_dirs(options.datadir, options.langs):
        tables += [folder / name for name in ("wav.scp", "segments", "text")]
    tables.append(options.datadir / REPORT)
    if options.replay_sampling == "cluster" and options.replay_clusters:
        tables.append(Path(options.replay_clusters))
    return with_those_there(corpus_sets(options), tables)


def labels(options: Options) -> list[Path]:
    """Units and their list."""
    tokens = options.units_dir / "tokens.txt"
    names = ("text.km", "text.km.json")
    return [tokens, *below(options.round_dir / "raw", _SSL_SETS, names)]


def shapes(options: Options) -> list[Path]:
    """Shape files."""
    return below(options.stats, ("train", "valid"), ("speech_shape", "text_shape"))


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


def set_sources(options: Options) -> list[Path]:
    """Prepared corpora, or the transcripts of ML-SUPERB."""
    langs = eval_langs(options)
    if options.benchmark == "mlsuperb":
        folders = scan_tree(options.mlsuperb, langs, options.eval_corpora).values()
        return [p for folder in folders for p in sorted(folder.glob("transcript_*"))]
    if options.benchmark == "mlsuperb2":
        return open_tree(options.mlsuperb).sources
    if options.benchmark == "own":
        return corpus_sets(options)
    from espnet2_lamer.data.corpora import EVAL_DIR

    sets = [
        f"{corpus}/{split}_{lang}"
        for corpus in eval_corpora(options)
        for lang in langs
        for split in ("train", "dev", "test")
    ]
    prepared = below(options.datadir / EVAL_DIR, sets, ("wav.scp", "text"))
    lists = Path(options.eval_lists).glob("*.txt") if options.eval_lists else ()
    return [*sorted(lists), *prepared]


def own_texts(options: Options) -> list[Path]:
    """What of one's own data is recognised, beside the speech that is trained on."""
    langs = eval_langs(options) if options.benchmark == "own" else []
    sets = [f"{kind}{s}_{x}" for x in langs for s in SPLITS for kind in ("asr_", "")]
    names = ("wav.scp", "text", "romanisation", "utt2spk", "phones.ctm", "segments")
    known = {*corpus_sets(options)}
    return [p for p in below(options.datadir, sets, names) if p not in known]


def evaluation_sources(options: Options) -> list[Path]:
    """Those of the sources that list audio; own sets may have an ``asr_`` before."""
    if options.benchmark == "mlsuperb2":
        return open_tree(options.mlsuperb).audio_folders
    sources = set_sources(options)
    if options.benchmark != "own":
        return [p for p in sources if p.name.startswith(("transcript_", "wav.scp"))]
    names = [f"{k}{s}_{x}" for x in eval_langs(options) for s in SPLITS for k in _KINDS]
    return below(options.datadir, names, ["wav.scp"])


def eval_sets(options: Options) -> list[Path]:
    """Sets of the benchmark."""
    sets = planned_sets(options)
    texts = below(options.raw, sets, ("text", "text.char"))
    needed = below(options.raw, sets, ("wav.scp", "utt2lang", "set.json"))
    # Where speech has no text, there is none.
    return with_those_there(needed, texts)


def heads(options: Options, tracks: Sequence[str] | None = None) -> list[Path]:
    """What the heads of some tracks, or of all, leave."""
    runs = [run.name for run in planned_runs(options, tracks)]
    names = ("run.json", "final/config.yaml", "final/model.pth")
    return below(options.expdir, runs, names)


def of_heads(options: Options, tracks: Sequence[str]) -> list[Path]:
    """What training the heads of some tracks reads: upstreams, configs and sets."""
    chosen = set(options.upstreams)
    found = [options.checkpoints] if chosen & set(BUILT_IN) else []
    found += trained(options) if "lamer" in chosen else []
    for name, spec in upstream_specs(options).items():
        found += [] if name in BUILT_IN else weight_files(spec.source)
    configs = [Path(run.config) for run in planned_runs(options, tracks)]
    if options.language_models and ASR_TRACKS == tracks:
        configs += [
            options.inference_config,
            *map(Path, options.lm_train_text.values()),
        ]
        configs += [options.lm_config] if options.use_lm else []
    upstreams = [CONFIGS / f"{name}.yaml" for name in options.upstreams]
    return [*found, *with_those_there(configs, upstreams), *eval_sets(options)]


def spread(options: Options) -> list[Path]:
    """What says how far two runs lie apart."""
    return [*map(Path, options.spread)]


def published(options: Options) -> list[Path]:
    """Packages and adapter files."""
    return [*packages(options).values(), *adapter_files(options).values()]

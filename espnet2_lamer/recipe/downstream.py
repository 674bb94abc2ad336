"""Stages 10 and 11: ML-SUPERB heads for ASR and LID on frozen upstreams."""

import logging
from collections.abc import Sequence
from itertools import groupby

from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.runs import TARGETS, Run
from espnet2_lamer.recipe.benchmark import ASR_TRACKS, LID_TRACKS, planned_runs
from espnet2_lamer.recipe.options import Options


def train_asr(options: Options) -> None:
    """Stage 10: the heads of the tracks ``asr`` and ``multi_asr``."""
    _train(options, ASR_TRACKS)


def train_lid(options: Options) -> None:
    """Stage 11: the heads of the tracks ``lid`` and ``asr_lid``."""
    _train(options, LID_TRACKS)


def _train(options: Options, tracks: Sequence[str]) -> None:
    from espnet2_lamer import load_model

    runs = planned_runs(options, tracks)
    # Runs come upstream by upstream: each is loaded once.
    for source, same in groupby(runs, key=lambda run: run.upstream):
        upstream = load_model(source)
        for run in same:
            logging.info("%s: %d sets", run.name, len(run.train_sets))
            _train_one(options, run, upstream)


def _train_one(options: Options, run: Run, upstream) -> None:
    head = HeadOptions(
        layer=run.layer,
        target=TARGETS[run.track],
        unit=run.unit,
        store_dtype=options.store_dtype,
        feature_store_gb=options.feature_store_gb,
        nbpe=options.nbpe,
        learning_rate=run.learning_rate,
        seed=run.seed,
        ngpu=options.ngpu,
    )
    train_head(
        upstream,
        [options.raw / name for name in run.train_sets],
        [options.raw / name for name in run.dev_sets],
        options.feature_stores,
        run.directory(options.expdir),
        run.config,
        head,
        source=run.upstream,
        record=run.as_dict(),
    )

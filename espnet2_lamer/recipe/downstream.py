"""ML-SUPERB heads for ASR and LID on frozen upstreams."""

import logging
from collections.abc import Sequence

from espnet2_lamer.evaluation.downstream import HeadOptions, train_head
from espnet2_lamer.evaluation.runs import TARGETS, Run
from espnet2_lamer.parallel import run_each
from espnet2_lamer.recipe.benchmark import planned_runs
from espnet2_lamer.recipe.options import Options


def train_heads(options: Options, tracks: Sequence[str]) -> None:
    """Train the heads of some tracks."""
    runs = planned_runs(options, tracks)
    run_each(_train_one, [(options, run) for run in runs], head_jobs(options), "heads")


def head_jobs(options: Options) -> int:
    """How many heads train or decode at a time: on a GPU, one after the other."""
    return 1 if options.ngpu else options.nj


def _train_one(options: Options, run: Run) -> None:
    logging.info("%s: %d sets", run.name, len(run.train_sets))
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
        run.upstream,
        [options.raw / name for name in run.train_sets],
        [options.raw / name for name in run.dev_sets],
        options.feature_stores,
        run.directory(options.expdir),
        run.config,
        head,
        record=run.as_dict(),
    )

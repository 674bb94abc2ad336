"""Zip a system's predictions for ML-SUPERB's leaderboard."""

import json
import logging
from pathlib import Path

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.mlsuperb import MONOLINGUAL
from espnet2_lamer.evaluation.runs import RECORD, Run, choose_rates
from espnet2_lamer.evaluation.submission import FOLDERS, Prediction, write_submission


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--expdir", type=Path, default=Path("exp"), help="where the heads are")
    add("--dumpdir", type=Path, default=Path("dump"), help="evaluation sets")
    add("--system", required=True, help="name of the upstream in the tables")
    add("--output", type=Path, required=True, help="the zip to write")
    tracks = {"choices": sorted(FOLDERS), "default": list(FOLDERS)}
    add("--tracks", nargs="+", help="tracks that must be in it", **tracks)
    add("--budgets", nargs="+", default=["10min", "1h"], help="budgets likewise")
    add("--benchmark", default="mlsuperb", help="benchmark of the runs")
    add("--seed", type=int, default=0, help="seed of the heads")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Collect the predictions of ``--system`` and write ``--output``."""
    args = get_parser().parse_args(cmd)
    runs = [Run.read(path) for path in sorted(args.expdir.glob(f"*/{RECORD}"))]
    asked = args.system, args.benchmark, args.seed
    wanted = [
        run
        for run in runs
        if (run.system, run.benchmark, run.seed) == asked
        # Of chosen corpora: not the benchmark's tasks.
        and not run.corpora
        and run.track in args.tracks
        and run.budget in args.budgets
    ]
    if not wanted:
        known = sorted({run.system for run in runs if run.benchmark == args.benchmark})
        raise RecipeError(
            f"--system {args.system}: {args.expdir} has no run of it in benchmark "
            f"{args.benchmark} with seed {args.seed}; found systems "
            f"{', '.join(known) or 'none'}"
        )
    chosen, _ = choose_rates(wanted, args.expdir)
    predictions = []
    for run in chosen:
        decision = "first_tag" if run.track == "lid" else "free"
        official = _official_name(run, args.dumpdir / "raw")
        for label in run.tests:
            here = run.directory(args.expdir) / f"decode_{label}"
            predictions.append(
                Prediction(
                    track=run.track,
                    budget=run.budget,
                    test=official or label,
                    unit=run.unit,
                    ref=here / "ref" / "text",
                    hyp=here / decision / "1best_recog" / "text",
                    head=run.name,
                )
            )
    for budget in args.budgets if "asr" in args.tracks else ():
        there = [(p.track, p.budget, p.test) for p in predictions]
        missing = [name for name in MONOLINGUAL if ("asr", budget, name) not in there]
        if missing:
            logging.warning(
                "monolingual ASR, %s: no predictions for %s; the benchmark averages "
                "over all %d tasks",
                budget,
                " ".join(missing),
                len(MONOLINGUAL),
            )
    write_submission(args.output, args.system, predictions, args.tracks, args.budgets)
    logging.info("%s: %d test sets", args.output, len(predictions))


def _official_name(run: Run, raw: Path) -> str:
    """``eng1`` for the monolingual head that the benchmark calls so."""
    path = raw / run.train_sets[0] / "set.json"
    if run.track != "asr" or not path.is_file():
        return ""
    return json.loads(path.read_text(encoding="utf-8")).get("official_name", "")


if __name__ == "__main__":
    run_main(main)

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
    add(
        "--tracks",
        nargs="+",
        choices=sorted(FOLDERS),
        default=list(FOLDERS),
        help="tracks that must be in it",
    )
    add("--budgets", nargs="+", default=["10min", "1h"], help="budgets likewise")
    add("--benchmark", default="mlsuperb", help="benchmark of the runs")
    add("--seed", type=int, default=0, help="seed of the heads")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Collect the predictions of ``--system`` and write ``--output``."""
    args = get_parser().parse_args(cmd)
    runs = [Run.read(path) for path in sorted(args.expdir.glob(f"*/{RECORD}"))]
    wanted = [
        run
        for run in runs
        if (run.system, run.benchmark, run.seed)
        == (args.system, args.benchmark, args.seed)
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
    predictions = [
        prediction
        for run in chosen
        for prediction in _predictions(run, args.expdir, args.dumpdir / "raw")
    ]
    for budget in args.budgets if "asr" in args.tracks else ():
        present = {
            p.test for p in predictions if (p.track, p.budget) == ("asr", budget)
        }
        if missing := [name for name in MONOLINGUAL if name not in present]:
            logging.warning(
                "monolingual ASR, %s: no predictions for %s; the benchmark averages "
                "over all %d tasks",
                budget,
                " ".join(missing),
                len(MONOLINGUAL),
            )
    write_submission(args.output, args.system, predictions, args.tracks, args.budgets)
    logging.info("%s: %d test sets", args.output, len(predictions))


def _predictions(run: Run, expdir: Path, raw: Path) -> list[Prediction]:
    decision = "first_tag" if run.track == "lid" else "free"
    found = []
    for label in run.tests:
        here = run.directory(expdir) / f"decode_{label}"
        found.append(
            Prediction(
                track=run.track,
                budget=run.budget,
                test=_official_name(run, raw) or label,
                unit=run.unit,
                ref=here / "ref" / "text",
                hyp=here / decision / "1best_recog" / "text",
                head=run.name,
            )
        )
    return found


def _official_name(run: Run, raw: Path) -> str:
    """``eng1`` for the monolingual head that the benchmark calls so."""
    path = raw / run.train_sets[0] / "set.json"
    if run.track != "asr" or not path.is_file():
        return ""
    return json.loads(path.read_text(encoding="utf-8")).get("official_name", "")


if __name__ == "__main__":
    run_main(main)

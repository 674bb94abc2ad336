"""Decoded runs on disk, as decoding leaves them, for tests."""

import json

from espnet2_lamer.evaluation.runs import RECORD, Run
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import write_table


def decoded_run(expdir, raw, sets, hypotheses, **fields):
    """Write ``run.json``, references and hypotheses of one run and return it.

    Args:
        sets: ``{test set: {utt: (lang, reference)}}``.
        hypotheses: ``{folder: {utt: text}}`` for all utterances of the sets.
        fields: Of :class:`Run`.
    """
    values = {
        "track": "asr",
        "benchmark": "own",
        "budget": "all",
        "corpus": "",
        "langs": ("eng",),
        "unit": "char",
        "system": "base",
        "upstream": "base",
        "layer": 3,
        "config": "conf/head.yaml",
        "train_sets": ("train",),
        "dev_sets": ("dev",),
        "tests": {name: (name,) for name in sets},
    }
    official = fields.pop("official_name", "")
    run = Run(**(values | fields))
    write_json(run.directory(expdir) / RECORD, run.as_dict())
    for name in (*run.train_sets, *sets):
        (raw / name).mkdir(parents=True, exist_ok=True)
        record = {"name": name, "corpus": run.corpus, "official_name": official}
        (raw / name / "set.json").write_text(json.dumps(record))
    for name, utts in sets.items():
        here = run.directory(expdir) / f"decode_{name}"
        write_table(here / "ref" / "text", {u: text for u, (_, text) in utts.items()})
        write_table(
            here / "ref" / "utt2lang", {u: lang for u, (lang, _) in utts.items()}
        )
        for folder, texts in hypotheses.items():
            text = here / folder / "1best_recog" / "text"
            write_table(text, {u: texts[u] for u in utts})
    return run

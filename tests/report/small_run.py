"""An experiment folder as stages 8 and 12 leave it, with made-up figures."""

from dataclasses import replace

import numpy as np
import soundfile

from espnet2_lamer.evaluation.changes import Question
from espnet2_lamer.evaluation.results import MeasureTable, Results, write_results
from espnet2_lamer.evaluation.runs import Run, Task
from espnet2_lamer.evaluation.scoring import LidScore, by_language, score_files
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.datadir import write_table
from espnet2_lamer.fileio.picture import new_picture, save_picture
from espnet2_lamer.metrics.measure import Measure

UTTS = 40
LANGS = {"cmn": "new", "yue": "new", "eng": "old"}
#: Errors of ten tokens that each system makes in a language's utterances.
ERRORS = {
    "base": {"cmn": 5, "yue": 4, "eng": 3},
    "lamer": {"cmn": 3, "yue": 4, "eng": 4},
}
CONTROL = "head-only control"


def asr_run(lang, system):
    return Run(
        track="asr",
        benchmark="own",
        budget="all",
        corpus="",
        langs=(lang,),
        unit="word",
        system=system,
        upstream=system,
        layer=3,
        config="conf.yaml",
        train_sets=(f"asr_{lang}_train",),
        dev_sets=(f"asr_{lang}_dev",),
        tests={lang: (f"asr_{lang}_test",)},
    )


def write_decoded(exp, lang, system, speech):
    """Write a recogniser's test set; errors vary around the mean."""
    run = asr_run(lang, system)
    here = run.directory(exp) / f"decode_{lang}"
    utts = [f"{lang}_{k:02}" for k in range(UTTS)]
    text, found = {}, {}
    for k, utt in enumerate(utts):
        words = [f"w{k}{n}" for n in range(10)]
        # Utterances differ; of yue, so do the systems, with no difference in the mean.
        swing = (-1, 0, 1)[k % 3] if k < 39 else 0
        if system == "lamer" and lang == "yue":
            swing = -swing
        wrong = ERRORS[system][lang] + swing
        text[utt] = " ".join(words)
        found[utt] = " ".join(["oops"] * wrong + words[wrong:])
    (here / "ref").mkdir(parents=True)
    (here / "free" / "1best_recog").mkdir(parents=True)
    write_table(here / "ref" / "text", text)
    write_table(here / "ref" / "utt2lang", dict.fromkeys(utts, lang))
    write_table(here / "ref" / "wav.scp", dict.fromkeys(utts, str(speech)))
    write_table(here / "free" / "1best_recog" / "text", found)
    write_json(run.directory(exp) / "run.json", run.as_dict())
    return run, here


def write_run(exp, speech_seconds=0.5, old=("eng",), confounded=False):
    """Write the folder, and return its results.json."""
    exp.mkdir(parents=True)
    speech = exp / "speech.wav"
    time = np.arange(int(16_000 * speech_seconds)) / 16_000
    soundfile.write(speech, 0.3 * np.sin(2 * np.pi * 300 * time), 16_000)
    new = tuple(lang for lang in LANGS if lang not in old)
    recognition, languages, names = {}, {}, []
    for lang in LANGS:
        task = Task("asr", lang, "word", "all speech")
        languages[task] = lang
        for system in ERRORS:
            run, here = write_decoded(exp, lang, system, speech)
            hyp = here / "free" / "1best_recog" / "text"
            scored = score_files(here / "ref" / "text", hyp, "word")
            recognition.setdefault(task, {})[system] = {0: scored}
            names.append(run.name)
    true = {f"{lang}_{k}": lang for lang in LANGS for k in range(UTTS)}
    lid = Task("lid", "test", "most probable tag", "all speech")
    found = {utt: x if k % 9 else "eng" for k, (utt, x) in enumerate(true.items())}
    heard = LidScore(true, found)
    identified = {lid: {name: {0: heard} for name in ERRORS}}
    for lang, part in by_language(heard, true).items():
        identified[replace(lid, part=lang)] = {name: {0: part} for name in ERRORS}
    parts = {f"u{k}": (4 + k % 2, 10) for k in range(UTTS)}
    masked = {
        lang: {
            "lamer": Measure.of_rate({u: (a + 1, b) for u, (a, b) in parts.items()}),
            CONTROL: Measure.of_rate(parts),
        }
        for lang in LANGS
    }
    table = MeasureTable(
        "Masked prediction",
        "masked accuracy (%)",
        masked,
        [CONTROL],
        gain="masked units",
    )
    asked = Question("lamer", ("base", CONTROL), new, tuple(old), languages, confounded)
    results = Results(
        systems={"base": "the base", "lamer": "after continual pretraining"},
        baselines=["base"],
        recognition=recognition,
        identification=identified,
        tables=[table],
        parameters={"lamer": {"total": 2, "lora": 1}},
        environment={"machine": "a box, 2 cores"},
        question=asked,
        caveats=["channel-confounded: a caveat."] if confounded else ["A caveat."],
        conditions={"data": "made up", "units": "100"},
        notes=["A note."],
        sources={"analysis": "analysis", "trainings": [], "runs": names},
    )
    write_results(exp, results)
    (exp / "analysis").mkdir()
    for name in ("training_curves", "routing_heatmap"):
        picture = new_picture(6, 2)
        picture.subplots().plot([1, 2], [2, 1])
        save_picture(picture, exp / "analysis" / f"{name}.png", dpi=60)
    return exp / "results.json"

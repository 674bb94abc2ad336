"""The hours report of stage 2: per language and corpus, beside the paper's."""

import logging

from espnet2_lamer.data.audio import SAMPLE_RATE
from espnet2_lamer.data.formatting import FormattedSet

#: Hours of the paper's continual pretraining (Lamer-SSL, section 3.1).
PAPER_HOURS = {"yue": 105.072, "cmn": 341.867, "eng": 100.555}
#: Corpus of utterances that ``utt2source`` does not name.
UNNAMED = "-"
#: Differences up to this share are not warned about; the paper's own 100 hours of
#: English are 100.555.
_TOLERANCE = 0.01


def hours_by_source(formatted: FormattedSet) -> dict[str, dict[str, dict]]:
    """Return utterances and hours per language and corpus (``utt2source``)."""
    report: dict[str, dict[str, dict]] = {}
    sources = formatted.tables["utt2source"]
    samples: dict[tuple[str, str], int] = {}
    for utt, lang in formatted.tables["utt2lang"].items():
        source = sources.get(utt, UNNAMED)
        entry = report.setdefault(lang, {}).setdefault(source, {"utterances": 0})
        entry["utterances"] += 1
        length = int(formatted.tables["utt2num_samples"][utt])
        samples[lang, source] = samples.get((lang, source), 0) + length
    for lang, entries in report.items():
        for source, entry in entries.items():
            entry["hours"] = round(samples[lang, source] / SAMPLE_RATE / 3600, 4)
        report[lang] = dict(sorted(entries.items()))
    return report


def log_hours(hours: dict, compare: bool = False) -> None:
    """Log the report; with ``compare``, warn where the paper's hours are missed.

    Args:
        hours: What ``hours.json`` holds.
        compare: The data are meant to be the paper's.
    """
    logging.info("pretraining hours by language and corpus (the paper's beside them):")
    for lang, entry in hours["languages"].items():
        paper = entry["paper_hours"]
        logging.info(
            "  %s %-6s %9.3f of %9.3f h available   paper %s",
            lang,
            entry["role"],
            entry["hours"],
            entry["available_hours"],
            f"{paper:.3f}" if paper else "-",
        )
        for source, counts in entry["sources"].items():
            if source != UNNAMED:
                logging.info(
                    "      %-24s %9.3f h, %d utterances",
                    *(source, counts["hours"], counts["utterances"]),
                )
        if entry["role"] == "replay" and entry["whole_language"]:
            logging.info(
                "  %s: %g h wanted, %.3f there: the whole language is used, nothing "
                "is repeated",
                lang,
                entry["wanted_hours"],
                entry["available_hours"],
            )
    if compare:
        _warn_differences(hours["languages"])


def _warn_differences(languages: dict[str, dict]) -> None:
    for lang, expected in PAPER_HOURS.items():
        if lang not in languages:
            logging.warning("%s: none, the paper has %.3f h", lang, expected)
            continue
        difference = languages[lang]["hours"] - expected
        if abs(difference) > _TOLERANCE * expected:
            logging.warning(
                "%s: %.3f h, %.3f h (%.1f %%) %s than the paper's %.3f h",
                lang,
                languages[lang]["hours"],
                abs(difference),
                100 * abs(difference) / expected,
                "more" if difference > 0 else "less",
                expected,
            )

"""Hours of pretraining: found, used, lost and why; the paper's beside them."""

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE
from espnet2_lamer.data.formatting import UNNAMED
from espnet2_lamer.data.languages import named
from espnet2_lamer.data.overlap import Clip

#: Hours of the paper's continual pretraining (Lamer-SSL, section 3.1).
PAPER_HOURS = {"yue": 105.072, "cmn": 341.867, "eng": 100.555}
# Differences up to this share are not warned about; the paper's own 100 hours of
# English are 100.555.
_TOLERANCE = 0.01
# A language that loses more per cent of its hours is warned about.
_MUCH = 5.0


def lost_hours(
    clips: Sequence[Clip],
    used: Collection[str],
    drawn: Collection[str],
    in_evaluation: Collection[str],
    unusable: Mapping[str, Mapping[str, str]],
    limits: tuple[float, float],
) -> dict[str, dict]:
    """Say per language where the hours of its training clips are.

    ``clips`` are those whose headers could be read, ``drawn`` those that were wanted of
    them, ``used`` those that are left, ``unusable`` reasons per language and utterance.
    Those without a readable header are counted as long as the others are on average.

    Returns:
        ``found_hours``, ``not_drawn_hours`` (whole clips that a replay does not need),
        ``lost``: per reason ``utterances`` and ``hours``, and ``lost_percent``, of what
        would have been taken if nothing were lost.
    """
    report, by_lang = {}, defaultdict(list)
    for clip in clips:
        by_lang[clip.lang].append(clip)
    for lang, reasons in unusable.items():
        own = by_lang[lang]
        lost: dict[str, list[float]] = defaultdict(list)
        found, not_drawn, before = 0.0, 0.0, 0.0
        for clip in own:
            found += clip.seconds
            if clip.utt_id in used:
                continue
            why = _why(clip, in_evaluation, reasons, limits)
            if not why and clip.utt_id not in drawn:
                not_drawn += clip.seconds
                continue
            lost[why or "other"].append(clip.seconds)
            before += 0 if clip.utt_id in drawn else clip.seconds
        unread = [reasons[utt] for utt in reasons.keys() - {c.utt_id for c in own}]
        average = found / max(1, len(own))
        for why in unread:
            lost[_kind(why)].append(average)
        found, before = (x + average * len(unread) for x in (found, before))
        taken = found - not_drawn - sum(map(sum, lost.values()))
        # What is lost before a draw makes the pool smaller, not the draw.
        pool, wanted = found - before, found - before - not_drawn
        left = (pool / found) * (taken / wanted) if taken > 0 else 0.0
        report[lang] = {
            "found_hours": round(found / 3600, 4),
            "not_drawn_hours": round(not_drawn / 3600, 4),
            "lost": {
                why: {"utterances": len(s), "hours": round(sum(s) / 3600, 4)}
                for why, s in sorted(lost.items(), key=lambda pair: -sum(pair[1]))
            },
            "lost_percent": round(100 * (1 - left), 2),
        }
    return report


def _why(clip: Clip, in_evaluation, reasons, limits: tuple[float, float]) -> str:
    if clip.utt_id in reasons:
        return _kind(reasons[clip.utt_id])
    if clip.utt_id in in_evaluation:
        return "in an evaluation set"
    if clip.seconds > limits[1]:
        return f"longer than {limits[1]:g} s"
    if clip.seconds < limits[0]:
        return f"shorter than {limits[0]:g} s"
    one_frame = clip.seconds * SAMPLE_RATE < RECEPTIVE_FIELD + 1
    return "shorter than one frame" if one_frame else ""


def _kind(reason: str) -> str:
    """The kind of a reason, without what is of this file only."""
    return re.split(r"[:;(,]", reason)[0].strip()


def log_hours(hours: dict, listing: str | Path, compare: bool = False) -> None:
    """Log ``hours.json``; with ``compare``, warn where the paper's hours are missed.

    Languages that lose much are warned about; ``listing`` has the unusable files.
    """
    logging.info("pretraining hours by language and corpus (the paper's beside them):")
    for lang, entry in hours["languages"].items():
        paper = f"{entry['paper_hours']:.3f}" if entry["paper_hours"] else "-"
        found, there = entry["hours"], entry["available_hours"]
        text = "  %s %-6s %9.3f of %9.3f h available   paper %s"
        logging.info(text, named(lang), entry["role"], found, there, paper)
        for source, counts in entry["sources"].items():
            if source != UNNAMED:
                of_source = source, counts["hours"], counts["utterances"]
                logging.info("      %-24s %9.3f h, %d utterances", *of_source)
        if entry["role"] == "replay" and entry["whole_language"]:
            text = "  %s: %g h wanted, %.3f there: the whole language is used, "
            text += "nothing is repeated"
            logging.info(text, lang, entry["wanted_hours"], there)
    logging.info("hours of training clips, and why some are lost:")
    for lang, entry in hours["languages"].items():
        text = "  %s: %.3f h found, %.3f h not drawn, %.3f h used, lost: %s"
        names = "found_hours", "not_drawn_hours", "hours"
        lost = ", ".join(
            f"{figures['hours']:.3f} h {why} ({figures['utterances']} clips)"
            for why, figures in entry["lost"].items()
        )
        figures = (entry[name] for name in names)
        logging.info(text, named(lang), *figures, lost or "none")
        long = [why for why in entry["lost"] if why.startswith("longer than")]
        if long and not entry.get("recordings"):
            text = "%s: what is %s is lost; --segment vad cuts a manifest's recordings "
            logging.warning(text + "at pauses", lang, long[0])
        if entry["lost_percent"] > _MUCH:
            text = "%s: %.1f %% of its hours are lost: %s; unusable files are in %s"
            logging.warning(text, lang, entry["lost_percent"], lost, listing)
    for lang, expected in PAPER_HOURS.items() if compare else ():
        found = hours["languages"].get(lang, {}).get("hours")
        if found is None:
            logging.warning("%s: none, the paper has %.3f h", lang, expected)
        elif (off := abs(found - expected)) > _TOLERANCE * expected:
            side = "more" if found > expected else "less"
            figures = found, off, 100 * off / expected, side, expected
            text = "%s: %.3f h, %.3f h (%.1f %%) %s than the paper's %.3f h"
            logging.warning(text, lang, *figures)

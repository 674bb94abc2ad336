"""What a new recipe adds to files that all of ESPnet's recipes share."""

import re

ROW = (
    "| lamer_ssl | Lamer-SSL: Common Voice, THCHS-30, AISHELL-1/3, FLEURS, ML-SUPERB | "
    "SSL/ASR/LID | ENG, CMN, YUE | https://arxiv.org/abs/2602.12746 | |"
)
# Names of corpora in db.sh; AISHELL-1 is AISHELL there.
VARIABLES = (
    *("AISHELL", "AISHELL3", "COMMONVOICE", "FLEURS", "MHUBERT147_AUDIO"),
    *("MHUBERT147_MANIFEST", "MLSUPERB", "THCHS30"),
)


def add_row(text: str) -> str:
    """Add the recipe to the table of ``egs2/README.md``, in alphabetical order.

    Args:
        text: The file. Unchanged where the row is there or where there is no table.
    """
    lines = text.split("\n")
    rows = [
        (number, line.split("|")[1].strip().lower())
        for number, line in enumerate(lines)
        if line.startswith("|") and line.count("|") > 2
    ]
    # Heading and rule.
    rows = rows[2:]
    names = [name for _, name in rows]
    if not rows or "lamer_ssl" in names:
        return text
    after = [number for number, name in rows if name < "lamer_ssl"]
    place = after[-1] + 1 if after else rows[0][0]
    return "\n".join([*lines[:place], ROW, *lines[place:]])


def add_variables(text: str) -> str:
    """Add the corpora that ``db.sh`` lacks, before what belongs to single sites.

    Args:
        text: The file. A variable that is set anywhere in it is left alone.
    """
    missing = [
        name for name in VARIABLES if not re.search(rf"^\s*{name}=", text, re.MULTILINE)
    ]
    if not missing:
        return text
    added = "".join(f"{name}=\n" for name in missing)
    site = re.search(r"\n*^(# For only|if )", text, re.MULTILINE)
    if site is None:
        return text.rstrip("\n") + "\n" + added
    return text[: site.start()].rstrip("\n") + "\n" + added + text[site.start() :]

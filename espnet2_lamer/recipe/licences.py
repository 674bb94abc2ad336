"""The licences that follow what a model was trained with into its card."""

from collections.abc import Sequence

from espnet2_lamer.convert.load import public_name

APACHE = "apache-2.0"
# Of weights, as their pages on Hugging Face state them.
WEIGHTS = {
    "utter-project/mHuBERT-147": "cc-by-nc-sa-4.0",
    "facebook/hubert-base-ls960": APACHE,
    "facebook/hubert-large-ll60k": APACHE,
    "facebook/hubert-xlarge-ll60k": APACHE,
    # The recipe's own.
    "mini/base": APACHE,
    "mini/teacher": APACHE,
}
# Of speech: name, licence, id among Hugging Face's data sets if it has one.
CORPORA = {
    "mini": (
        "speech synthesised by espeak-ng; sentences of hsk-sentences-audio and of "
        "pycantonese's Common Voice prompts",
        "CC-BY-SA-4.0 and MPL-2.0 (Spanish, if any: names of CLDR, Unicode-3.0)",
        None,
    ),
    "commonvoice": (
        "Common Voice 11.0",
        "CC0-1.0",
        "mozilla-foundation/common_voice_11_0",
    ),
    "thchs30": ("THCHS-30", "Apache-2.0", None),
    "aishell1": ("AISHELL-1", "Apache-2.0", None),
    "aishell3": ("AISHELL-3", "Apache-2.0", None),
    "fleurs": ("FLEURS (heads and evaluation only)", "CC-BY-4.0", "google/fleurs"),
}
UNKNOWN = "not known to this recipe: state it here before you publish"


def licence_terms(
    base: str, teacher: str, corpora: Sequence[str]
) -> tuple[str, list[str], list[str]]:
    """Return the licence of a model, and where it comes from.

    Args:
        base: Source of the base, as it was given.
        teacher: Source of the teacher of the units.
        corpora: Values of ``--corpus``.

    Returns:
        Hugging Face id of the licence (the teacher's where that binds more than
        Apache's, ``other`` where a licence is not known), lines for the card, and ids
        of data sets.
    """
    found, notes = [], []
    for role, source in (("base", base), ("teacher of the units", teacher)):
        name = public_name(source.rstrip("/"))
        licence = WEIGHTS.get(name)
        found.append(licence)
        notes.append(f"{role}: {name}, licence {licence or UNKNOWN}")
    of_data, known, ids = corpus_terms(corpora)
    notes += of_data
    found.append(APACHE if known else None)
    binding = [licence for licence in found if licence not in (APACHE, None)]
    if binding:
        licence = binding[0]
    else:
        licence = "other" if None in found else APACHE
    return licence, notes, ids


def corpus_terms(corpora: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    """Return lines for the card, whether all licences are known, and data set ids.

    Args:
        corpora: Values of ``--corpus``.
    """
    rows = [CORPORA.get(corpus, (corpus, None, None)) for corpus in corpora]
    notes = [
        f"training data: {name}, licence {terms or UNKNOWN}" for name, terms, _ in rows
    ]
    return notes, all(terms for _, terms, _ in rows), [row[2] for row in rows if row[2]]

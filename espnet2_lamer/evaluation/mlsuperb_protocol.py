"""ML-SUPERB's fixed choices: data sets, monolingual tasks, reserved languages.

Source: espnet egs2/ml_superb/asr1/local/{data_prep,single_lang_data_prep}.py.
"""

#: Folders of the data.
DATASETS = (
    *("ALFFA", "LAD", "M-AILABS", "NST", "commonvoice", "fleurs", "googlei18n_asr"),
    *("googlei18n_tts", "mls", "nchlt", "swc", "voxforge", "mexico-el", "voxpopuli"),
)
#: The thirteen monolingual tasks: name to language and data set of its training speech.
MONOLINGUAL = {
    "eng1": ("eng", "mls"),
    "eng2": ("eng", "nchlt"),
    "eng3": ("eng", "voxpopuli"),
    "fra1": ("fra", "voxforge"),
    "fra2": ("fra", "voxpopuli"),
    "deu1": ("deu", "swc"),
    "deu2": ("deu", "voxpopuli"),
    "rus": ("rus", "M-AILABS"),
    "swa": ("swa", "ALFFA"),
    "swe": ("swe", "NST"),
    "jpn": ("jpn", "commonvoice"),
    "cmn": ("cmn", "fleurs"),
    "xty": ("xty", "mexico-el"),
}
# Per reserved language the training utterances of the multilingual tracks, as the
# prefix and the number of utterance ids: cv_lit_000026 is "cv 26".
_FEW_SHOT = """
bos fleurs 67 fleurs 78 fleurs 80 fleurs 88 fleurs 90
ceb fleurs 54 fleurs 64 fleurs 69 fleurs 71 fleurs 80
dan NST 7 NST 72 cv 158 fleurs 58 fleurs 71
epo cv 6 cv 39 cv 63 cv 66 cv 76
frr cv 23 cv 86 cv 95 cv 102 cv 104
ful fleurs 55 fleurs 59 fleurs 67 fleurs 76 fleurs 81
kaz cv 80 cv 97 cv 111 fleurs 36 fleurs 66
kea fleurs 52 fleurs 70 fleurs 78 fleurs 83 fleurs 85
lit cv 26 cv 105 fleurs 97 mls 40 voxpopuli 1707
luo fleurs 56 fleurs 62 fleurs 67 fleurs 73 fleurs 77
srp cv 78 cv 145 fleurs 68 fleurs 93 fleurs 105
sun googlei18n-asr 1 googlei18n-asr 7 googlei18n-asr 41 googlei18n-asr 99 \
googlei18n-asr 106
tok cv 4 cv 11 cv 30 cv 84 cv 101
tos mexico-el 6 mexico-el 122 mexico-el 152 mexico-el 496 mexico-el 563
tsn googlei18n-tts 26 googlei18n-tts 44 googlei18n-tts 108 nchlt 1 nchlt 32
tso nchlt 35 nchlt 40 nchlt 89 nchlt 104 nchlt 125
tur cv 95 cv 101 fleurs 60 fleurs 69 fleurs 95
umb fleurs 28 fleurs 29 fleurs 33 fleurs 40 fleurs 47
vie cv 105 cv 128 fleurs 67 fleurs 68 fleurs 77
zul fleurs 49 fleurs 57 nchlt 27 nchlt 90 nchlt 104
"""


def _few_shot() -> dict[str, frozenset[str]]:
    table = {}
    for line in _FEW_SHOT.strip().splitlines():
        lang, *rest = line.split()
        pairs = zip(rest[::2], rest[1::2], strict=True)
        table[lang] = frozenset(f"{name}_{lang}_{int(n):06d}" for name, n in pairs)
    return table


#: The twenty reserved languages and their five training utterances each.
FEW_SHOT = _few_shot()


def few_shot_utterances(dataset: str, lang: str) -> frozenset[str]:
    """Return the training utterances of a reserved language that a data set has."""
    prefix = "cv" if dataset == "commonvoice" else dataset.replace("18n_", "18n-")
    return frozenset(u for u in FEW_SHOT[lang] if u.startswith(f"{prefix}_{lang}_"))

"""Language codes."""

import pytest

from espnet2_lamer.data.languages import language_code
from espnet2_lamer.errors import RecipeError


@pytest.mark.parametrize(
    "name, code",
    [
        ("eng", "eng"),
        ("en", "eng"),
        ("zh-CN", "cmn"),
        ("cmn_hans_cn", "cmn"),
        ("zh-HK", "yue"),
        ("yue_hant_hk", "yue"),
        ("deu", "deu"),
        ("zyp", "zyp"),
        ("ger", "deu"),
    ],
)
def test_other_spellings_become_iso_639_3(name, code):
    assert language_code(name, "f:1") == code


@pytest.mark.parametrize("name", ["english", "xx", "zz9", "e ng"])
def test_unknown_languages_are_refused_with_their_place(name):
    with pytest.raises(RecipeError, match=f"f:1: unknown language '{name}'"):
        language_code(name, "f:1")

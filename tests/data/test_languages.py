"""Language codes and names."""

import pytest

from espnet2_lamer.data.languages import language_code, language_name, named
from espnet2_lamer.errors import RecipeError


@pytest.mark.parametrize(
    "names, code",
    [
        ("eng en en-US en_gb EN en-x-accent", "eng"),
        ("zh zho chi zh-CN zh_TW cmn_hans_cn zh-Hans cmn zh-cmn", "cmn"),
        ("zh-HK yue_hant_hk zh-Hant-HK zh-yue yue zh-MO", "yue"),
        ("nan nan-tw zh-min-nan zh-nan", "nan"),
        ("deu ger de de-AT de-1996", "deu"),
        ("pt_br por pt", "por"),
        ("iw he heb", "heb"),
        ("ar-arz arz", "arz"),
        ("rm-sursilv roh", "roh"),
        ("sgn-ase ase", "ase"),
        ("zyp", "zyp"),
        ("qaa qaa-Latn", "qaa"),
        ("qtz", "qtz"),
        ("sr-Latn-RS", "srp"),
    ],
)
def test_codes_and_tags_become_iso_639_3(names, code):
    assert {language_code(name, "f:1") for name in names.split()} == {code}


@pytest.mark.parametrize(
    "name, near",
    [
        ("english", r"eng \(English\)"),
        ("germen", r"deu \(German\)"),
        ("xxq", "Near it: "),
        ("quu", "retired: quc"),
        ("und", "of no language"),
        ("mul", "of no language"),
        ("xx", "qaa to qtz"),
        ("zz9", "qaa to qtz"),
        ("e ng", "qaa to qtz"),
        ("qua1", "qaa to qtz"),
        ("zh-deu", "qaa to qtz"),
        ("quz-quz-quz", "qaa to qtz"),
        ("", "qaa to qtz"),
    ],
)
def test_what_is_no_language_is_refused_with_its_place_and_what_is_near(name, near):
    with pytest.raises(RecipeError, match=f"f:1: unknown language '{name}'.*{near}"):
        language_code(name, "f:1")


def test_names_stand_beside_codes_where_there_is_one():
    assert language_name("deu") == "German"
    assert named("ell") == "ell (Modern Greek)"
    assert named("qab") == language_name("qab") == "qab"

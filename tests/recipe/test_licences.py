"""Licences of teacher, base and data reach the model card."""

import yaml

from espnet2_lamer.export.card import Origin, model_card
from espnet2_lamer.recipe.packing import licence_terms

PAPER = "commonvoice thchs30 aishell1 aishell3 fleurs".split()
LARGE, MHUBERT = "facebook/hubert-large-ll60k", "utter-project/mHuBERT-147"


def test_the_teachers_terms_bind_what_is_trained_with_it():
    licence, notes, datasets = licence_terms(LARGE, MHUBERT, PAPER).values()
    assert licence == "cc-by-nc-sa-4.0"
    assert notes[0] == f"base: {LARGE}, licence apache-2.0"
    assert notes[1] == f"teacher of the units: {MHUBERT}, licence cc-by-nc-sa-4.0"
    assert any("Common Voice 11.0, licence CC0-1.0" in note for note in notes)
    assert len(notes) == 2 + len(PAPER)
    assert datasets == ["mozilla-foundation/common_voice_11_0", "google/fleurs"]


def test_a_directory_in_the_cache_has_the_terms_of_its_id():
    cached = "/x/hub/models--utter-project--mHuBERT-147/snapshots/0a1b"
    assert licence_terms(LARGE, cached, [])["licence"] == "cc-by-nc-sa-4.0"


def test_the_mini_preset_is_free_and_names_its_sources():
    licence, notes, _ = licence_terms("mini/base", "mini/teacher", ["mini"]).values()
    assert licence == "apache-2.0"
    assert "CC-BY-SA-4.0 and MPL-2.0" in notes[-1]


def test_what_is_not_known_is_left_open_and_said():
    for terms in (
        licence_terms("/srv/me/base", LARGE, PAPER),
        licence_terms(LARGE, LARGE, ["manifest"]),
    ):
        licence, notes, _ = terms.values()
        assert licence == "other"
        assert any("state it here before you publish" in note for note in notes)
        assert not any("/srv" in note for note in notes)
    # A known restriction stays, whatever else is unknown.
    assert licence_terms(LARGE, MHUBERT, ["manifest"])["licence"] == "cc-by-nc-sa-4.0"


def test_the_card_has_licence_data_and_results():
    terms = licence_terms(LARGE, MHUBERT, ["commonvoice"])
    datasets = terms.pop("datasets")
    card = model_card(
        "ssl",
        Origin("lamer", ["eng", "yue"], **terms),
        datasets=datasets,
        results="# RESULTS\n\n|a|\n",
    )
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-nc-sa-4.0"
    assert front["datasets"] == ["mozilla-foundation/common_voice_11_0"]
    assert "- teacher of the units: utter-project/mHuBERT-147" in card
    assert "\n## RESULTS\n" in card

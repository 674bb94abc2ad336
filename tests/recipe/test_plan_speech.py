"""What a plan counts of a manifest is what stage 1 makes of it; nothing is written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.segmented_rows import Segmenting
from espnet2_lamer.data.sets import read_if_there
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe import plan_manifest
from espnet2_lamer.recipe.plan_manifest import of_manifest
from tests.heard import RATE, hear
from tests.source_forms import FORMS, random_corpus, sound


def options(manifest, langs, **more):
    fields = {
        "manifest": str(manifest),
        "langs": langs,
        "exclude_sources": [],
        "segment": "none",
        "segments": "",
        "min_duration": 2.0,
        "max_duration": 30.0,
        "seed": 0,
        "nj": 1,
    }
    return SimpleNamespace(**fields | more)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_counted_as_stage_1_divides_it(form, tmp_path):
    corpus = random_corpus(tmp_path, 7)
    manifest = FORMS[form](corpus, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    speech = of_manifest(options(manifest, ["deu", "qaa"]), alone=True)
    assert sorted(tmp_path.rglob("*")) == before
    prepare_manifest(manifest, tmp_path / "data", ["deu", "qaa"])
    for lang, parts in speech.parts.items():
        for split, part in parts.items():
            folder = tmp_path / "data" / f"{split}_{lang}"
            assert part.files == len(read_if_there(folder / "utt2lang")), (lang, split)
            assert part.text == len(read_if_there(folder / "text")), (lang, split)
        true = sum(len(sound(one)) for one in corpus if one.lang == lang) / 8000
        assert sum(part.hours() for part in parts.values()) * 3600 == pytest.approx(
            true
        )


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Three recordings of 200 s, a second of speech and one of nothing in turn."""
    monkeypatch.setattr(plan_manifest, "hear", hear)
    monkeypatch.setattr("espnet2_lamer.data.segmented_rows.hear", hear)
    folder = tmp_path / "radio"
    folder.mkdir()
    rng = np.random.default_rng(0)
    samples = rng.uniform(0.2, 0.5, (20, 10 * RATE))
    samples[:, 5 * RATE :] = 0
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", samples.ravel(), RATE, "PCM_16")
    return folder


def test_recordings_count_as_the_speech_that_stage_1_finds(recordings, tmp_path):
    manifest = f"folder:{recordings},lang=qaa"
    speech = of_manifest(options(manifest, ["qaa"], segment="vad"), alone=True)
    assert speech.recordings == pytest.approx(600)
    assert "3 recordings longer than 30 s, 0.17 h" in speech.remarks[0]
    assert not (tmp_path / "data").exists()
    how = Segmenting("vad")
    prepare_manifest(manifest, tmp_path / "data", ["qaa"], segmenting=how)
    report = (tmp_path / "data/segmentation.json").read_text(encoding="utf-8")
    hours = sum(part.hours() for part in speech.parts["qaa"].values())
    counted = sum(part.files for part in speech.parts["qaa"].values())
    found = json.loads(report)["languages"]["qaa"]
    assert hours == pytest.approx(found["speech_hours"], rel=0.05)
    assert counted == pytest.approx(found["segments"], abs=6)


def test_segments_of_a_table_count_as_they_are(recordings, tmp_path):
    lines = [f"u{n} {n % 3} {n}.0 {n + 3}.5" for n in range(12)]
    (recordings / "segments").write_text("\n".join(lines) + "\n")
    manifest = f"folder:{recordings},lang=qaa"
    speech = of_manifest(options(manifest, ["qaa"], segment="file"), alone=True)
    parts = speech.parts["qaa"].values()
    assert sum(part.files for part in parts) == 12
    assert 3600 * sum(part.hours() for part in parts) == pytest.approx(12 * 3.5)


def test_a_dataset_that_is_not_here_is_not_fetched():
    with pytest.raises(RecipeError, match=r"google/fleurs.*downloads nothing"):
        of_manifest(options("datasets:google/fleurs,lang=deu", ["deu"]), alone=True)

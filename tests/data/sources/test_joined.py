"""One's own speech, the embedded corpus and public corpora in one run."""

from types import SimpleNamespace

import pytest

from espnet2_lamer.data import mini
from espnet2_lamer.data.segments import read_wavs
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.datadir import read_table
from espnet2_lamer.recipe.data import prepare_corpus
from tests.corpus_trees import write_paper_corpora
from tests.source_forms import FORMS, random_corpus


@pytest.fixture
def run(tmp_path):
    """Prepare corpora into ``data``; the manifest has deu and qaa."""
    (tmp_path / "own").mkdir()
    corpus = random_corpus(tmp_path / "own", 1)

    def prepare(corpora, langs, form="kaldi", **more):
        manifest = more.get("manifest") or FORMS[form](corpus, tmp_path / "own")
        names = {"exclude_sources": [], "seed": 0, "segment": "none", "segments": ""}
        names |= {"min_duration": 2.0, "max_duration": 30.0, "max_bad_audio": 1.0}
        names |= {"nj": 1, "max_missing": 1.0, "datadir": tmp_path / "data"}
        names |= {"corpus_paths": {"COMMONVOICE": str(tmp_path / "public")}}
        names |= {"corpus": corpora, "langs": langs, "manifest": manifest, **more}
        prepare_corpus(SimpleNamespace(**names))
        return tmp_path / "data"

    return prepare


def sources(folder):
    return {*read_table(folder / "utt2source").values()}


def test_replay_comes_from_a_public_corpus(run, tmp_path):
    write_paper_corpora(tmp_path / "public", seconds=0.5)
    data = run("commonvoice manifest", ["deu", "eng"])
    assert sources(data / "train_eng") == {"commonvoice-en"}
    assert sources(data / "train_deu") <= {"web", "tv"}
    own = read_wavs(data / "pretrain/manifest/train_deu")
    assert read_wavs(data / "train_deu") == own and "#t=" in "".join(own.values())
    for split in ("dev", "test"):
        assert {"deu", "eng"} == {p.name[-3:] for p in data.glob(f"{split}_*")}
    # What the manifest alone has is not joined with other corpora afterwards.
    data = run("manifest", ["deu", "qaa"], "lhotse")
    assert not (data / "pretrain/manifest").exists()
    assert not (data / "pretrain/commonvoice").exists()


def test_a_language_of_two_corpora_has_both(run, tmp_path):
    write_paper_corpora(tmp_path / "public", seconds=0.5)
    manifest = FORMS["tsv"](random_corpus(tmp_path / "own", 1), tmp_path / "own")
    text = f"tsv:{manifest},lang=eng"
    data = run("commonvoice manifest", ["eng"], manifest=text)
    assert sources(data / "train_eng") > {"commonvoice-en"}


def test_the_embedded_corpus_gives_only_what_nothing_else_has(
    run, tmp_path, monkeypatch
):
    pytest.importorskip("espeakng_loader")
    few = {name: dict(sets) for name, sets in mini.MINI_SETS.items()}
    for sets in few.values():
        sets["minutes"] = dict.fromkeys(sets["minutes"], 0.1)
        sets.pop("min_utterances", None)
    monkeypatch.setattr(mini, "MINI_SETS", few)
    data = run("mini manifest", ["deu", "eng"])
    assert sources(data / "train_eng") == {"mini"}
    assert "mini" not in sources(data / "train_deu")
    text = f"tsv:{tmp_path}/own/m.tsv,lang=eng,source=mine"
    FORMS["tsv"](random_corpus(tmp_path / "own", 1), tmp_path / "own")
    data = run("manifest mini", ["eng"], manifest=text)
    assert sources(data / "train_eng") == {"mine"}


def test_a_language_that_nothing_has_is_named(run):
    with pytest.raises(RecipeError, match="no pretraining speech in language swe"):
        run("mini manifest", ["deu", "swe"])


def test_a_manifest_that_the_corpus_does_not_read_is_refused(run):
    with pytest.raises(
        RecipeError, match='say --corpus manifest, or --corpus "mini ma'
    ):
        run("mini", ["eng"])


def test_ids_that_two_corpora_share_are_refused(run, tmp_path):
    write_paper_corpora(tmp_path / "public", seconds=0.5)
    data = run("commonvoice manifest", ["eng", "deu"])
    (utt, *_) = read_wavs(data / "train_eng")
    audio = next((tmp_path / "own" / "audio").iterdir())
    path = tmp_path / "own.tsv"
    path.write_text(f"utt_id\tpath\tlang\tsplit\n{utt}\t{audio}\teng\ttrain\n")
    with pytest.raises(RecipeError, match=f"{utt!r} is in .*prefix=NAME"):
        run("commonvoice manifest", ["eng"], manifest=str(path))
    data = run("commonvoice manifest", ["eng"], manifest=f"{path},prefix=mine")
    assert f"mine_{utt}" in read_wavs(data / "train_eng")

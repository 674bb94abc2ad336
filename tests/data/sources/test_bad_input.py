"""What is wrong with a source is refused by file, line or key; no set is written."""

import gzip
import json
import tarfile
from io import BytesIO

import pytest
import soundfile

from espnet2_lamer.data.manifest import prepare_manifest
from espnet2_lamer.data.sources import stored_audio, webdataset
from espnet2_lamer.errors import RecipeError
from tests.source_forms import cut, hf_tables, random_corpus, write_tar


@pytest.fixture
def one(tmp_path):
    """An utterance that is a whole recording of 0.5 s."""
    corpus = random_corpus(tmp_path, 1)
    (whole,) = [one for one in corpus if one.start is None][:1]
    return whole


def refused(source, tmp_path, message):
    with pytest.raises(RecipeError, match=message):
        prepare_manifest(source, tmp_path / "out")
    assert not [*tmp_path.glob("out/*/wav.scp")]


GOOD = {"wav.scp": "r {wav}\n", "utt2lang": "r deu\n"}
KALDI = {
    "missing audio": ({"wav.scp": "r none.wav\n"}, "1 of 1 audio files not found"),
    "duplicate": ({"wav.scp": "r {wav}\nr {wav}\n"}, "wav.scp:2: .*'r' occurs twice"),
    "language": ({"utt2lang": "r germen\n"}, "r: unknown language 'germen'.*deu"),
    "no language": ({"utt2lang": None}, "wav.scp, r: no language.*lang=CODE"),
    "pipe": (
        {"wav.scp": "r sox {wav} -t wav - speed 1.1 |\n"},
        r"wav.scp, r: found the command 'sox.*never run\. Run it yourself",
    ),
    "two commands": (
        {"wav.scp": "r flac -cds a.flac | sox - -t wav - |\n"},
        "never run",
    ),
    "a hidden command": ({"wav.scp": "r cat a.wav; touch b |\n"}, "never run"),
    "archive": ({"wav.scp": "r a.ark:123\n"}, "a place in an archive"),
    "no path": ({"wav.scp": "r\n"}, "wav.scp, r: no path"),
    "text without audio": ({"text": "s hallo\n"}, "text: 1 of 1 .*not in wav.scp"),
    "empty": ({"wav.scp": "", "utt2lang": ""}, "its tables are empty"),
    "no table": ({"wav.scp": None}, "no wav.scp in it"),
    "not utf-8": ({"text": b"r caf\xe9\n"}, "text:1: byte 6 .*expected UTF-8"),
    "outside": (
        {"segments": "s r 0 9\n", "utt2lang": "s deu\n"},
        r"1 of 1 parts are outside .*\n.*from 0 s to 9 s is outside",
    ),
    "backwards": (
        {"segments": "s r 0.3 0.2\n", "utt2lang": "s deu\n"},
        "segments:1: start '0.3', end '0.2'",
    ),
    "no recording": (
        {"segments": "s q 0 0.2\n", "utt2lang": "s deu\n"},
        "'s' is of recording 'q'",
    ),
}


@pytest.mark.parametrize("name", KALDI)
def test_kaldi(name, tmp_path, one):
    tables, message = KALDI[name]
    folder, wav = tmp_path / "kaldi", one.audio.rename(tmp_path / "a.wav")
    folder.mkdir()
    for table, text in {**GOOD, **tables}.items():
        if isinstance(text, str):
            text = text.format(wav=wav).encode()
        if text is not None:
            (folder / table).write_bytes(text)
    refused(f"kaldi:{folder}", tmp_path, message)
    assert not (tmp_path / "b").exists()


def _source(kind, where="x"):
    def change(line):
        line["recording"]["sources"][0] |= {"type": kind, "source": where}

    return change


def _recording(**more):
    return lambda line: line["recording"].update(more)


LHOTSE = {
    "command": (_source("command", "touch b"), "cuts.jsonl:1, .*never run"),
    "url": (_source("url", "https://x/a.wav"), "type url, expected file; nothing is"),
    "memory": (_source("memory"), "type memory, expected file"),
    "missing audio": (_source("file", "no.wav"), "1 of 1 audio files not found"),
    "two files": (
        lambda x: x["recording"]["sources"].append(x["recording"]["sources"][0]),
        "in 2 files, expected one",
    ),
    "changed": (
        _recording(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]),
        "changed as it is read.*save_audios",
    ),
    "no recording": (lambda x: x.pop("recording"), "without a recording"),
    "outside": (
        lambda x: x["supervisions"][0].update(duration=9),
        "cuts.jsonl:1, .*is outside the recording",
    ),
    "mixed": (lambda x: x.update(type="MixedCut"), "a MixedCut, expected MonoCut"),
    "no type": (lambda x: x.pop("type"), "no cut, expected type MonoCut"),
    "no id": (lambda x: x.pop("id"), "cuts.jsonl:1: not a line of a CutSet"),
    "language": (
        lambda x: x["supervisions"][0].update(language="xxq"),
        "unknown language 'xxq'.*Near it",
    ),
    "no language": (
        lambda x: x["supervisions"][0].pop("language"),
        "no language.*lang=CODE",
    ),
    "text": (lambda x: x["supervisions"][0].update(text=["a"]), "text: found list"),
    "surrogate": (
        lambda x: x["supervisions"][0].update(text="a\ud800"),
        "character 2 is half of a pair",
    ),
    "zero byte": (lambda x: x["supervisions"][0].update(text="a\0"), "a zero byte"),
}


@pytest.mark.parametrize("name", LHOTSE)
def test_lhotse(name, tmp_path, one):
    change, message = LHOTSE[name]
    line = cut(one)
    change(line)
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(line) + "\n")
    refused(str(path), tmp_path, message)


def test_files_of_cuts_that_are_none(tmp_path, one):
    path, good = tmp_path / "cuts.jsonl.gz", json.dumps(cut(one)).encode()
    for content, message in (
        (gzip.compress(good + b"\n" + good), ":2, .*occurs twice, first at .*:1"),
        (gzip.compress(good * 9)[:-20], "damaged or cut short"),
        (good + b"\n{", "gz:2: not a line of a CutSet"),
        (good + b"\n\xff", "gz:2: byte 1 is 0xff, expected UTF-8"),
        (gzip.compress(b" " * 2**24), "gz:1: a line of more than"),
        (b"", "no cuts"),
    ):
        path.write_bytes(content)
        refused(str(path), tmp_path, message)


def _json(**more):
    return json.dumps({"lang": "deu", **more}).encode()


WAV = object()  # the sound of an utterance
SHARDS = {
    "leads out": ([("../a.wav", WAV)], r"'\.\./a.wav': the name leads out"),
    "absolute": ([("/a.wav", WAV)], "leads out"),
    "pickle": ([("a.wav", WAV), ("a.pyd", b"x")], "a.pyd': a pickle, which runs code"),
    "no audio": ([("a.json", _json()), ("a.txt", b"x")], r"0 audio files \(.json, .tx"),
    "two": ([("a.wav", WAV), ("a.flac", WAV), ("a.json", _json())], "2 audio files"),
    "twice": ([("a.1.wav", WAV), ("a.2.wav", WAV)], "a: two files .wav, last a.2.wav"),
    "apart": (
        [("a.wav", WAV), ("a.cls", b"deu"), ("b.wav", WAV), ("b.cls", b"deu")] * 2,
        "'a' occurs twice",
    ),
    "class": ([("a.wav", WAV), ("a.cls", b"3")], "a.cls: class 3, expected a language"),
    "language": ([("a.wav", WAV), ("a.cls", b"xx")], "a: unknown language 'xx'"),
    "none": ([("a.wav", WAV)], "a: no language"),
    "json": ([("a.json", b"{")], "a.json: .*expected JSON"),
    "list": ([("a.json", b"[]")], "a.json: found list, expected an object"),
    "latin": ([("a.wav", WAV), ("a.txt", b"\xe9")], "a.txt: .*UTF-8"),
    "number": ([("a.wav", WAV), ("a.json", _json(text=1.5))], "text: found float"),
    "nothing": ([], "no samples in 1 shards"),
    "0 bytes": ([("a.wav", b""), ("a.cls", b"deu")], "audio of 0 bytes"),
    "split": ([("a.wav", WAV), ("a.json", _json(split="x"))], "split 'x'; expected"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards(name, tmp_path, one):
    members, message = SHARDS[name]
    sound = one.audio.read_bytes()
    members = [(n, sound if content is WAV else content) for n, content in members]
    path = write_tar(tmp_path / "shards" / "x-0.tar", members)
    refused(str(path), tmp_path, message)
    assert not (tmp_path / "shards" / "a.wav").exists()
    assert not (tmp_path / "a.wav").exists()


def test_links_and_damaged_shards(tmp_path, one):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    refused(str(path), tmp_path, "a link or device")
    members = [("a.wav", one.audio.read_bytes()), ("a.cls", b"deu")]
    whole = write_tar(path, members, "w:gz").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(str(path), tmp_path, "not a whole tar archive.*copy it again")
    path.write_bytes(b"no tar")
    refused(str(path), tmp_path, "not a whole tar archive")
    refused(str(tmp_path / "{0..1}.tar"), tmp_path, "0.tar: shard not found")
    refused(str(tmp_path / "y*.tar"), tmp_path, "no shard fits")


def test_an_archive_that_unpacks_to_far_more_is_stopped(tmp_path, monkeypatch, one):
    buffer = BytesIO()
    silence = bytes(2 * 8000 * 600)
    soundfile.write(buffer, [0.0] * 8000, 8000, format="WAV", subtype="PCM_16")
    content = buffer.getvalue() + silence
    members = [(f"{n}.wav", content) for n in range(4)] + [("a.cls", b"deu")]
    path = write_tar(tmp_path / "x.tar.gz", members, "w:gz")
    assert len(content) > 100 * path.stat().st_size / 4
    refused(f"{path},lang=deu", tmp_path, "unpacks to more than")
    monkeypatch.setattr(webdataset, "LARGEST_AUDIO", 1000)
    good = write_tar(tmp_path / "y.tar", [("a.wav", one.audio.read_bytes())])
    refused(f"{good},lang=deu", tmp_path, "bytes, expected at most 1000")


def test_a_disk_that_is_too_small_is_found_out_before(tmp_path, monkeypatch, one):
    usage = stored_audio.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(stored_audio.shutil, "disk_usage", lambda path: usage)
    path = write_tar(tmp_path / "x.tar", [("a.wav", one.audio.read_bytes())])
    refused(f"{path},lang=deu", tmp_path, "the disk has .* GB free")


def _columns(table, **more):
    """A copy of a table of one row with other values."""
    from datasets import Dataset

    values = {k: table[k][:1] for k in table.column_names}
    values |= {name: [value] for name, value in more.items()}
    return Dataset.from_dict({k: v for k, v in values.items() if v != [None]})


DATASETS = {
    "no audio": ({"audio": {"bytes": None, "path": None}}, "row 0: no audio"),
    "url": ({"audio": {"bytes": None, "path": "https://x/a.wav"}}, "row 0: no audio"),
    "missing": ({"audio": {"bytes": None, "path": "no.wav"}}, "1 of 1 audio files not"),
    "0 bytes": ({"audio": {"bytes": b"", "path": "a.wav"}}, "row 0: audio of 0 bytes"),
    "bytes": ({"audio": {"bytes": b"xyz!", "path": ""}}, "row 0: no audio that is kn"),
    "text": ({"text": 1.5}, "row 0, text: found float"),
    "language": ({"lang": "xxq"}, "row 0: unknown language 'xxq'"),
    "no language": ({"lang": ""}, "row 0: no language.*lang=CODE"),
    "no column": ({"audio": None}, "no audio column; found utt_id"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name, tmp_path, one):
    change, message = DATASETS[name]
    one.split = "train"
    table = hf_tables([one])["train"]
    _columns(table, **change).to_parquet(tmp_path / "train.parquet")
    refused(str(tmp_path / "train.parquet"), tmp_path, message)


def test_datasets_that_are_no_whole_ones(tmp_path, one, monkeypatch):
    from datasets import Dataset, DatasetDict, config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    one.split = "train"
    table = hf_tables([one])["train"]
    path = tmp_path / "saved"
    table.save_to_disk(path)
    refused(f"{path},text_column=words", tmp_path, "no column 'words' .*found .*text")
    refused(f"{path},audio_column=x", tmp_path, "no audio column 'x'; found utt_id")
    refused(f"{path},config=de", tmp_path, "config is of a dataset of the hub")
    refused(f"{path},only=x", tmp_path, "no split 'x'; found train")
    refused("datasets:no/such-dataset", tmp_path, "Without a network only what the cac")
    refused("datasets:https://x/y", tmp_path, "neither a file or folder nor the id")
    (tmp_path / "none").mkdir()
    refused(f"datasets:{tmp_path / 'none'}", tmp_path, "no files; expected .parquet")
    _columns(table, utt_id="u").to_parquet(tmp_path / "a.parquet")
    both = Dataset.from_dict({k: table[k][:1] * 2 for k in table.column_names})
    both.to_parquet(tmp_path / "a.parquet")
    refused(str(tmp_path / "a.parquet"), tmp_path, "row 1: utterance id .*twice")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    refused(str(tmp_path / "a.parquet"), tmp_path, "cannot be read as a dataset")
    odd = DatasetDict(train=table, other=table)
    odd.save_to_disk(tmp_path / "odd")
    refused(str(tmp_path / "odd"), tmp_path, "split 'other' is none of train, valid")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../a.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    refused(str(path), tmp_path, "names the file '../a.arrow'")


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "nowhere: manifest not found.*named datasets:nowhere"),
        ("kaldy:x", "no kind 'kaldy'; expected one of tsv, folder, kaldi"),
        ("folder:.,colour=red", "folder has no setting colour; expected some of lang"),
        ("folder:.,split=all", "split 'all'; expected train, dev or test"),
        ("folder:. folder:.", r"\. stands there twice"),
        ('"folder:.', "No closing quotation; close the quotes"),
        ("", "needs --manifest"),
        ("folder:none,lang=deu", "none: folder not found"),
    ],
)
def test_what_names_no_source(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(source, tmp_path, message)


def test_two_sources_with_one_id(tmp_path, one):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tsv").write_text(
            f"utt_id\tpath\tlang\nu\t{one.audio}\tdeu\n"
        )
    both = f"{tmp_path}/a.tsv {tmp_path}/b.tsv"
    refused(both, tmp_path, r"b.tsv:2: .*twice, first at .*a.tsv:2; .*prefix=NAME")

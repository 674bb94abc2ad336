"""A small random corpus, written in every form that ``--manifest`` takes."""

import json
import os
import tarfile
import warnings
from collections import defaultdict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
_ODD = [
    "ʻokina ’s",
    "粵語 𠮷",
    "a|b",
    "quo'te\"s",
    "tab-less  é́",
    "x <unk> {y}",
    "100 %",
]


@dataclass
class Spoken:
    """An utterance; with ``start`` it is a part of the recording ``audio``."""

    utt: str
    audio: Path
    lang: str
    split: str
    text: str
    speaker: str
    source: str
    start: float | None = None
    end: float | None = None


def random_corpus(root, seed):
    """Return utterances in two languages and three splits, with parts among them."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(int(rng.integers(9, 14))):
        path = root / "audio" / f"r {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = int(rng.integers(0, 3))
        seconds = 0.25 * max(1, parts) + 0.25
        noise = rng.uniform(-0.5, 0.5, int(seconds * RATE))
        soundfile.write(path, noise, RATE, "PCM_16")
        more = {
            "audio": path,
            "lang": ["deu", "qaa"][number % 2],
            "split": ["train", "dev", "test"][number % 3],
            "speaker": ["", "anna", "ben k"][int(rng.integers(3))],
            "source": ["web", "tv"][int(rng.integers(2))],
        }
        for part in range(max(1, parts)):
            text = "" if rng.random() < 0.3 else str(rng.choice(_ODD))
            times = (0.25 * part, 0.25 * (part + 1)) if parts else (None, None)
            utt = f"u{number}-{part}"
            found.append(Spoken(utt, text=text, start=times[0], end=times[1], **more))
    return found


def sound(one):
    """The samples of an utterance, as integers."""
    samples, _ = soundfile.read(one.audio, dtype="int16")
    if one.start is None:
        return samples
    return samples[int(one.start * RATE) : int(one.end * RATE)]


def wav_bytes(one):
    """A file with an utterance alone."""
    if one.start is None:
        return one.audio.read_bytes()
    buffer = BytesIO()
    soundfile.write(buffer, sound(one), RATE, "PCM_16", format="WAV")
    return buffer.getvalue()


def _fields(one):
    return {
        "lang": one.lang,
        "text": one.text,
        "speaker": one.speaker,
        "source": one.source,
    }


def write_tsv(corpus, root):
    lines = ["utt_id path lang split text speaker source start end".split()]
    for one in corpus:
        path = os.path.relpath(one.audio, root)
        times = ["" if t is None else str(t) for t in (one.start, one.end)]
        speech = [one.text, one.speaker, one.source]
        lines.append([one.utt, path, one.lang, one.split, *speech, *times])
    (root / "m.tsv").write_text("\n".join(map("\t".join, lines)) + "\n")
    return str(root / "m.tsv")


def write_kaldi(corpus, root):
    by_split = defaultdict(list)
    for one in corpus:
        by_split[one.split].append(one)
    for split, own in by_split.items():
        folder = root / "kaldi" / split
        folder.mkdir(parents=True)
        names = {one.audio: one.audio.stem.replace(" ", "_") for one in own}
        tables = {
            "wav.scp": {name: str(path) for path, name in names.items()},
            "text": {one.utt: one.text for one in own},
            "utt2spk": {
                one.utt: one.speaker.replace(" ", "_") or one.utt for one in own
            },
            "utt2lang": {one.utt: one.lang for one in own},
            "utt2source": {one.utt: one.source for one in own},
            "segments": {
                one.utt: f"{names[one.audio]} {one.start or 0} "
                f"{-1 if one.end is None else one.end}"
                for one in own
            },
        }
        for name, table in tables.items():
            lines = (f"{key} {value}".strip() + "\n" for key, value in table.items())
            (folder / name).write_text("".join(lines))
    return str(root / "kaldi")


def _hf_rows(corpus):
    for one in corpus:
        audio = {"bytes": wav_bytes(one), "path": f"{one.utt}.wav"}
        yield {"utt_id": one.utt, "audio": audio, **_fields(one)}


def hf_tables(corpus):
    from datasets import Audio, Dataset, DatasetDict

    names = {"train": "train", "dev": "validation", "test": "test"}
    tables = DatasetDict()
    for split, name in names.items():
        own = [one for one in corpus if one.split == split]
        table = Dataset.from_list(list(_hf_rows(own)))
        tables[name] = table.cast_column("audio", Audio(decode=False))
    return tables


def write_saved(corpus, root):
    hf_tables(corpus).save_to_disk(root / "saved")
    return f"datasets:{root / 'saved'}"


def write_parquet(corpus, root):
    (root / "parquet").mkdir()
    for name, table in hf_tables(corpus).items():
        table.to_parquet(root / "parquet" / f"{name}-00000-of-00001.parquet")
    return str(root / "parquet")


def cut(one, **more):
    """A cut of lhotse as it stands in a file."""
    info = soundfile.info(one.audio)
    length = info.duration if one.end is None else one.end - one.start
    recording = {
        "id": one.audio.stem,
        "sources": [{"type": "file", "channels": [0], "source": str(one.audio)}],
        "sampling_rate": RATE,
        "num_samples": info.frames,
        "duration": info.duration,
    }
    supervision = {
        "id": one.utt,
        "recording_id": one.audio.stem,
        "start": 0,
        "duration": length,
        "language": one.lang,
        "text": one.text,
        "speaker": one.speaker,
        "custom": {"split": one.split, "source": one.source},
    }
    return {
        "id": one.utt,
        "start": one.start or 0.0,
        "duration": length,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
    } | more


def write_lhotse(corpus, root):
    from lhotse import CutSet

    cuts = CutSet.from_dicts([cut(one) for one in corpus])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cuts.to_file(root / "cuts.jsonl.gz")
    return str(root / "cuts.jsonl.gz")


def write_tar(path, members, mode="w"):
    """Write a shard of names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return path


def write_shards(corpus, root):
    members = defaultdict(list)
    for one in corpus:
        said = json.dumps(_fields(one)).encode()
        own = [(f"{one.utt}.json", said), (f"{one.utt}.wav", wav_bytes(one))]
        members[one.split] += own
    for split, own in members.items():
        write_tar(root / "shards" / f"{split}-000000.tar.gz", own, "w:gz")
    return str(root / "shards" / "{train,dev,test}-0*.tar.gz")


FORMS = {
    "tsv": write_tsv,
    "kaldi": write_kaldi,
    "saved dataset": write_saved,
    "parquet": write_parquet,
    "lhotse": write_lhotse,
    "webdataset": write_shards,
}

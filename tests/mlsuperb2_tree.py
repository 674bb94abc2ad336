"""A tiny tree of ML-SUPERB 2.0's layout, in both of its forms."""

import io

import numpy as np
import soundfile

# A language is a chord, a letter a pitch: a head can learn both.
CHORDS = {"eng": (110.0, 150.0), "cmn": (900.0, 1300.0), "lug": (2600.0, 3300.0)}
PITCH = {"A": 300.0, "B": 700.0, "C": 1900.0, " ": 0.0}
#: What the data call a language that the recipe calls otherwise.
OLD_CODES = {"lug": "lga"}


def sound(lang, text, seed):
    """Chord, then a pitch per letter, 0.3 s each, with a little noise."""
    time = np.arange(4800) / 16000
    parts = [[*CHORDS.get(lang, CHORDS["eng"])]]
    parts += [[PITCH.get(letter, 0.0)] for letter in text.upper()]
    waves = [sum(np.sin(2 * np.pi * f * time) for f in part) for part in parts]
    wave = np.concatenate(waves)
    return 0.2 * wave + 0.01 * np.random.default_rng(seed).standard_normal(len(wave))


def utterances(train=6, dev=2):
    """Return ``rows[split]``: id, language as the data have it, text, samples."""
    draw = np.random.default_rng(0)
    rows = {"train": [], "dev": [], "dev_dialect": []}
    for split, count in (("train", train), ("dev", dev), ("dev_dialect", dev)):
        for lang in CHORDS:
            for number in range(count):
                letters = draw.choice(list("ABC"), size=3)
                text = " ".join(letters) if number % 2 else "".join(letters)
                code = OLD_CODES.get(lang, lang)
                utt = f"{split}_{code}_{number:06d}"
                rows[split].append((utt, code, text, sound(lang, text, number)))
    return rows


def write_folders(root, rows):
    """Write what ESPnet's recipe makes: ``data/<split>``, paths from ``root``."""
    (root / "data/raw_audio").mkdir(parents=True)
    for split, part in rows.items():
        folder = root / "data" / split
        folder.mkdir()
        lines = {"text": "", "wav.scp": "", "utt2spk": ""}
        for utt, lang, text, samples in part:
            path = f"data/raw_audio/{utt}.wav"
            soundfile.write(root / path, samples, 16000)
            lines["text"] += f"{utt} [{lang}] {text}\n"
            lines["wav.scp"] += f"{utt} {path}\n"
            lines["utt2spk"] += f"{utt} {utt}\n"
        for name, text in lines.items():
            (folder / name).write_text(text, encoding="utf-8")
    return root


def write_parquet(root, rows, shards=2):
    """Write what Hugging Face has: ``data/<split>-*-of-*.parquet``, audio inside."""
    import pyarrow
    from pyarrow import parquet

    (root / "data").mkdir(parents=True)
    for split, part in rows.items():
        for shard in range(shards):
            mine = part[shard::shards]
            columns = {"id": [], "language": [], "audio": [], "text": []}
            for utt, lang, text, samples in mine:
                held = io.BytesIO()
                soundfile.write(held, samples, 16000, format="WAV")
                columns["id"].append(utt)
                columns["language"].append(lang)
                audio = {"bytes": held.getvalue(), "path": f"{utt}.wav"}
                columns["audio"].append(audio)
                columns["text"].append(f"[{lang}] {text}")
            name = f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            parquet.write_table(pyarrow.table(columns), root / "data" / name)
    return root

"""Tiny copies of public corpora in their true layout, with noise for speech."""

import hashlib
import tarfile
import zlib
from pathlib import Path

import numpy as np
import soundfile

CV_HEADER = (
    "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale"
    "\tsegment"
)


def write_noise(path, seconds=0.2, rate=16000):
    """Write mono noise, its own for every file name; the format follows the suffix."""
    path = Path(path)
    seed = zlib.crc32(path.name.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.1, 0.1, round(seconds * rate))
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


def write_lines(path, *lines):
    """Write lines as UTF-8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def client(name):
    """A client id as CommonVoice has them: 128 hexadecimal digits."""
    return hashlib.sha512(name.encode()).hexdigest()


def cv_row(locale, number, sentence="One two.", speaker="anna", suffix=".mp3"):
    """One line of a CommonVoice list."""
    clip = f"common_voice_{locale}_{number}{suffix}"
    return f"{client(speaker)}\t{clip}\t{sentence}\t2\t0\t\t\t\t{locale}\t"


def write_commonvoice(root, locale, validated, dev=(), test=(), train=(), seconds=0.2):
    """Write one locale; every list holds lines, and every clip they name is made.

    Returns:
        The folder of the locale.
    """
    folder = Path(root) / "cv-corpus-11.0-2022-09-21" / locale
    lists = {"validated": validated, "dev": dev, "test": test, "train": train}
    for name, rows in lists.items():
        write_lines(folder / f"{name}.tsv", CV_HEADER, *rows)
        for row in rows:
            clip = folder / "clips" / row.split("\t")[1]
            if not clip.exists():
                write_noise(clip, seconds, 32000)
    return folder


def write_thchs30(root, names=("A11_0", "A11_1"), seconds=0.2):
    """Write ``data_thchs30``: links for audio, pointer files for transcripts."""
    folder = Path(root) / "data_thchs30"
    train = [("train", name) for name in names]
    for split, name in (*train, ("dev", "A02_0"), ("test", "D11_7")):
        write_noise(folder / "data" / f"{name}.wav", seconds)
        write_lines(
            folder / "data" / f"{name}.wav.trn",
            "绿 是 阳春 烟 景 ",
            "lv4 shi4 yang2 chun1 yan1 jing3",
            "l v4 sh ix4 ii iang2 ch un1 ii ian1 j ing3",
        )
        (folder / split).mkdir(exist_ok=True)
        (folder / split / f"{name}.wav").symlink_to(f"../data/{name}.wav")
        write_lines(folder / split / f"{name}.wav.trn", f"../data/{name}.wav.trn")
    return folder


def write_aishell1(root, seconds=0.2):
    """Write ``data_aishell`` with two speakers in train, one in dev, one in test."""
    folder = Path(root) / "data_aishell"
    lines = []
    for split, name in (
        ("train", "BAC009S0002W0122"),
        ("train", "BAC009S0002W0123"),
        ("train", "BAC009S0003W0121"),
        ("dev", "BAC009S0724W0121"),
        ("test", "BAC009S0764W0121"),
    ):
        wav = folder / "wav" / split / name[6:11] / f"{name}.wav"
        write_noise(wav, seconds)
        lines.append(f"{name} 而 对 楼市 成交 抑制 作用 最 大 的 限 购")
    write_lines(folder / "transcript" / "aishell_transcript_v0.8.txt", *lines)
    return folder


def write_aishell3(root, seconds=0.2):
    """Write the two folders that AISHELL-3's archive unpacks to."""
    folder = Path(root) / "aishell3"
    names = {
        "train": ("SSB00050001", "SSB00050002", "SSB00090001"),
        "test": ("SSB06310001",),
    }
    for split, utts in names.items():
        for name in utts:
            wav = folder / split / "wav" / name[:7] / f"{name}.wav"
            write_noise(wav, seconds, 44100)
        lines = [
            f"{n}.wav\t广 guang3 州 zhou1 女 nv3 大 da4 学 xue2 生 sheng1" for n in utts
        ]
        write_lines(folder / split / "content.txt", *lines)
    write_lines(
        folder / "train" / "label_train-set.txt",
        "# description",
        "SSB00050001|guang3 zhou1 % nv3 $|广州%女$",
    )
    return folder


def fleurs_row(number, text="he said so", samples=3200, sentence=7):
    """One line of a FLEURS list."""
    spelled = " ".join(text.replace(" ", "|"))
    return (
        f"{sentence}\t1{number:04d}.wav\t{text.capitalize()}.\t{text}\t{spelled}"
        f"\t{samples}\tFEMALE"
    )


def write_fleurs(root, code, rows, seconds=0.2, packed=True):
    """Write one language; ``rows`` maps splits to lines, whose audio is made."""
    folder = Path(root) / "fleurs" / code
    for split in ("train", "dev", "test"):
        lines = rows.get(split, ())
        write_lines(folder / f"{split}.tsv", *lines)
        audio = folder / "audio" / split
        audio.mkdir(parents=True, exist_ok=True)
        for line in lines:
            write_noise(audio / line.split("\t")[1], seconds)
        if packed:
            pack(audio)
    return folder


def pack(folder):
    """Replace a folder by a tar archive that holds it."""
    folder = Path(folder)
    with tarfile.open(folder.with_name(f"{folder.name}.tar.gz"), "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def write_paper_corpora(root, count=4, seconds=2.1):
    """Write all corpora of the paper; CommonVoice has ``count`` clips per locale.

    Returns:
        Where each is, by the variable of ``db.sh``.
    """
    for locale, text in (
        ("en", "This is sentence number {}."),
        ("zh-CN", "这是第{}句话"),
        ("zh-HK", "呢個係第{}句"),
        ("yue", "第{}句嚟喇"),
    ):
        rows = [
            cv_row(
                locale, n, text.format("一二三四五六七八九十"[n % 10] * (n // 10 + 1))
            )
            for n in range(count)
        ]
        write_commonvoice(
            root, locale, rows, rows[:1], rows[1:2], rows[2 : 2 + count // 2], seconds
        )
    write_thchs30(root, seconds=seconds)
    write_aishell1(root, seconds)
    write_aishell3(root, seconds)
    for start, (code, text) in enumerate(
        (
            ("en_us", "he said so"),
            ("cmn_hans_cn", "他 就 是 这 么 说 的"),
            ("yue_hant_hk", "佢 係 咁 講"),
        )
    ):
        rows = {
            split: [fleurs_row(10 * start + n, text, round(seconds * 16000))]
            for n, split in enumerate(("train", "dev", "test"))
        }
        write_fleurs(root, code, rows, seconds)
    root = Path(root)
    return {
        "COMMONVOICE": str(root / "cv-corpus-11.0-2022-09-21"),
        "THCHS30": str(root / "data_thchs30"),
        "AISHELL1": str(root / "data_aishell"),
        "AISHELL3": str(root / "aishell3"),
        "FLEURS": str(root / "fleurs"),
    }

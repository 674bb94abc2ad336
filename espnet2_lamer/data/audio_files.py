"""Which files are audio by their names, and what others under such names really are."""

from pathlib import Path, PurePath

#: Suffixes of what libsndfile decodes and the recipe accepts.
EXTENSIONS = tuple(
    ".wav .wave .bwf .rf64 .w64 .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd "
    ".caf .sph .nist .voc".split()
)
_CONVERT = "which libsndfile does not decode; convert it, e.g. ffmpeg -i FILE FILE.flac"
# Where in a file, which bytes, and what begins so.
_KINDS = (
    (0, b"version https://git-lfs", "a git-lfs pointer; run git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer; run git annex get"),
    (0, b"\0\5\x16\7", "the companion of a file copied from a Mac, without sound"),
    *(
        (at, magic, f"a {name} archive; unpack it first")
        for name, at, magic in (
            ("zip", 0, b"PK\3\4"),
            ("gzip", 0, b"\x1f\x8b"),
            ("bzip2", 0, b"BZh"),
            ("tar", 257, b"ustar"),
        )
    ),
    *(
        (at, magic, f"{name}, {_CONVERT}")
        for name, at, magic in (
            ("MP4 (AAC, ALAC)", 4, b"ftyp"),
            ("Matroska or WebM", 0, b"\x1aE\xdf\xa3"),
            ("Windows Media", 0, b"0&\xb2u"),
            ("AMR", 0, b"#!AMR"),
            ("AAC", 0, b"\xff\xf1"),
            ("WavPack", 0, b"wvpk"),
        )
    ),
)


def is_hidden(path: str | PurePath) -> bool:
    """Whether a path inside a corpus is hidden, or what a Mac adds to copies."""
    parts = PurePath(path).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_companion(path: str | PurePath) -> bool:
    """Whether a Mac laid the file beside the one that was copied: ``._a.wav``."""
    path = PurePath(path)
    return path.name.startswith("._") or "__MACOSX" in path.parts


def what_it_is(path: str) -> str:
    """Say what a file is that is no audio, by its first bytes; empty: no idea."""
    try:
        with open(path, "rb") as handle:
            head = handle.read(1024)
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if not head.strip(b"\0"):
        return "only zero bytes; its copy or download was not finished"
    for at, magic, text in _KINDS:
        if head.startswith(magic, at):
            return text
    if head.startswith(b"NIST_1A") and b"shorten" in head:
        return "SPHERE with compressed samples; convert it with sph2pipe -f wav"
    text = head.decode(errors="ignore")
    if not text or not all(c.isprintable() or c.isspace() for c in text):
        return ""
    if text.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "an HTML page, as failed downloads leave them; fetch it again"
    first, *more = text.strip().splitlines()
    if not more and (Path(path).parent / first).suffix == Path(path).suffix:
        return f"the path {first}: a symbolic link that did not survive a copy"
    return f"text that begins {first[:40]!r}"

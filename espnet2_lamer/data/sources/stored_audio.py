"""Audio that lies in archives, written out once: ``<datadir>/audio/<source>/``."""

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from espnet2_lamer.data.audio_files import EXTENSIONS
from espnet2_lamer.data.sources.source import Source
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import atomic_path, write_json
from espnet2_lamer.fileio.hashing import sha256_value

_MARK = "origin.json"
#: An archive that unpacks to more times its size is no archive of speech.
LARGEST_RATIO = 100
#: Most bytes of one audio file, and of one text, in an archive.
LARGEST_AUDIO = 2**30
LARGEST_TEXT = 2**22
# First bytes, and the suffix for them.
_KINDS = (
    (b"RIFF", ".wav"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"FORM", ".aiff"),
    (b"NIST_1A", ".sph"),
    (b"caff", ".caf"),
)
_LONGEST_NAME = 120


class AudioStore:
    """Where the audio of one source goes: 256 folders, each file by rename.

    Files that an earlier run wrote stay, so a killed run goes on; if the archives are
    others now, all is written anew.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.folder: Path | None = None
        self._names: set[str] = set()
        self._written = self._budget = 0
        self._archives = ""

    def open(self, source: Source, archives: Sequence[Path]) -> None:
        """Begin with a source; say how much disk it may take.

        Raises:
            RecipeError: The disk has less than the archives hold.
        """
        stats = [(str(path.absolute()), path.stat()) for path in archives]
        origin = [[path, s.st_size, s.st_mtime_ns] for path, s in stats]
        place = os.path.abspath(source.path)
        name = f"{source.name}-{sha256_value(place)[:8]}"
        self.folder = self.root.absolute() / name
        before: object = None
        with suppress(OSError, ValueError):
            before = json.loads((self.folder / _MARK).read_text(encoding="utf-8"))
        if self.folder.is_dir() and before != origin:
            logging.info("%s: its archives changed, written anew", self.folder)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sum(p.stat().st_size for p in self.folder.glob("??/*") if p.is_file())
        size = sum(one[1] for one in origin)
        free = shutil.disk_usage(self.folder).free
        text = "%s: takes audio out of %d files of %.2f GB; %.2f GB are there, %.1f GB "
        figures = self.folder, len(archives), size / 1e9, there / 1e9, free / 1e9
        logging.info(text + "are free", *figures)
        if size - there > free:
            raise RecipeError(
                f"{self.folder}: the disk has {free / 1e9:.1f} GB free, the audio of "
                f"{place} takes about {(size - there) / 1e9:.1f} GB; make room, or "
                "choose another --datadir"
            )
        write_json(self.folder / _MARK, origin)
        self._names.clear()
        self._written, self._budget = 0, LARGEST_RATIO * size
        self._archives = place

    def add(self, utt_id: str, data: bytes, suffix: str, where: str) -> str:
        """Write one file unless it is there; return its absolute path.

        ``suffix`` is that of its old name; what begins as another kind gets its own.

        Raises:
            RecipeError: It is empty, an id occurs twice, or the archive unpacks to more
                than any speech does.
        """
        if not data:
            raise RecipeError(f"{where}: audio of 0 bytes; take the row out")
        path = self._place(utt_id, suffix_of(data, suffix, where))
        if path.name in self._names:
            raise RecipeError(
                f"{where}: utterance id {utt_id!r} occurs twice; ids must be unique"
            )
        self._names.add(path.name)
        self._written += len(data)
        if self._written > self._budget:
            raise RecipeError(
                f"{where}: {self._archives} unpacks to more than {LARGEST_RATIO} times "
                "its size, which no archive of speech does; nothing more is unpacked"
            )
        if not path.is_file() or path.stat().st_size != len(data):
            # A file cut short by a power failure has another size.
            with atomic_path(path, sync=False) as temporary:
                temporary.write_bytes(data)
        return str(path)

    def _place(self, utt_id: str, suffix: str) -> Path:
        digest = sha256_value(utt_id)
        name = re.sub(r"[^\w.+=@-]", "_", utt_id).lstrip(".")[:_LONGEST_NAME]
        # Other ids may lead to the same name.
        name = name if name == utt_id else f"{name[: _LONGEST_NAME // 2]}-{digest[:12]}"
        return self.folder / digest[:2] / f"{name}{suffix}"


def suffix_of(data: bytes, suffix: str, where: str) -> str:
    """Return the suffix of audio by its first bytes, else by its name.

    Raises:
        RecipeError: Neither is that of audio.
    """
    for magic, known in _KINDS:
        if data.startswith(magic):
            # Other suffixes of the same kind say more: .opus, .oga.
            return suffix if suffix in (".opus", ".oga", ".rf64", ".bwf") else known
    if suffix in EXTENSIONS:
        return suffix
    if data[:1] == b"\xff" and data[1] & 0xE0 == 0xE0:
        return ".mp3"
    raise RecipeError(
        f"{where}: no audio that is known by name ({suffix or 'no suffix'}) or first "
        f"bytes ({data[:4]!r}); expected a file such as {' '.join(EXTENSIONS[:6])}"
    )

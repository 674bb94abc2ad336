"""The options that every recipe's run.sh has."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from espnet2_lamer.data.corpora import CORPORA, MHUBERT147_AUDIO
from espnet2_lamer.data.segmented_rows import WAYS, segment_tables
from espnet2_lamer.data.sources.source import parse_sources
from espnet2_lamer.recipe.declaration import (
    as_text,
    data_option,
    option,
    upload_option,
)


@dataclass(kw_only=True)
class CommonOptions:
    """The options that every recipe has, and what follows from them.

    ``given`` are those that were given beside the preset.
    """

    given: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    preset: str = option("mini | small | paper, see conf/presets", "mini")
    stage: int = option("first stage to run", 0, least=0)
    stop_stage: int = option("last stage to run", -1, empty="the last")
    skip_stages: list[int] = option('stages to leave out, e.g. "5 6"', [])
    print_commands: bool = option(
        "true: print the commands that do these stages' work by hand, run nothing",
        False,
    )
    nj: int = option("parallel jobs of this machine", 2, least=1)
    ngpu: int = option("GPUs per node, 0 = CPU", 0, least=0)
    seed: int = option("seed of everything random", 0)
    datadir: Path = option("data directories of stage 1", Path("data"))
    dumpdir: Path = option("formatted data, features, units", Path("dump"))
    expdir: Path = option("experiments, logs, results", Path("exp"))
    python: str = option("Python interpreter", "", empty="that of path.sh")
    corpus: str = data_option(
        "one, or several joined, of: mini, manifest (your own speech), and commonvoice "
        "thchs30 aishell1 aishell3 fleurs mhubert147, whose paths are in db.sh"
    )
    manifest: str = data_option(
        "your own speech, several with spaces between: TSV, folder of audio per "
        "language, Kaldi folder, datasets:ID or folder, lhotse cuts, tar shards; see "
        "docs/adding_a_language.md",
        "",
    )
    segment: str = data_option(
        "make utterances of the manifest's recordings: vad (cut what is longer than "
        "--max_duration at pauses) | file (Kaldi's segments) | none",
        "none",
        choices=WAYS,
    )
    segments: str = data_option(
        "file of --segment file", "", empty="those beside the manifest"
    )
    exclude_sources: list[str] = data_option("sources of the manifest to leave out", [])
    max_missing: float = data_option(
        "most missing clips per set of a public corpus, in %", 1.0, least=0
    )
    min_duration: float = data_option("shortest utterance in seconds")
    max_duration: float = data_option("longest utterance in seconds")
    max_bad_audio: float = data_option(
        "most unusable audio files per set, in %", 1.0, least=0
    )
    hf_repo: str = upload_option("Hugging Face repository to upload to", "")
    dry_run: bool = upload_option("true: only list what would be uploaded", False)

    def command(self, **changes: Any) -> str:
        """Return the user's own command line with other options, to be pasted.

        An option that is None is left out.
        """
        words = ["./run.sh"]
        for name, value in ({**self.given, "print_commands": None} | changes).items():
            if value is not None:
                text = as_text(value)
                # What begins with a dash would be read as an option.
                apart = not text.startswith("-")
                words += [f"--{name}", text] if apart else [f"--{name}={text}"]
        return shlex.join(words)

    @property
    def device(self) -> str:
        """Where models compute: ``"cuda"`` with ``--ngpu``."""
        return "cuda" if self.ngpu else "cpu"

    @property
    def raw(self) -> Path:
        """Where formatted data directories are."""
        return self.dumpdir / "raw"

    @property
    def packed(self) -> Path:
        """Where packages go."""
        return self.expdir / "packed"

    @property
    def results(self) -> Path:
        """Directory of ``RESULTS.md``."""
        return self.expdir

    @property
    def corpus_paths(self) -> dict[str, str] | None:
        """Where ``db.sh`` says that the public corpora are; None if none is in use."""
        used = [CORPORA[name] for name in self.corpus.split() if name in CORPORA]
        if "mhubert147" in self.corpus.split():
            used.append(MHUBERT147_AUDIO)
        return {variable: os.environ.get(variable, "") for variable in used} or None

    @property
    def segmentation(self) -> list | None:
        """How recordings are cut; None where they are not."""
        if self.segment == "vad":
            return [self.segment, self.min_duration, self.max_duration]
        return None if self.segment == "none" else [self.segment, self.segments]

    @property
    def manifest_parts(self) -> list[Path]:
        """Files and folders of the manifest's sources, and its segments, if in use."""
        if "manifest" not in self.corpus.split() or not self.manifest:
            return []
        sources = parse_sources(self.manifest)
        files = [path for source in sources for path in source.files()]
        if self.segment == "file":
            beside = sources[0].path if len(sources) == 1 else ""
            tables = segment_tables(beside, self.segments)
            more = [t.with_name(n) for t in tables for n in ("text", "utt2spk")]
            files += [*tables, *filter(Path.is_file, more)]
        return files

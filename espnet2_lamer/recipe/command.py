"""The command line of a recipe: read options, then run, print or explain its stages."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.trust import OPTION, trusting_s3prl_files
from espnet2_lamer.recipe.declaration import check, get_parser, help_text, parse
from espnet2_lamer.recipe.runner import Runner, chosen_stages
from espnet2_lamer.recipe.stage import Options, Recipe


def read_options(recipe: Recipe, cmd: Sequence[str]) -> Options:
    """Read and check a command line; ``--help`` and wrong options end the program.

    Raises:
        RecipeError: Values that contradict each other, or miss a file.
    """
    parser = get_parser(recipe.options)
    values, given, helps = parse(parser, recipe.options, cmd, recipe.presets)
    last = max(stage.number for stage in recipe)
    if values["stop_stage"] < 0 and "stop_stage" not in given:
        values["stop_stage"] = last
    if helps:
        titles = {stage.number: stage.title for stage in recipe}
        print(help_text(recipe.options, values, recipe.about, titles), end="")
        raise SystemExit(0)
    for name in ("stage", "stop_stage"):
        if not 0 <= values[name] <= last:
            parser.error(f"--{name} {values[name]}: expected 0 to {last}")
    if values["stop_stage"] < values["stage"]:
        parser.error(
            f"--stop_stage {values['stop_stage']}: expected --stage "
            f"({values['stage']}) or later"
        )
    options = recipe.options(**values)
    options.given = given
    check(options)
    recipe.settle(options)
    return options


def run_recipe(recipe: Recipe, cmd: Sequence[str] | None) -> None:
    """Run the stages that run.sh's arguments ask for.

    Raises:
        RecipeError: An option, an input or a stage is wrong.
    """
    options = read_options(recipe, sys.argv[1:] if cmd is None else cmd)
    if getattr(options, "plan", False):
        from espnet2_lamer.recipe.plan import make_plan

        with trusting_s3prl_files(options.trust_s3prl_files):
            print("\n".join(make_plan(options, recipe)))
        return
    stages = recipe.stages_of(options)
    runner = Runner(stages, options, lambda stage: recipe.by_hand(stage, options))
    runner.check_options(chosen_stages(stages, options))
    with trusting_s3prl_files(getattr(options, OPTION, False)):
        if options.print_commands:
            print(f"# in egs2/lamer_ssl/{recipe.name}, after: . ./path.sh && . ./db.sh")
            for stage in chosen_stages(stages, options):
                print(f"# stage {stage.number}: {stage.title}")
                for command in recipe.by_hand(stage, options):
                    print(command.text(options.python))
            return
        quiet_terminal()
        runner.run()


def run_stage(recipes: Sequence[Recipe], cmd: Sequence[str]) -> None:
    """Do the work of one stage, whatever was done before: ``RECIPE STAGE OPTIONS``.

    Raises:
        RecipeError: There is no such stage, or as :func:`run_recipe`.
    """
    recipe = next((found for found in recipes if [found.name] == cmd[:1]), None)
    if recipe is None:
        names = " or ".join(found.name for found in recipes)
        raise RecipeError(f"{' '.join(cmd[:1])}: expected {names} and a stage's name")
    options = read_options(recipe, cmd[2:])
    stages = {stage.name: stage for stage in recipe.stages_of(options)}
    if len(cmd) < 2 or cmd[1] not in stages:
        raise RecipeError(
            f"{' '.join(cmd[:2])}: expected one of {', '.join(stages)} after "
            f"{recipe.name}"
        )
    stage = stages[cmd[1]]
    runner = Runner([*stages.values()], options)
    runner.check_options([stage])
    with trusting_s3prl_files(getattr(options, OPTION, False)):
        with runner.folders, runner.locked(stage):
            for command in stage.run(options) or ():
                command.run()


def _own_or_error(record: logging.LogRecord) -> bool:
    ours = f"{os.sep}espnet2_lamer{os.sep}" in record.pathname
    return ours or record.levelno >= logging.ERROR


def quiet_terminal() -> None:
    """Keep ESPnet's log lines off the terminal; the stage's log file has them all."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_own_or_error)
    # ESPnet's own use of torch; nothing a user could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"espnet2\.")

#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154  # variables of the run.sh that sources this
# What the recipes' run.sh share: the preset, reading options, the range of stages.

# find_preset FOLDER ARGUMENTS...: set `preset` and check that FOLDER/PRESET.sh exists.
# A preset sets every option; what is given on the command line wins.
find_preset() {
    local folder=$1 previous='' argument
    shift
    preset=mini
    for argument in "$@"; do
        case "${argument}" in --preset=*) preset=${argument#*=} ;; esac
        if [ "${previous}" = --preset ]; then preset=${argument}; fi
        previous=${argument}
    done
    # Presets are run: an experiment definition of others must not name another file.
    if ! [[ ${preset} =~ ^[A-Za-z0-9_-]+$ ]]; then
        echo "run.sh: --preset ${preset}: expected a name in ${folder}" >&2
        exit 2
    fi
    if [ ! -f "${folder}/${preset}.sh" ]; then
        echo "run.sh: --preset ${preset}: ${folder}/${preset}.sh not found" >&2
        exit 2
    fi
}

# read_options ARGUMENTS...: set the variables named in `options`, and `python`; the
# stages must lie between 0 and `last_stage`.
read_options() {
    local option value
    while [ $# -gt 0 ]; do
        case "$1" in
            -h|--help) help_message; exit 0 ;;
            --*=*) option=${1%%=*}; value=${1#*=}; shift ;;
            --*)
                option=$1
                if [ $# -lt 2 ]; then
                    echo "run.sh: ${option} needs a value; see ./run.sh --help" >&2
                    exit 2
                fi
                value=$2
                shift 2
                ;;
            *)
                echo "run.sh: unexpected argument '$1'; see ./run.sh --help" >&2
                exit 2
                ;;
        esac
        option=${option#--}
        option=${option//-/_}
        case " ${options//$'\n'/} python " in
            *" ${option} "*) printf -v "${option}" '%s' "${value}" ;;
            *)
                echo "run.sh: unknown option --${option}; see ./run.sh --help" >&2
                exit 2
                ;;
        esac
    done
    for option in stage stop_stage; do
        if ! [[ ${!option} =~ ^[0-9]+$ ]] || [ "${!option}" -gt "${last_stage}" ]; then
            echo "run.sh: --${option} ${!option}: expected 0 to ${last_stage}; see" \
                "./run.sh --help" >&2
            exit 2
        fi
    done
    if [ "${stop_stage}" -lt "${stage}" ]; then
        echo "run.sh: --stop_stage ${stop_stage}: expected --stage (${stage}) or later" >&2
        exit 2
    fi
}

# run_recipe MODULE: run its stages with the value of every option.
run_recipe() {
    local arguments=() option
    for option in ${options}; do
        arguments+=("--${option}" "${!option}")
    done
    exec ${train_cmd} "${python}" -m "$1" "${arguments[@]}"
}

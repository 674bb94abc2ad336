#!/usr/bin/env bash
# The few options that bash itself reads; all others are the program's.

# given NAME DEFAULT ARGUMENTS...: print the value of --NAME among the arguments.
given() {
    local name=$1 value=$2 previous='' argument
    shift 2
    for argument in "$@"; do
        case "${argument}" in --"${name}"=*) value=${argument#*=} ;; esac
        if [ "${previous}" = "--${name}" ]; then value=${argument}; fi
        previous=${argument}
    done
    printf '%s' "${value}"
}

# asks_only ARGUMENTS...: whether nothing runs, so that no launcher is needed.
asks_only() {
    local argument
    for argument in "$@"; do
        case "${argument}" in -h|--help) return 0 ;; esac
    done
    [ "$(given print_commands false "$@")" = true ] ||
        [ "$(given plan false "$@")" = true ]
}

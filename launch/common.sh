# Shared by launch/local, tpu, gke and slurm, which source it. It sets `words`, the words before "--" except --dry-run and --help;
# `command`, the words after it; `venv`, the environment; and changes to the repository's folder. Scripts act through `run`, which
# only prints in a dry run.

name=launch/${0##*/}
dry_run=
words=()

fail() {
    echo "$name: $*; see $name --help" >&2
    exit 2
}

quoted() { # the words as a line that a shell reads as these words
    local word line='' quote="'" escaped="'\\''"
    for word in "$@"; do
        case $word in
            "" | *[!A-Za-z0-9_@%+=:,./-]*) line+=" '${word//$quote/$escaped}'" ;;
            *) line+=" $word" ;;
        esac
    done
    printf '%s\n' "${line# }"
}

present() { # present COMMAND
    command -v "$1" >/dev/null || fail "$1 is not installed here"
}

run() {
    if [ -n "$dry_run" ]; then quoted "$@"; else present "$1" && "$@"; fi
}

run_with_input() { # run_with_input TEXT COMMAND ..
    if [ -n "$dry_run" ]; then
        printf "%s <<'END_OF_INPUT'\n%s\nEND_OF_INPUT\n" "$(quoted "${@:2}")" "$1"
    else
        present "$2"
        "${@:2}" <<<"$1"
    fi
}

is_count() { # a whole number from 1 up
    [[ $1 =~ ^[1-9][0-9]*$ ]]
}

while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        --help | -h)
            awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
            exit
            ;;
        --dry-run) dry_run=yes ;;
        *) words+=("$1") ;;
    esac
    shift
done
command=("${@:2}")
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[[ $venv = /* ]] || venv=$PWD/$venv

# Completion of sluice and sluiced in bash. Commands and options are what the program itself lists.
# shellcheck shell=bash

_sluice() {
    local word=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]} command=()

    COMPREPLY=()
    if [[ ${program##*/} == sluice ]]; then
        if ((COMP_CWORD == 1)); then
            mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null |
                sed -n 's/^  \([a-z-]*\)  *.*/\1/p') help version" -- "$word")
            return
        fi
        command=("${COMP_WORDS[1]}")
        case ${COMP_WORDS[1]} in
        batch | bench | images | trace) # in kinds, which the lines of --help name
            if ((COMP_CWORD == 2)); then
                mapfile -t COMPREPLY < <(compgen -W "$("$program" "${command[@]}" --help 2>/dev/null |
                    sed -n "s/.* sluice ${COMP_WORDS[1]} \([a-z|]*\) .*/\1/p" | tr '|' ' ')" -- "$word")
                return
            fi
            command+=("${COMP_WORDS[2]}")
            ;;
        esac
    fi
    [[ $word == -* ]] || return
    mapfile -t COMPREPLY < <(compgen -W "$("$program" "${command[@]}" --help 2>/dev/null |
        grep -o -e '--[a-z][a-z0-9-]*')" -- "$word")
}
complete -o bashdefault -o default -F _sluice sluice sluiced

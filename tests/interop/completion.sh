#!/usr/bin/env bash
# Loads the completion scripts into their shells, as their help says, and completes some words: bash, and zsh, fish and PowerShell
# where they are installed.
#
# usage: completion.sh BINARY
set -euo pipefail
binary=$(realpath "${1:?usage: completion.sh BINARY}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$binary" "$work/etcdctl"
ln -s "$binary" "$work/watershed"
export PATH=$work:$PATH

# expect NAME WANTED ACTUAL: every word of WANTED is a word of ACTUAL
expect() {
    for word in $2; do
        grep -qw -- "$word" <<<"$3" || { printf 'FAILED %s: no %s in\n%s\n' "$1" "$word" "$3"; exit 1; }
    done
    echo "ok $1"
}

# in_bash WORD…: what bash completes the last word to
in_bash() {
    bash --norc -euo pipefail -c '
        set +u
        case $1 in etcdctl) source <(etcdctl completion bash) ;; *) source <(watershed ctl completion bash) ;; esac
        complete -p "$1" >/dev/null
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        "_$1" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}"
    ' bash "$@"
}
expect 'bash, a command' endpoint "$(in_bash etcdctl endp)"
expect 'bash, below it' 'health hashkv' "$(in_bash etcdctl endpoint h)"
expect 'bash, flags' '--prefix --prev-kv' "$(in_bash etcdctl del --pre)"
expect 'bash, watershed ctl' make-mirror "$(in_bash watershed ctl make)"

if command -v zsh >/dev/null; then
    mkdir "$work/functions"
    etcdctl completion zsh >"$work/functions/_etcdctl"
    loaded=$(zsh -f -c '
        fpath=($1 $fpath)
        autoload -Uz compinit && compinit -D -u && autoload +X _etcdctl && print $_comps[etcdctl]
    ' zsh "$work/functions")
    expect 'zsh' _etcdctl "$loaded"
else
    echo "zsh is not installed: not checked"
fi
if command -v fish >/dev/null; then
    completed=$(fish --no-config -c 'etcdctl completion fish | source; complete -C "etcdctl endp"; complete -C "etcdctl endpoint h"
        complete -C "etcdctl del --pre"; watershed ctl completion fish | source; complete -C "watershed ctl make"')
    expect 'fish' 'endpoint health hashkv --prefix --prev-kv make-mirror' "$completed"
else
    echo "fish is not installed: not checked"
fi
if command -v pwsh >/dev/null; then
    # shellcheck disable=SC2016
    completed=$(pwsh -NoProfile -Command 'etcdctl completion powershell | Out-String | Invoke-Expression
        (TabExpansion2 "etcdctl endp" 12).CompletionMatches.CompletionText')
    expect 'powershell' endpoint "$completed"
else
    echo "PowerShell is not installed: not checked"
fi

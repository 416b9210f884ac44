#!/bin/sh
# One call of runhistd by hand, with socat:  sh call.sh ListRuns '{"limit": 2}'
# A call is a JSON object ended by NUL, and so is its reply. Exits with 1 when that is an error.
set -eu
method=$1
parameters=${2:-"{}"}
for socket in "${RUNHIST_SOCKET:-}" "${RUNHIST_STATE_DIR:-$HOME/.local/state/runhist}/dev.runhist.History"; do
    [ -S "$socket" ] && break
done
reply=$(printf '{"method":"dev.runhist.History.%s","parameters":%s}\0' "$method" "$parameters" |
    socat -t 30 - "UNIX-CONNECT:$socket" | tr -d '\0')
printf '%s\n' "$reply"
case $reply in '{"parameters"'*) ;; *) exit 1 ;; esac

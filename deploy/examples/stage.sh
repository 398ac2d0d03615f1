# shellcheck shell=bash
#
# What the examples share, sourced by their `run`: they start things on this machine, wait until something is seen, and
# leave nothing behind. Sets `here` (the folder of the example), `dir` (a folder that goes with it), and a PATH in which
# the programs are.
#
#   need <program>...                       ends with exit code 3, SKIPPED, where one is not there
#   say <text>...                           a headline
#   until_seen <seconds> <what> <command>   waits until a command succeeds; past that, tells what was not seen, and ends
#   start <name> <command>...               starts a process with its log in $dir/<name>.log; its pid is in ${pid[<name>]}
#   stop <signal> <name>                    sends a signal, and waits for the end
#   free_port                               prints a port of 127.0.0.1 that nobody listens on
#   master <name> <port> <flag>...          starts a master, and waits until it is ready
#   slave <name> <ip> <role> <master> ...   starts <name>-slave, a slave of this id, address and role; its payload is
#                                           $dir/<name>.json
#   ask <port> <command>...                 asks a master

here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH=${KONTROL_BIN_DIR:-${CARGO_TARGET_DIR:-$root/target}/debug}:$PATH:/usr/sbin
unset "${!KONTROL_@}" NAMESPACE # the caller's own settings are for other masters

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null && continue
        echo "SKIPPED: there is no $program$([[ $program != kontrol-* ]] || echo ': cargo build')" >&2
        exit 3
    done
}
need kontrol-master kontrol-slave python3 curl jq

dir=$(mktemp -d)
declare -A pid=()

finish() {
    local code=$? name
    trap - EXIT INT TERM
    for name in "${!pid[@]}"; do kill -TERM "${pid[$name]}" 2>/dev/null || true; done
    for _ in {1..30}; do
        local alive=0
        for name in "${!pid[@]}"; do ! kill -0 "${pid[$name]}" 2>/dev/null || alive=1; done
        ((alive)) || break
        sleep 0.1
    done
    for name in "${!pid[@]}"; do kill -KILL "${pid[$name]}" 2>/dev/null || true; done
    if ((code != 0 && code != 3)); then
        for name in "$dir"/*.log; do
            [[ -e $name ]] || continue
            echo "--- the end of ${name##*/} ---" >&2
            tail -n 20 "$name" >&2
        done
    fi
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n%s\n' "$*"; }
[[ ! -t 1 || -n ${NO_COLOR:-} ]] || say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

until_seen() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            echo "error: this was not seen in time: $what" >&2
            exit 1
        fi
        sleep 0.1
    done
}

start() {
    local name=$1
    shift
    "$@" >>"$dir/$name.log" 2>&1 </dev/null &
    pid[$name]=$!
    disown $! # so that bash does not announce its end
}

stop() {
    kill "-$1" "${pid[$2]}"
    until_seen 20 "the end of $2" ended "${pid[$2]}"
    unset "pid[$2]"
}
ended() { ! kill -0 "$1"; }

free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + RANDOM % 10000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
            echo "$port"
            return
        }
    done
    echo "error: found no free port" >&2
    return 1
}

master() {
    local name=$1 port=$2
    shift 2
    start "$name" kontrol-master --id "$name" --port "$port" "$@"
    until_seen 20 "$name is ready" curl -sf "localhost:$port/readyz"
}

slave() {
    local name=$1 ip=$2 role=$3 masters=$4
    shift 4
    [[ -e $dir/$name.json ]] || echo '{}' >"$dir/$name.json"
    # Here a slave runs no commands; that it may lets the masters notice its death at once.
    start "$name-slave" kontrol-slave --insecure --id "$name" --ip "$ip" --master "$masters" \
        --labels '{"app":"example","role":"'"$role"'"}' --payload "$dir/$name.json" "$@"
}

ask() {
    local port=$1
    shift
    kontrol-master "$@" --endpoint "127.0.0.1:$port" --output json
}

# Where folders are mounted, and by whom they are used there: for the scripts that mount them, which go on below this.
# Beyond a POSIX shell and mount nothing is sure to be there.
set -u

# Who the folder above belongs to gets it.
make_folder() {
    [ ! -d "$1" ] || return 0
    case $1 in */*/*) make_folder "${1%/*}" || return ;; esac
    mkdir "$1" && chown "$(stat -c %u:%g "$1/..")" "$1"
}

# Through a link that the guest's user has made, root would give them any folder of the guest.
is_itself() {
    [ "$(cd -P "$1" && pwd -P)" = "$1" ]
}

# The processes that have something below $1 open, or are in it.
find_users() {
    ls -l -d /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd/* 2> /dev/null |
        while IFS= read -r line; do
            case $line in *" -> $1" | *" -> $1/"*) ;; *) continue ;; esac
            line=${line%% -> *} line=${line##* /proc/}
            echo "${line%%/*}"
        done | sort -u
}

name_users() {
    names=
    for process in $(find_users "$1"); do
        read -r name < "/proc/$process/comm" || continue
        case ", $names," in *", $name,"*) ;; *) names=${names:+$names, }$name ;; esac
    done 2> /dev/null
    echo "${names:-$said}"
}

end_users() {
    for signal in TERM KILL; do
        for process in $(find_users "$1"); do
            kill -s "$signal" "$process"
        done 2> /dev/null
        tries=0
        until said=$(umount "$1" 2>&1); do
            tries=$((tries + 1))
            [ "$tries" -lt 20 ] || break
            sleep 0.1
        done
        [ "$tries" -ge 20 ] || return 0
    done
    echo "$said"
    return 1
}

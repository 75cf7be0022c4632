# Mounts and unmounts the host's folders. The guest agent runs this as root with a verb and the folders: tag, type,
# options and path of each. It says a line for each folder that failed: the tag, a space and why.
# Beyond a POSIX shell and mount nothing is sure to be there.
set -u

verb=$1 failed=
shift

is_mounted() {
    while read -r source _; do
        [ "$source" != "$1" ] || return 0
    done < /proc/mounts
    return 1
}

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

mount_folder() {
    ! is_mounted "$1" || return 0
    make_folder "$4" || return
    is_itself "$4" || {
        echo "its place is behind a link"
        return 1
    }
    # The device may still be on its way.
    tries=0
    until said=$(mount -t "$2" -o "$3" "$1" "$4" 2>&1); do
        tries=$((tries + 1))
        if [ "$tries" -ge 50 ]; then
            echo "$said"
            return 1
        fi
        sleep 0.1
    done
    while read -r source place _; do
        [ "$source" = "$1" ] || continue
        # Where a link has come in between, it is not at the path. Blanks are not told apart here, nor is a link.
        [ "$place" = "$4" ] || case $4 in *[[:space:]\\]*) ;; *)
            umount "$place"
            echo "its place is behind a link"
            return 1
            ;;
        esac
    done < /proc/mounts
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

unmount_folder() {
    is_mounted "$1" || return 0
    # A program that has just ended may not have let go of it.
    tries=0
    until said=$(umount "$4" 2>&1); do
        tries=$((tries + 1))
        [ "$tries" -lt 5 ] || break
        sleep 0.2
    done
    [ "$tries" -ge 5 ] || return 0
    if [ "$verb" = end ]; then
        end_users "$4"
    else
        name_users "$4"
        return 1
    fi
}

while [ $# -ge 4 ]; do
    case $verb in
        mount) words=$(mount_folder "$1" "$2" "$3" "$4" 2>&1) ;;
        *) words=$(unmount_folder "$1" "$2" "$3" "$4" 2>&1) ;;
    esac || {
        failed=1
        echo "$1" $words
    }
    shift 4
done
[ -z "$failed" ]

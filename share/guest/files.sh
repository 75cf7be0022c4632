# What is done with files of the guest's user, as that user: $1, with the path $2. `sh -c` evaluates this from an
# environment variable, so that standard input is free for data and nothing is left in the guest. Paths are absolute
# and come as escapes of printf's %b: they may hold any byte but NUL, which the agent's JSON cannot.
# Exit codes that qemu/guest_files.py knows: 10 missing, 11 no folder, 12 not allowed, 13 exists, 14 another size,
# 15 no file. For others the first line on standard error says why.
set -u
umask 022

# To $decoded; what is behind the path keeps its newlines at the end.
decode() {
    decoded=$(printf '%b.' "$1")
    decoded=${decoded%.}
}

is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

enter() {
    [ -e "$1" ] || exit 10
    [ -d "$1" ] || exit 11
    cd "$1" 2> /dev/null || exit 12
}

# Each entry is "/", type and mode in hexadecimal, size, time, and its name behind "./": no other "/" follows a newline.
# After "//" what the links among them lead to; a link that leads nowhere is not there. At most $1 bytes each.
list() {
    [ -r . ] || exit 12
    find . ! -name . -prune -exec stat -c '/%f %s %Y %n' {} + 2> /dev/null | head -c "$1"
    echo //
    find . ! -name . -prune -type l -exec stat -L -c '/%f %s %Y %n' {} + 2> /dev/null | head -c "$1"
}

# $3 blocks of $1 bytes, the first $2 of them left out.
read_blocks() {
    [ -e "$path" ] || exit 10
    [ -f "$path" ] || exit 15
    [ -r "$path" ] || exit 12
    exec dd if="$path" bs="$1" skip="$2" count="$3"
}

# The hidden file $2 for an upload to the name $1, in the present folder. $3: what to do where the name is taken. What
# nobody has gone on with for a week is given up.
start() {
    [ -w . ] || exit 12
    if is_there "$1"; then
        [ "$3" != refuse ] || exit 13
        [ "$3" != replace ] || [ -f "$1" ] || exit 15
    fi
    find . ! -name . -prune -type f -name '.upload-*.part' -mtime +6 -exec rm -f {} +
    (set -C && : > "$2")
}

check_size() {
    [ -f "$path" ] || exit 10
    size=$(stat -c %s "$path") || exit
    [ "$size" = "$1" ] || exit 14
}

# Give the whole upload its name $1, or where that is taken the next free one, and tell it.
finish() {
    cd "${path%/*}/" || exit
    if [ "$2" = replace ]; then
        [ ! -d "./$1" ] || exit 15
        mv -f "$path" "./$1" || exit
        printf %s "$1"
        return
    fi
    stem=$1 extension='' name=$1 number=1
    case $1 in ?*.*) stem=${1%.*} extension=.${1##*.} ;; esac
    until take_name "$name"; do
        is_there "./$name" || exit
        number=$((number + 1))
        [ "$number" -lt 1000 ] || exit 13
        name="$stem ($number)$extension"
    done
    printf %s "$name"
}

# Only a link cannot replace what has just come to be there; not every file system has them.
take_name() {
    ! is_there "./$1" || return
    if ln "$path" "./$1" 2> /dev/null; then
        rm -f "$path"
    else
        mv -n "$path" "./$1" && [ ! -e "$path" ]
    fi
}

decode "$2"
path=$decoded
case $1 in
    list)
        enter "$path"
        list "$3"
        ;;
    about)
        [ -e "$path" ] || exit 10
        exec stat -L -c '%f %s %Y' "$path"
        ;;
    read) read_blocks "$3" "$4" "$5" ;;
    make-folder)
        ! is_there "$path" || exit 13
        exec mkdir "$path"
        ;;
    start)
        enter "$path"
        if [ -n "$6" ] && [ -d "./$6" ]; then
            enter "./$6"
            printf %s "$6"
        fi
        decode "$3"
        start "./$decoded" "$4" "$5"
        ;;
    append)
        check_size "$3"
        exec cat >> "$path"
        ;;
    finish)
        check_size "$3"
        decode "$4"
        finish "$decoded" "$5"
        ;;
    give-up) rm -f "$path" ;;
esac

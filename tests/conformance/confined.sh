# sh confined.sh USER READABLE,… WRITABLE,… PROGRAM …, in a mount namespace of its own.
# A new root of read-only binds: the system, the readable folders, and empty writable ones.
set -eu
user=$1 readable=$2 writable=$3
shift 3
root=$(mktemp -d)
mount -t tmpfs -o mode=755 tmpfs "$root"
for top in /*; do
    case $top in
    /root | /home | /tmp | /work | /proc | /dev | /cache) continue ;;
    esac
    if [ -L "$top" ]; then
        cp -P "$top" "$root$top"
    elif [ -d "$top" ]; then
        mkdir -p "$root$top"
        mount --bind "$top" "$root$top"
        mount -o remount,bind,ro "$root$top"
    fi
done
mkdir -p "$root/proc" "$root/dev"
mount --rbind /proc "$root/proc"
mount --bind /dev "$root/dev"
IFS=,
for folder in $writable; do
    mkdir -p "$root$folder"
    mount -t tmpfs -o mode=1777 tmpfs "$root$folder"
done
for folder in $readable; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
done
unset IFS
mount -o remount,ro "$root"
exec chroot "$root" setpriv "--reuid=$user" "--regid=$user" --clear-groups --no-new-privs \
    --inh-caps=-all --bounding-set=-all -- "$@"

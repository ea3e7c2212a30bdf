#!/usr/bin/env bash
# Build the image, run it as it is to be run, and print its size and start time:
#
#   deploy/build_image.sh
#   BASE_IMAGE=debootstrap deploy/build_image.sh                 # where there is no registry; needs root
#   TORCH_VARIANT=cuda TORCH_VERSION=2.14.1 deploy/build_image.sh
#
# IMAGE          its name; energy-ood:VERSION-VARIANT if not given
# ENGINE         docker, podman or buildah; docker if its daemon answers, else buildah, which needs none
# BASE_IMAGE     see Dockerfile; `debootstrap` makes one from the Debian mirror that this machine is set to
# TORCH_VARIANT, TORCH_VERSION, EXTRAS  see Dockerfile
#
# pip works in the build as it is configured here, but for Docker, whose builds do not see what that names on this machine:
# certificates, constraints, folders of wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' model_store/__init__.py)
variant=${TORCH_VARIANT:-cpu}
image=${IMAGE:-energy-ood:$version-$variant}
base=${BASE_IMAGE:-debian:bookworm-slim}
if [ -z "${ENGINE:-}" ]; then
    docker info > /dev/null 2>&1 && ENGINE=docker || ENGINE=buildah
fi
scratch=$(mktemp -d)
container=
trap cleanup EXIT

cleanup() {
    [ -z "$container" ] || remove_container > /dev/null 2>&1 || true
    rm -rf --one-file-system "$scratch"
}

fail() {
    echo "build_image.sh: $*" >&2
    [ ! -s "$scratch/log" ] || tail -n 20 "$scratch/log" >&2
    exit 1
}

debootstrap_base() { # a minimal Debian of this machine's release, without what images have no use for
    local root=$scratch/base mirror suite
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v suite="$suite" '$2 == suite { print $1; exit }')
    debootstrap --variant=minbase "$suite" "$root" "$mirror" > "$scratch/log" 2>&1 || fail "debootstrap failed"
    printf 'path-exclude /usr/share/%s/*\n' doc man info locale > "$root/etc/dpkg/dpkg.cfg.d/slim"
    echo 'path-include /usr/share/doc/*/copyright' >> "$root/etc/dpkg/dpkg.cfg.d/slim"
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{man,info,locale}/*
    tar --directory "$root" --create --file "$scratch/base.tar" .
    rm -rf --one-file-system "$root"
    if [ "$ENGINE" = buildah ]; then
        local made
        made=$(buildah from scratch)
        buildah add --quiet "$made" "$scratch/base.tar" / > /dev/null
        buildah commit --quiet --rm "$made" "$1" > /dev/null
    else
        "$ENGINE" import "$scratch/base.tar" "$1" > /dev/null
    fi
    rm "$scratch/base.tar"
}

build() {
    local arguments=(--file Dockerfile --tag "$image" --secret "id=pip-config,src=$scratch/pip.conf"
        --build-arg "BASE_IMAGE=$base" --build-arg "TORCH_VARIANT=$variant" --build-arg "VERSION=$version"
        --build-arg "REVISION=$(git rev-parse HEAD)" --build-arg "CREATED=$(date --utc +%FT%TZ)")
    [ -z "${TORCH_VERSION:-}" ] || arguments+=(--build-arg "TORCH_VERSION=$TORCH_VERSION")
    [ -z "${EXTRAS:-}" ] || arguments+=(--build-arg "EXTRAS=$EXTRAS")
    python3 deploy/pip_configuration.py "$scratch/pip.conf" /host > "$scratch/paths"
    if [ "$ENGINE" = docker ]; then
        [ ! -s "$scratch/paths" ] || fail "pip is set to use $(xargs < "$scratch/paths"), which builds of Docker do not see; " \
            "unset that, or take ENGINE=buildah"
    else
        local path
        while read -r path; do arguments+=(--volume "$path:/host$path:ro"); done < "$scratch/paths"
    fi
    case $ENGINE in
        buildah) buildah bud --format docker --isolation chroot --layers=false "${arguments[@]}" . ;;
        podman) podman build --format docker "${arguments[@]}" . ;;
        *) "$ENGINE" build "${arguments[@]}" . ;;
    esac
}

size() {
    case $ENGINE in
        buildah) buildah images --format '{{.Size}}' "$image" ;;
        *) "$ENGINE" image ls --format '{{.Size}}' "$image" ;;
    esac
}

start_container() { # as docs/deployment.md says: nobody's user, nothing to write to but /tmp, no capabilities
    if [ "$ENGINE" = buildah ]; then
        container=$(buildah from "$image")
        touch "$scratch/started"
        mkdir -m 777 "$scratch/run"
        buildah run --isolation chroot --cap-drop ALL --env OOD_HOST=127.0.0.1 --env OOD_PORT="$port" \
            --mount type=tmpfs,destination=/tmp --volume "$scratch/run:/run/pid" \
            "$container" -- sh -c 'echo $$ > /run/pid/pid; exec ood-serve' > "$scratch/log" 2>&1 &
        runner=$!
    else
        container=$("$ENGINE" run --detach --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
            --network host --env OOD_HOST=127.0.0.1 --env OOD_PORT="$port" "$image")
    fi
}

in_container() {
    case $ENGINE in
        buildah) buildah run --isolation chroot --env OOD_PORT="$port" "$container" -- "$@" ;;
        *) "$ENGINE" exec "$container" "$@" ;;
    esac
}

process() { # its number on this machine
    case $ENGINE in
        buildah) cat "$scratch/run/pid" ;;
        *) "$ENGINE" inspect --format '{{.State.Pid}}' "$container" ;;
    esac
}

terminate() { # SIGTERM as an engine would send it; leaves the exit status in $status
    status=0
    case $ENGINE in
        buildah)
            kill -TERM "$(process)"
            wait "$runner" || status=$? ;;
        *)
            "$ENGINE" kill --signal TERM "$container" > /dev/null
            status=$("$ENGINE" wait "$container") ;;
    esac
}

remove_container() {
    case $ENGINE in
        buildah)
            [ ! -e "$scratch/run/pid" ] || kill -KILL "$(process)" || true
            buildah rm "$container" ;;
        *) "$ENGINE" rm --force "$container" ;;
    esac
}

written_files() { # by the server into the image's own file system; buildah cannot make it read-only
    find "$(buildah mount "$container")" -xdev -type f -newer "$scratch/started" -printf '/%P\n'
}

seconds_since() {
    awk -v from="$1" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }'
}

ask() { # a path and curl's further arguments; prints the status, leaves the body in $scratch/reply
    curl --silent --output "$scratch/reply" --write-out '%{http_code}' "${@:2}" "http://127.0.0.1:$port$1" || true
}

runtimes() {
    ask /models > /dev/null
    python3 -c 'import json, sys; print(*(model["runtime"] for model in json.load(sys.stdin)["models"]))' < "$scratch/reply"
}

wait_until_ready() {
    local from
    from=$(date +%s)
    until [ "$(ask /readyz)" = 200 ]; do
        [ $(($(date +%s) - from)) -lt 120 ] || fail "not ready in 120 s"
        [ "$ENGINE" != buildah ] || kill -0 "$runner" 2> /dev/null || fail "the server ended"
        sleep 0.05
    done
}

try() {
    local from status peak
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    from=$(date +%s.%N)
    start_container
    wait_until_ready
    echo "ready after $(seconds_since "$from") s, on $(runtimes)"
    in_container ood-healthcheck || fail "the health check is red"
    status=$(ask /predict --data-binary @tests/data/images/cifar10/test/frog/06404.png)
    [ "$status" = 200 ] && grep -q '"class_name":"frog"' "$scratch/reply" || fail "a frog got $status $(cat "$scratch/reply")"
    status=$(ask /predict --data-binary @tests/data/uploads/truncated_jpeg.jpg)
    [ "$status" = 422 ] || fail "a truncated JPEG got $status $(cat "$scratch/reply")"
    peak=$(awk '/VmHWM/ { printf "%.0f", $2 / 1024 }' "/proc/$(process)/status")
    from=$(date +%s.%N)
    terminate
    [ "$status" = 0 ] || fail "SIGTERM ended it with status $status"
    echo "a frog and a broken file answered; SIGTERM ended it with status 0 after $(seconds_since "$from") s; peak memory $peak MiB"
    if [ "$ENGINE" = buildah ]; then
        [ -z "$(written_files)" ] || fail "it wrote $(written_files)"
    fi
}

if [ "$base" = debootstrap ]; then
    base=localhost/energy-ood-base
    debootstrap_base "$base"
fi
build
echo "$image: $(size), built with $ENGINE"
try

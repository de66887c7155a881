#!/usr/bin/env bash
# Installs a control plane in a folder: etcd, kube-apiserver, kube-controller-manager and kubectl.
# Binaries in $KUBEBUILDER_ASSETS (the envtest convention) are copied; others are built from the published Go modules
# that go.mod pins. The first build takes some minutes.
#
#   tests/cluster/build.sh [DIR]        DIR: target/cluster by default
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/../../target/cluster}
mkdir -p "$out"
out=$(cd "$out" && pwd)

declare -A packages=(
  [etcd]=go.etcd.io/etcd/server/v3
  [kube-apiserver]=k8s.io/kubernetes/cmd/kube-apiserver
  [kube-controller-manager]=k8s.io/kubernetes/cmd/kube-controller-manager
  [kubectl]=k8s.io/kubernetes/cmd/kubectl
)

# Concurrent test runs must not write the same files.
exec 9>"$out/.lock"
flock 9

cd "$here"
version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod)
stamp=$(cat go.mod go.sum build.sh | sha256sum | cut -d' ' -f1)
IFS=. read -r major minor _ <<<"${version#v}"
ldflags="-s -w"
for setting in gitVersion="$version" gitMajor="$major" gitMinor="$minor"; do
  ldflags+=" -X k8s.io/component-base/version.$setting"
done

build() {
  local name=$1
  if ! command -v go >/dev/null; then
    echo "build.sh: no 'go' on the PATH to build $name with: install Go $(awk '$1 == "go" { print $2 }' go.mod) or newer," \
      "or set KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, kube-controller-manager and kubectl" >&2
    exit 1
  fi
  echo "build.sh: building $name ${version} (this takes minutes the first time)" >&2
  rm -f "$out/$name"
  CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "$ldflags" -o "$out/$name" "${packages[$name]}"
  echo "$stamp" >"$out/.$name.stamp"
}

for name in etcd kube-apiserver kube-controller-manager kubectl; do
  theirs=${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS/$name}
  if [[ -n $theirs && -x $theirs ]]; then
    ln -sfn "$(realpath "$theirs")" "$out/$name"
    rm -f "$out/.$name.stamp"
  elif [[ ! -x $out/$name || $(cat "$out/.$name.stamp" 2>/dev/null) != "$stamp" ]]; then
    build "$name"
  fi
done

#!/usr/bin/env bash
# End-to-end tests: tools/e2e.sh PYTHON [pytest arguments]. On the cluster of KUBECONFIG, with the image that QSG_IMAGE names; without KUBECONFIG on
# a test cluster that is brought up for it and taken down afterwards, by the command in QSG_CLUSTER_COMMAND. Such a command knows status, up (which
# prints the environment), down, base-image, build-image, load, and node. Exit code 77: there is no cluster to be had.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1; shift

if [ -z "${KUBECONFIG:-}" ]; then
  tool=${QSG_CLUSTER_COMMAND:-}
  if [ -z "$tool" ]; then
    cat >&2 <<'HOW'
The end-to-end tests DID NOT RUN: there is no cluster. To run them, make one of several nodes and say where it is, for instance

    kind create cluster --config - <<< '{kind: Cluster, apiVersion: kind.x-k8s.io/v1alpha4, nodes: [{role: control-plane}, {role: worker}, {role: worker}, {role: worker}]}'
    docker build -t qsg:0.1.0 . && kind load docker-image qsg:0.1.0
    QSG_IMAGE=docker.io/library/qsg:0.1.0 QSG_ETCD_IMAGE=quay.io/coreos/etcd:v3.5.21 KUBECONFIG=~/.kube/config make e2e

(or `minikube start --nodes 3` and `minikube image load`). QSG_CLUSTER_COMMAND names a command that knows `node kill|start|cut|heal NAME` and
`node exec NAME COMMAND...`: without it the tests that kill nodes are left out.
HOW
    exit 77
  fi
  echo "no KUBECONFIG: a cluster by $tool" >&2
  began=$SECONDS
  if [ "$("$tool" status 2> /dev/null < /dev/null | head -n 1)" = down ]; then # one that is up belongs to somebody, who wants it back
    trap '"$tool" down >&2 || true' EXIT
    trap 'exit 130' INT TERM HUP ABRT
  fi
  environment=$("$tool" up --nodes 3 < /dev/null)
  eval "$environment"
  export QSG_IMAGE=localhost/qsg:e2e QSG_IMAGE_NEWER=localhost/qsg:e2e-newer QSG_ETCD_IMAGE=localhost/etcd:3.5
  "$tool" base-image < /dev/null >&2
  for image in "$QSG_IMAGE" "$QSG_IMAGE_NEWER"; do "$tool" build-image . "$image" < /dev/null >&2; done
  "$tool" load "$QSG_IMAGE" "$QSG_IMAGE_NEWER" "$QSG_ETCD_IMAGE" < /dev/null >&2
  echo "cluster and image: $((SECONDS - began)) s"
fi
"$python" -m pytest -q -s -p no:randomly -m cluster "$@" tests/cluster < /dev/null

#!/bin/sh
# Makes what a NATS cluster of an Understudy cluster needs: a certificate authority, a certificate for each server, an
# nkey for each node and one for operators, and the servers' configuration. Takes openssl, and the package that this
# file is part of.
#
#   ./make.sh --out /root/understudy-nats --cluster shop \
#     --server nats1=10.9.0.11 --server nats2=10.9.0.12 --server nats3=10.9.0.13 \
#     --node lb1 --node lb2 --node lb3
#
# A server is NAME=ADDRESS, and further names or addresses by which clients reach it may follow after commas. The servers
# and nodes are all of them: run it again with one more, and only that one is made; certificates and keys that are there
# stay. A certificate that is to be renewed is deleted first.
set -eu

usage() {
  echo "make.sh: $1" >&2
  echo 'usage: make.sh --out DIR --cluster NAME --server NAME=ADDRESS[,NAME…] … --node NAME …' >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
days=825
out='' cluster='' servers='' nodes=''
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || usage "$1 takes a value"
  # They become parts of subjects, file names and configurations, and are put in without quotes.
  case $2 in *[!A-Za-z0-9._=,:/-]*) [ "$1" = --out ] || usage "not a name or an address: $2" ;; esac
  case $1 in
    --out) out=$2 ;;
    --cluster) cluster=$2 ;;
    --server) case $2 in ?*=?*) servers="$servers $2" ;; *) usage "--server takes NAME=ADDRESS, not $2" ;; esac ;;
    --node) case $2 in *[=,:/]*) usage "not the name of a node: $2" ;; *) nodes="$nodes $2" ;; esac ;;
    *) usage "unknown option $1" ;;
  esac
  shift 2
done
[ -n "$out" ] || usage '--out is missing'
[ -n "$cluster" ] || usage '--cluster is missing'
[ -n "$servers" ] || usage '--server is missing'
[ -n "$nodes" ] || usage '--node is missing'

# Everything that is made here is for its owner's eyes, until it is copied to where it belongs.
umask 077
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Dots separate the parts of a subject, so a name has ~ for them there.
token() { printf %s "$1" | tr . '~'; }

if [ ! -f "$out/ca.pem" ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$out/ca.key"
  openssl req -x509 -new -key "$out/ca.key" -sha256 -days 3650 -subj "/CN=understudy $cluster NATS" \
    -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
    -out "$out/ca.pem"
fi

# certificate NAME NAMES FOLDER: for a server that is a client of the other servers, too.
certificate() {
  [ ! -f "$3/server.pem" ] || return 0
  names="DNS:$1"
  for alias in $(echo "$2" | tr , ' '); do
    case $alias in
      *:*) names="$names,IP:$alias" ;;
      *[!0-9.]*) names="$names,DNS:$alias" ;;
      *) names="$names,IP:$alias" ;;
    esac
  done
  openssl ecparam -name prime256v1 -genkey -noout -out "$3/server.key"
  openssl req -new -key "$3/server.key" -subj "/CN=$1" -out "$3/server.csr"
  printf '%s\n' "subjectAltName=$names" 'extendedKeyUsage=serverAuth,clientAuth' 'keyUsage=digitalSignature' \
    'basicConstraints=CA:FALSE' > "$3/server.ext"
  openssl x509 -req -in "$3/server.csr" -CA "$out/ca.pem" -CAkey "$out/ca.key" -CAcreateserial -sha256 -days "$days" \
    -extfile "$3/server.ext" -out "$3/server.pem" 2> "$3/server.log" || { cat "$3/server.log" >&2; exit 3; }
  rm "$3/server.csr" "$3/server.ext" "$3/server.log"
}

# nkey FOLDER: the seed is the secret, the public key is what servers are told.
nkey() {
  mkdir -p "$1"
  [ -f "$1/nkey" ] || {
    made=$("$node" "$here/nkey.mjs")
    printf '%s\n' "${made#* }" > "$1/nkey.pub"
    printf '%s\n' "${made% *}" > "$1/nkey"
  }
  cp "$out/ca.pem" "$1/ca.pem"
}

# user TEMPLATE NAME FOLDER
user() {
  sed -e "s/@NODE@/$(token "$2")/g" -e "s/@CLUSTER@/$(token "$cluster")/g" -e "s/@KEY@/$(cat "$3/nkey.pub")/g" "$here/$1"
}

for node in "$here/../../node_modules/node/bin/node" "$here/../../../node/bin/node"; do
  [ -x "$node" ] && break
  node=node
done

{
  echo "# Made by make.sh; the same on every server."
  echo 'authorization {'
  echo '  users: ['
  for name in $nodes; do
    nkey "$out/nodes/$name"
    user node.conf.in "$name" "$out/nodes/$name"
  done
  nkey "$out/operator"
  user operator.conf.in operator "$out/operator"
  echo '  ]'
  echo '}'
} > "$out/users.conf"

routes=''
for server in $servers; do
  address=$(echo "${server#*=}" | cut -d , -f 1)
  case $address in *:*) address="[$address]" ;; esac
  routes="${routes:+$routes, }\"nats-route://$address:6222\""
done

for server in $servers; do
  name=${server%%=*}
  address=$(echo "${server#*=}" | cut -d , -f 1)
  case $address in *:*) address="[$address]" ;; esac
  folder="$out/servers/$name"
  mkdir -p "$folder"
  certificate "$name" "${server#*=}" "$folder"
  cat > "$folder/server.conf" << END
# Made by make.sh for the server $name.
server_name: "$name"
listen: "$address:4222"
cluster {
  name: "understudy-$cluster"
  listen: "$address:6222"
  # Its own may be among them.
  routes: [$routes]
  # Only who has a certificate of our authority is a server of this cluster.
  tls {
    cert_file: "/etc/nats-server/server.pem"
    key_file: "/etc/nats-server/server.key"
    ca_file: "/etc/nats-server/ca.pem"
    verify: true
    timeout: 5
  }
}
END
  cp "$out/ca.pem" "$out/users.conf" "$here/nats-server.conf" "$folder/"
done
rm "$out/users.conf"

echo "Made in $out:"
for server in $servers; do echo "  servers/${server%%=*}/ goes to /etc/nats-server on that machine"; done
for name in $nodes; do echo "  nodes/$name/ goes to /etc/understudy/nats on that node"; done
echo '  operator/ is for whoever runs understudy log --cluster'
echo '  ca.key signs further certificates: keep it off these machines'

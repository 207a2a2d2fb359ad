#!/bin/sh
# fetch.sh ARCH OUTDIR: puts Debian's iptables, both backends, into the directory OUTDIR, laid out so that it
# runs in an image that holds nothing else. ARCH is amd64 or arm64.
#
# It needs dpkg-deb and apt-get, whose package lists it keeps in a directory of its own, so that neither the
# host's sources nor its foreign architectures matter; or, on a host without them, docker, which then runs the
# same commands in a container of debian:$RELEASE-slim. Either way: the network, and no privilege.
#
# The versions are the newest of Debian $RELEASE on the day; OUTDIR/usr/share/doc/SOURCES names them. The same
# versions make the same tree. (The one who packs it sets times and owners.)
set -eu

RELEASE=bookworm
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
PACKAGES="iptables libc6 libip4tc2 libip6tc2 libmnl0 libnftnl11 libxtables12"

# The extensions that the sandbox's rules use, and those of the rules beside which they stand (the engine's).
EXTENSIONS="libip6t_REJECT libipt_REJECT libxt_CONNMARK libxt_DNAT libxt_NAT libxt_REDIRECT libxt_SNAT libxt_addrtype libxt_comment
	libxt_connmark libxt_conntrack libxt_owner libxt_standard libxt_tcp libxt_udp"

fail() { echo "fetch.sh: $*" >&2; exit 1; }

[ $# -eq 2 ] || fail "want ARCH OUTDIR"
arch=$1 out=$2
case $arch in
amd64) triplet=x86_64-linux-gnu loader=lib64/ld-linux-x86-64.so.2 ;;
arm64) triplet=aarch64-linux-gnu loader=lib/ld-linux-aarch64.so.1 ;;
*) fail "architecture $arch: want amd64 or arm64" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# download leaves the packages in $work/debs.
download() {
	mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/apt/etc" "$work/debs"
	: >"$work/apt/status"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] || fail "$keyring is missing: install debian-archive-keyring"
	cat >"$work/apt/sources.list" <<-EOF
		deb [signed-by=$keyring] $MIRROR $RELEASE main
		deb [signed-by=$keyring] $MIRROR $RELEASE-updates main
		deb [signed-by=$keyring] $MIRROR-security $RELEASE-security main
	EOF
	cat >"$work/apt/apt.conf" <<-EOF
		APT::Architecture "$arch";
		APT::Architectures { "$arch"; };
		APT::Sandbox::User "";
		Acquire::Languages "none";
		Acquire::Retries "3";
		Dir::State "$work/apt";
		Dir::State::status "$work/apt/status";
		Dir::Cache "$work/apt/cache";
		Dir::Etc::sourcelist "$work/apt/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
	EOF
	export APT_CONFIG="$work/apt/apt.conf"
	apt-get -qq update
	(cd "$work/debs" && apt-get -qq download $PACKAGES)
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
	command -v docker >/dev/null || fail "neither apt-get with dpkg-deb nor docker is here"
	mkdir -p "$work/tree"
	docker run --rm -i "debian:$RELEASE-slim" sh -ec "cat >/fetch.sh; sh /fetch.sh $arch /tree >&2; tar -C /tree -cf - ." \
		<"$0" | tar -C "$work/tree" -xf -
	[ -s "$work/tree/usr/share/doc/SOURCES" ] || fail "the container of debian:$RELEASE-slim made no tree"
	rm -rf "$out"
	mkdir -p "$(dirname "$out")"
	mv "$work/tree" "$out"
	chmod 755 "$out"
	exit
fi

download
root=$work/root
mkdir -p "$root"
for deb in "$work"/debs/*.deb; do
	dpkg-deb -x "$deb" "$root"
done

rm -rf "$out"
mkdir -p "$out/usr/sbin" "$out/usr/lib/$triplet/xtables" "$out/usr/share/doc" "$out/$(dirname $loader)"

# find_lib prints where a package put a library: Debian moves them from /lib to /usr/lib.
find_lib() {
	for dir in "$root/usr/lib/$triplet" "$root/lib/$triplet"; do
		if [ -e "$dir/$1" ]; then
			echo "$dir/$1"
			return
		fi
	done
	fail "$1 is in none of the packages $PACKAGES"
}

for program in nft legacy; do
	install -m 755 "$root/usr/sbin/xtables-$program-multi" "$out/usr/sbin/"
	for name in iptables ip6tables; do
		for suffix in "" -restore -save; do
			ln -s "xtables-$program-multi" "$out/usr/sbin/$name-$program$suffix"
		done
	done
done
for lib in libc.so.6 libip4tc.so.2 libip6tc.so.2 libmnl.so.0 libnftnl.so.11 libxtables.so.12; do
	install -m 755 "$(find_lib $lib)" "$out/usr/lib/$triplet/$lib"
done
install -m 755 "$(find_lib "${loader##*/}")" "$out/$loader"
for ext in $EXTENSIONS; do
	src=$root/usr/lib/$triplet/xtables/$ext.so
	[ -e "$src" ] || fail "$src is not in the package iptables"
	if [ -L "$src" ]; then
		ln -s "$(readlink "$src")" "$out/usr/lib/$triplet/xtables/$ext.so"
	else
		install -m 644 "$src" "$out/usr/lib/$triplet/xtables/$ext.so"
	fi
done

{
	echo "These files are Debian's, unchanged. Each package's licence is in <package>/copyright beside this file"
	echo "(iptables: GPL-2+; libc6: LGPL-2.1+; libmnl0: LGPL-2.1+; libnftnl11: GPL-2+)."
	echo "The source of each is at https://snapshot.debian.org/package/<source>/<version>/:"
	for deb in "$work"/debs/*.deb; do
		# <package>_<version>_<arch>.deb, with the version's colon escaped
		basename "$deb" .deb | sed 's/%3a/:/; s/^\([^_]*\)_\([^_]*\)_\(.*\)$/  \1 \2 (\3)/'
	done | sort
} >"$out/usr/share/doc/SOURCES"
for package in $PACKAGES; do
	install -D -m 644 "$root/usr/share/doc/$package/copyright" "$out/usr/share/doc/$package/copyright"
done

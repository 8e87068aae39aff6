#!/usr/bin/env bash
# Puts what the build needs (Open MPI, HDF5, libyaml, Jansson, pkg-config) into one folder, from
# packages of this Debian or Ubuntu, for a machine of the same processor that has a compiler (and
# CUDA) but none of these and no network. Nothing is installed here, and no root is needed.
#   scripts/pack_deps.sh OUT_DIR      about 20 MB; prints what to source there
#   there:  . OUT_DIR/env.sh && make CUDA=1 && ./osp bench gpu torch=python3
# The folder may be moved. The other machine's C library must be as new as this one's.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 64; }
command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    { echo "pack_deps: needs apt-get and dpkg; run it on Debian or Ubuntu"; exit 1; }
mkdir -p "$1"; out=$(cd "$1" && pwd)
[ -z "$(ls -A "$out")" ] || { echo "pack_deps: $out is not empty; give a new folder"; exit 73; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
arch=$(gcc -print-multiarch 2>/dev/null || dpkg-architecture -qDEB_HOST_MULTIARCH)

# the development packages, and of what they need only what runs without a network card of its own
want=(openmpi-bin openmpi-common libopenmpi-dev libhdf5-dev libyaml-dev libjansson-dev zlib1g-dev libaec-dev pkgconf-bin)
keep='^(libopenmpi[0-9]|libpmix|libhwloc1|libevent-(core|pthreads)|libmunge|libudev|libltdl|zlib1g$|libsz|libaec|libyaml-0|libjansson4|libpkgconf)'
need=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
           --no-enhances --no-pre-depends "${want[@]}" | grep -E '^[a-z0-9]' | sed 's/:.*//' | sort -u | grep -E "$keep")
mkdir "$work/deb"; [ "$(id -u)" != 0 ] || { chmod 755 "$work"; chown _apt "$work/deb" 2>/dev/null || true; }
(cd "$work/deb" && apt-get -q download "${want[@]}" $need >/dev/null)
for d in "$work"/deb/*.deb; do dpkg -x "$d" "$out"; done

lib=$out/usr/lib/$arch
[ ! -d "$out/lib/$arch" ] || [ -L "$out/lib" ] || { cp -an "$out/lib/$arch/." "$lib/"; rm -rf "$out/lib"; }
[ -e "$lib/libmpi.so.40" ] || { echo "pack_deps: Open MPI is not where Debian has it ($lib/libmpi.so.40)"; exit 1; }
rm -rf "$out"/usr/share/{doc,man,locale,lintian,bug,vim,emacs,bash-completion} "$out"/usr/lib/{debug,udev} "$out/var" \
    "$out"/etc/{apparmor.d,init.d,default} "$lib"/fortran "$lib"/lib{oshmem,ompitrace,mpi_{cxx,mpifh,use,java}}* \
    "$lib"/openmpi/lib/lib{oshmem,ompitrace,mpi_{cxx,mpifh,use,java}}*
find "$out/usr/bin" ! -type d ! -name orterun ! -name orted ! -name pkgconf -delete
# HDF5 without its network part: the static library
cp "$(readlink -f "$lib/libhdf5_serial.a")" "$work/libhdf5.a"
rm -rf "$lib"/libhdf5* "$lib/hdf5"; mkdir -p "$lib/hdf5"; find "$out" -name '*.a' -delete
cp "$work/libhdf5.a" "$lib/hdf5/libhdf5.a"; strip -g "$lib/hdf5/libhdf5.a"
find "$out" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec strip --strip-unneeded {} + 2>/dev/null || true

# whatever asks for a library that is neither here nor of the C runtime does not run there
runtime='^(lib(c|m|dl|pthread|rt|util|gcc_s|stdc\+\+|resolv)\.so|ld-linux)'
needs() { readelf -d "$1" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'; }
again=1
while [ "$again" = 1 ]; do
    again=0
    while IFS= read -r f; do
        for n in $(needs "$f"); do
            [[ $n =~ $runtime ]] || [ -e "$lib/$n" ] && continue
            case $f in
                */openmpi3/*|*/pmix/*|*/libmca_common_*|*/libmpi_cxx*|*/libopen*trace*|*/bin/*) rm -f "$f"; again=1; break;;
                *) echo "pack_deps: ${f#"$out"/} needs $n, which is not in the folder"; exit 1;;
            esac
        done
    done < <(find "$out" -type f \( -name '*.so*' -o -path '*/bin/*' \))
done
# links stay inside the folder
while IFS= read -r link; do
    to=$(readlink "$link")
    [ "${to#/}" = "$to" ] || { rm "$link"; [ ! -e "$lib/${to##*/}" ] || ln -s "${to##*/}" "$link"; }
done < <(find "$out" -type l)
find "$out" -xtype l -delete

# pkg-config finds the folder wherever it is
pc=$lib/pkgconfig; mv "$pc" "$work/pc"; mkdir "$pc"
for p in ompi-c yaml-0.1 jansson; do
    [ "$p" = ompi-c ] && from=$lib/openmpi/lib/pkgconfig/ompi-c.pc || from=$work/pc/$p.pc
    sed 's|^prefix=.*|prefix=${pcfiledir}/../../..|' "$from" >"$pc/$p.pc"
done
cat >"$pc/hdf5-serial.pc" <<X
prefix=\${pcfiledir}/../../..
Name: HDF5
Description: serial, static
Version: 1
Cflags: -I\${prefix}/include/hdf5/serial
Libs: -L\${prefix}/lib/$arch/hdf5 -lhdf5 -L\${prefix}/lib/$arch -lsz -lz -lm -ldl
X
ln -sf pkgconf "$out/usr/bin/pkg-config"
ln -sf orterun "$out/usr/bin/mpirun"; ln -sf orterun "$out/usr/bin/mpiexec"
cat >"$out/env.sh" <<X
# . env.sh: builds and runs osp with the libraries of this folder. They also reach other programs
# started from this shell.
deps=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
export PATH=\$deps/usr/bin:\$PATH LD_LIBRARY_PATH=\$deps/usr/lib/$arch\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export C_INCLUDE_PATH=\$deps/usr/include\${C_INCLUDE_PATH:+:\$C_INCLUDE_PATH}
export PKG_CONFIG_PATH=\$deps/usr/lib/$arch/pkgconfig OPAL_PREFIX=\$deps/usr OPAL_DESTDIR= PMIX_PREFIX=\$deps/usr
export OPAL_LIBDIR=\$deps/usr/lib/$arch/openmpi/lib OPAL_PKGLIBDIR=\$deps/usr/lib/$arch/openmpi/lib/openmpi3
export OPAL_DATADIR=\$deps/usr/share OPAL_PKGDATADIR=\$deps/usr/share/openmpi OPAL_SYSCONFDIR=\$deps/etc
export PMIX_MCA_pcompress_base_silence_warning=1 OMPI_MCA_plm_rsh_agent=/bin/false
X
echo "$(du -sm "$out" | cut -f1) MB in $out; on the other machine: . $1/env.sh"

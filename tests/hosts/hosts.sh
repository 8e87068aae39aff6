# Sourced: two "hosts" of one machine as network namespaces on a bridge in a third one. Nothing of
# the machine's own network is touched; names carry the pid, so that two tests may run at once.
# hosts_up sets: H0 H1 (names), HOSTS_DIR (seen by all hosts), on (runs a command on a host).
# shellcheck shell=bash disable=SC2034
hosts_why_not() { # prints the reason why this machine cannot do it
    [ "$(id -u)" = 0 ] || { echo "not root"; return; }
    local p
    for p in ip nsenter unshare mpirun; do command -v $p >/dev/null || { echo "no $p"; return; }; done
    ip netns add "osp$$probe" 2>/dev/null || { echo "no network namespaces"; return; }
    ip link add "pa$$" netns "osp$$probe" type veth peer name "pb$$" netns "osp$$probe" 2>/dev/null || echo "no veth"
    ip netns del "osp$$probe"
    unshare --uts --mount true 2>/dev/null || echo "no mount namespaces"
}
hosts_up() { # outside /tmp; $1: the program to copy
    BR=b$$ H0=h$$a H1=h$$b
    HOSTS_DIR=$(mktemp -d "${EPDIR:-/run}/osp-hosts.XXXXXX") || return 1
    export HOSTS_DIR
    cp "$(dirname "${BASH_SOURCE[0]}")/onhost" "$HOSTS_DIR/"
    cp -L "$1" "$HOSTS_DIR/osp"
    cp -r scripts "$HOSTS_DIR/"
    on=$HOSTS_DIR/onhost
    ip netns add $BR && ip -n $BR link add br0 type bridge && ip -n $BR link set br0 up || return 1
    local i=0 h
    echo "127.0.0.1 localhost" >"$HOSTS_DIR/etc_hosts"
    for h in $H0 $H1; do
        i=$((i + 1))
        ip netns add "$h" && ip -n "$h" link set lo up || return 1
        ip link add "v$h" netns "$h" type veth peer name "p$h" netns $BR || return 1
        ip -n "$h" addr add "10.77.0.$i/24" dev "v$h" && ip -n "$h" link set "v$h" up || return 1
        ip -n $BR link set "p$h" master br0 up || return 1
        echo "10.77.0.$i $h" >>"$HOSTS_DIR/etc_hosts"
        mkdir -p "$HOSTS_DIR/tmp.$h"
    done
    export OMPI_MCA_plm_rsh_agent=$on OMPI_MCA_btl_vader_backing_directory=/tmp
}
hosts_down() { # ends whatever still runs there, and removes every trace
    local h pid
    for h in ${H0:-} ${H1:-}; do
        for _ in 1 2 3; do
            for pid in $(ip netns pids "$h" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
            [ -z "$(ip netns pids "$h" 2>/dev/null)" ] && break
            sleep 0.2
        done
        ip netns del "$h" 2>/dev/null
    done
    [ -n "${BR:-}" ] && ip netns del "$BR" 2>/dev/null
    case ${HOSTS_DIR:-} in */osp-hosts.*) rm -rf "$HOSTS_DIR";; esac
}
hosts_yaml() { # RUN ITERATIONS: a tiny training run into $HOSTS_DIR/RUN, on a data set of its own
    cat >"$HOSTS_DIR/$1.yaml" <<Y
seed: 7
output_dir: $HOSTS_DIR/$1
weight_dtype: fp32
ema_decay: 0.99
training_iteration: $2
log_interval: 1
save_interval: 4
comm_deadline_s: 3
checkpoint: {keep_last: 2}
model_config: {dim: 48, ffn_dim: 96, freq_dim: 16, in_dim: 12, out_dim: 12, num_heads: 4, num_layers: 4, text_len: 8, text_dim: 8, skiparse_model_type: dual_end, sparse_ratio: 2}
data_config:
  batch_size: 2
  global_batch_size: 8
  dataset_config: {metafile_or_dir_path: $HOSTS_DIR/clips.h5, source: $HOSTS_DIR/clips/clips.json, text_max_length: 8, sample_height: 16, sample_width: 16, sample_num_frames: 4, train_fps: 8, codec: pixel, text_codec: hash}
optimizer_config: {lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8}
validation: {interval: 0, window: 0.25}
Y
    [ -d "$HOSTS_DIR/clips" ] || cp -r tests/clips "$HOSTS_DIR/clips"
}
# ---- what a test says: one line per case, and the closing line of every test program ------------
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "  ok   $1"; }
bad() { failed=$((failed + 1)); echo "  FAIL $1"; shift; printf '    %s\n' "$@"; }
check() { # NAME, then a test as in [ ]; the log is shown when it fails
    local name=$1; shift
    if [ "$@" ]; then ok "$name"; else bad "$name" "expected: $*" "$(tail -n 25 "${log:-/dev/null}")"; fi
}
skip_all() { echo "  skip $1"; echo "0 passed, 0 failed, ${2:-1} skipped"; exit 0; }

#!/usr/bin/env bash
# Heads that respond to an object in a corner: measures the four corners, compares them, prints where the pictures are.
#   bash run_corner_experiments.sh
#   COUNT=20 MODEL=tiny-llava LAYERS=last_third bash run_corner_experiments.sh
#
#   MODEL (tiny-qwen2-vl)   COUNT (100): pairs of each corner   LAYERS (all)   MAX_NEW_TOKENS (1: the yes or no)
#   PATCH_SIZE (none: the whole image; a number: the corner's own cells, so many on each side)
#   TOPK (3; embedded models have 4 heads in a layer: 1)   ABLATE (2; so many heads lose their image attention)
#   DATA (data): holds dataset_topleft, dataset_topright, dataset_bottomleft and dataset_bottomright; without them,
#     synthetic pairs are drawn into DATA/generated   RESULTS (results/corners)
#
# Safe to interrupt at any moment and to start again: finished corners are kept, a half-finished one begins again. Each
# model, setting and set of pairs has a folder of its own, and so has a model that was trained further under its name.
# The embedded model takes about a minute for COUNT=20.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash env_setup_llava.bash
python=.venv/bin/python
corners=(topleft topright bottomleft bottomright)

MODEL=${MODEL:-tiny-qwen2-vl}
COUNT=${COUNT:-100}
LAYERS=${LAYERS:-all}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1}
PATCH_SIZE=${PATCH_SIZE:-}
[[ $MODEL == tiny-* ]] && TOPK=${TOPK:-1}
TOPK=${TOPK:-3}
DATA=${DATA:-data}
RESULTS=${RESULTS:-results/corners}

fail() {
    echo "error: $1" >&2
    exit 2
}

whole_number() { # name, value, least
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
        fail "$1 is '$2'; give a whole number of at least $3"
    fi
}

# One sweep at a time in a place. What was killed may have left a process that still writes: it holds the lock, too.
# Whom we waited for may have taken the file away, and others may wait for a new one: then wait with them.
lock() { # file
    local held=
    until [[ $held ]]; do
        mkdir -p "$(dirname "$1")"
        exec 9>"$1"
        held=$($python -c '
import fcntl, os, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waiting for another sweep, which holds", sys.argv[1], file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
print("held" if os.path.exists(sys.argv[1]) and os.path.samestat(os.fstat(9), os.stat(sys.argv[1])) else "")' "$1")
    done
}

# A setting that does not fit the model is known once the model is loaded: nothing stays of a sweep that found nothing.
give_up() { # exit status
    [[ $(ls -A "$out") != .lock ]] || rm -r "$out"
    exit "$1"
}

dataset() { # corner: prints the folder of its pairs, those in DATA before drawn ones
    if [[ -e $DATA/dataset_$1 ]]; then
        echo "$DATA/dataset_$1"
    else
        echo "$DATA/generated/dataset_$1"
    fi
}

# A set is drawn elsewhere and moved when complete, so that half of one never stands under its name. Pair i is the same
# for any number of pairs: a hundred of them serve most sweeps.
draw() { # corner
    local unfinished=$DATA/generated/unfinished-corner
    lock "$DATA/generated/corner.lock"
    if [[ ! -e $(dataset "$1") ]]; then
        rm -rf "$unfinished"
        $python -m data.counterfactual_pairs --corner "$1" --count $((COUNT > 100 ? COUNT : 100)) --seed 0 \
            --out-dir "$unfinished/dataset_$1"
        mv "$unfinished/dataset_$1" "$DATA/generated/dataset_$1"
        rmdir "$unfinished"
    fi
    exec 9>&-
}

# Drawn pairs beside other people's would compare corners that differ in more than the corner.
check_mix() {
    local corner others=() missing=()
    for corner in "${corners[@]}"; do
        if [[ ! -e $DATA/dataset_$corner ]]; then
            missing+=("dataset_$corner")
        elif [[ ! -f $DATA/dataset_$corner/SYNTHETIC.txt ]]; then
            others+=("dataset_$corner")
        fi
    done
    ((${#missing[@]} == 0 || ${#others[@]} == 0)) ||
        fail "$DATA holds ${others[*]}, but not ${missing[*]}, and synthetic pairs must not be compared with others;
add what is missing, or move the others away, and all four are drawn"
}

check_set() { # folder
    [[ -f $1/metadata.jsonl ]] || fail "$1 is no complete set of pairs, it has no metadata.jsonl; remove it, and it is drawn anew"
    local lines full control
    lines=$(grep -c '[^[:space:]]' "$1/metadata.jsonl" || true)
    full=$(find "$1/images" -name '*_full.png' | wc -l)
    control=$(find "$1/images" -name '*_control.png' | wc -l)
    ((lines >= COUNT && full >= COUNT && control >= COUNT)) ||
        fail "$1 lists $((lines)) pairs and holds $((full)) full and $((control)) control pictures, and COUNT is $COUNT;
give a smaller COUNT, or remove the folder, and it is drawn anew"
}

finished() { # folder of a run: summary.json is the last of its results
    [[ -f $1/summary.json && ($1 == */comparison || -f $1/count_LHN.npy) ]]
}

page() { # folder of a finished run, which may have been interrupted before its page was written
    [[ -f $1/report.html ]] || $python -m analysis.report "$1"
}

measure() { # corner
    local folder=$out/$1 words=${1/left/ left}
    words=${words/right/ right}
    if finished "$folder"; then
        echo "$1: finished before, kept"
    else
        echo "$1:"
        rm -rf "$folder"
        $python head_attention_stats_qwen2.py --model "$MODEL" --dataset "$(dataset "$1")" --max-pairs "$COUNT" \
            --prompt "is there anything in the $words corner ?" --layers "$LAYERS" --topk "$TOPK" --ablate "$ABLATE" \
            --max-new-tokens "$MAX_NEW_TOKENS" ${PATCH_SIZE:+--corner "$1" --patch-size "$PATCH_SIZE"} \
            --save-diffs --out-dir "$folder" || give_up $?
    fi
    page "$folder"
}

compare() {
    local corner up_to_date=yes folder=$out/comparison
    for corner in "${corners[@]}"; do
        [[ $folder/summary.json -nt $out/$corner/summary.json ]] || up_to_date=
    done
    if [[ ! $up_to_date ]]; then
        echo "comparison:"
        rm -rf "$folder"
        $python compare_corner_heads.py "${corners[@]/#/$out/}" --out-dir "$folder"
    fi
    page "$folder"
}

# In a function, which bash reads whole before it runs: the file may be edited meanwhile.
main() {
    local corner settings weights sets number name
    whole_number COUNT "$COUNT" 2
    whole_number MAX_NEW_TOKENS "$MAX_NEW_TOKENS" 1
    ABLATE=${ABLATE:-$((COUNT < 4 ? 0 : 2))} # which needs pairs to choose the heads on, and others to try them on
    whole_number TOPK "$TOPK" 1
    whole_number ABLATE "$ABLATE" 0
    [[ -z $PATCH_SIZE ]] || whole_number PATCH_SIZE "$PATCH_SIZE" 1

    check_mix
    for corner in "${corners[@]}"; do
        [[ -e $(dataset "$corner") ]] || draw "$corner"
        check_set "$(dataset "$corner")"
    done

    # The name states the main settings; the number tells everything else apart, the pairs themselves included.
    settings="$MODEL|$COUNT|$LAYERS|$MAX_NEW_TOKENS|$PATCH_SIZE|$TOPK|$ABLATE"
    weights=$($python -c 'import sys
from models import TINY
from models.folders import fingerprint
print(fingerprint(TINY / sys.argv[1]) or fingerprint(sys.argv[1]))' "$MODEL") # of a model on the hub: None
    sets=$(for corner in "${corners[@]}"; do sed -n "1,${COUNT}p" "$(dataset "$corner")/metadata.jsonl" | cksum; done)
    number=$(printf '%s' "$settings|$weights|$sets" | cksum | cut -d ' ' -f 1)
    name="$(basename "$MODEL")-$COUNT-pairs-layers-$LAYERS${PATCH_SIZE:+-patch-$PATCH_SIZE}-$number"
    out=$RESULTS/${name//[^A-Za-z0-9._-]/-}

    lock "$out/.lock"
    for corner in "${corners[@]}"; do
        measure "$corner"
    done
    compare

    echo
    echo "Results:  $out"
    echo "Pictures: $out/comparison/pictures.html"
}

main
exit

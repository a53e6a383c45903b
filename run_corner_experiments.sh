#!/usr/bin/env bash
# Heads that respond to an object in a corner: measure each of four corners, then compare them.
#   bash run_corner_experiments.sh
#   COUNT=20 MODEL=tiny-llava LAYERS=last_third bash run_corner_experiments.sh
#
#   MODEL (tiny-qwen2-vl)   COUNT (100): pairs of each corner   LAYERS (all)   MAX_NEW_TOKENS (1: the yes or no)
#   PATCH_SIZE (none: the whole image; a number: the corner's own cells, so many on each side)
#   TOPK (3; embedded models, which have 4 heads in a layer: 1)   ABLATE (2; 0 below 4 pairs): heads to ablate
#   DATA (data): folder of dataset_topleft, dataset_topright, dataset_bottomleft and dataset_bottomright; unless it holds
#     all four, synthetic pairs are generated in DATA/generated   RESULTS (results/corners)
#
# After an interruption, start it again: finished corners are kept. Settings have a folder each. A folder that another
# sweep is writing to, or one of other weights or pairs, is refused. COUNT=20 takes minutes with an embedded model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash env_setup_llava.bash
python=.venv/bin/python
corners=(topleft topright bottomleft bottomright)

MODEL=${MODEL:-tiny-qwen2-vl} COUNT=${COUNT:-100} LAYERS=${LAYERS:-all} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1}
PATCH_SIZE=${PATCH_SIZE:-} DATA=${DATA:-data} RESULTS=${RESULTS:-results/corners}
[[ $COUNT =~ ^[1-9][0-9]{0,8}$ ]] || { echo "error: COUNT is '$COUNT'; give a whole number of at least 1" >&2; exit 2; }
TOPK=${TOPK:-$([[ $MODEL == tiny-* ]] && echo 1 || echo 3)} ABLATE=${ABLATE:-$((COUNT < 4 ? 0 : 2))}

pairs=$DATA
for corner in "${corners[@]}"; do [[ -e $DATA/dataset_$corner ]] || pairs=$DATA/generated; done
number=$(printf '%s|' "$MODEL" "$COUNT" "$LAYERS" "$MAX_NEW_TOKENS" "$PATCH_SIZE" "$TOPK" "$ABLATE" "$pairs" | cksum)
name=$(basename "$MODEL")-$COUNT-pairs-layers-$LAYERS${PATCH_SIZE:+-patch-$PATCH_SIZE}-${number%% *}
out=$RESULTS/${name//[^A-Za-z0-9._-]/-}

for corner in "${corners[@]}"; do
    [[ $pairs == "$DATA" ]] || $python -m data.counterfactual_pairs --corner "$corner" --seed 0 \
        --count $((COUNT > 100 ? COUNT : 100)) --out-dir "$pairs/dataset_$corner"
    words=${corner/left/ left}
    $python head_attention_stats_qwen2.py --model "$MODEL" --dataset "$pairs/dataset_$corner" --max-pairs "$COUNT" \
        --prompt "is there anything in the ${words/right/ right} corner ?" --layers "$LAYERS" --topk "$TOPK" \
        --ablate "$ABLATE" --max-new-tokens "$MAX_NEW_TOKENS" \
        ${PATCH_SIZE:+--corner "$corner" --patch-size "$PATCH_SIZE"} --save-diffs --out-dir "$out/$corner"
done
$python compare_corner_heads.py "${corners[@]/#/$out/}" --out-dir "$out/comparison"
echo "Page: $out/comparison/pictures.html"

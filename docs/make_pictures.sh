#!/usr/bin/env bash
# Draws the figures of README and docs by the commands that these name.
#   bash docs/make_pictures.sh            WITH_COST=1 bash docs/make_pictures.sh    (also the plot of cost.md: an hour)
# The figure of a report page needs chromium.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash env_setup_llava.bash
project=$PWD
python=.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

$python -m data.twoshapes --out-dir "$work/data" --count 8 --seed 7
# From the folder of the data, since the figure states the path of its data.
(cd "$work" && "$project/$python" "$project/attention_rollout_llava.py" --data-root data --limit 1 \
    --prompt "describe the image ." --out-dir describe)
cp "$work/describe/shard0-0/maps.png" docs/pictures/describe.png
(cd "$work" && "$project/$python" "$project/attention_rollout_llava.py" --data-root data --limit 1 --sanity \
    --prompt "what colour is the shape ?" --out-dir sanity)
cp "$work/sanity/shard0-0/maps.png" docs/pictures/sanity.png

for model in tiny-llava tiny-qwen2-vl tiny-qwen2.5-vl tiny-fuyu; do
    $python attention_rollout_llava.py --model "$model" --prompt "describe the image ." --lowest 0.5 \
        --image "$work/data/spatial_twoshapes/agreement/relational/shard0/world-0.png" --out-dir "$work/families/$model"
done
$python -m docs.figures families "$work/families" docs/pictures/families.png

# From an empty folder, without published data, so that the script generates synthetic images.
mkdir "$work/empty"
(cd "$work/empty" && "$project/$python" "$project/gaze_generation_llava.py" --limit 200 --out-dir "$work/gaze")
cp "$work/gaze/shard0-1-second/comparison.png" docs/pictures/gaze.png
cp "$work/gaze/colours.png" docs/pictures/colours.png
$python -m docs.figures page "$work/gaze/report.html" docs/pictures/report.png

(cd "$work/empty" && "$project/$python" "$project/attention_knockout_llava.py" --limit 270 --out-dir "$work/knockout")
cp "$work/knockout/knockout.png" docs/pictures/knockout.png

$python -m docs.draw_ideas "$work/data" docs/pictures

if [[ -n ${WITH_COST:-} ]]; then
    ways=(plain recording words rollout eager gaussian non-gaussian salient-head var)
    cost() { $python -m benchmarks.attention_cost --out-dir "$work/cost/$1" "${@:2}"; }
    cost 640 --lengths 640 --rounds 15 --ways "${ways[@]}"
    cost 4096 --lengths 4096 --rounds 5 --ways "${ways[@]}"
    cost 16384 --lengths 16384 --rounds 2 --ways "${ways[@]}"
    cost 32768 --lengths 32768 --rounds 1 --ways "${ways[@]}"
    $python -m docs.figures cost "$work"/cost/*/cost.csv docs/pictures/cost.png
fi

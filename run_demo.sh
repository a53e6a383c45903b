#!/usr/bin/env bash
# Installs the packages, runs the embedded models on images, and draws their attention.
#   bash run_demo.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash env_setup_llava.bash
python=.venv/bin/python
out=results/demo/$(date +%Y%m%d-%H%M%S)

# Without --data-root each script takes data/spatial_twoshapes where that lies, else it makes synthetic images; the lines
# "data:" and "gaze:" state which.
echo "1. Two shapes: relation of the first to the second, LLaVA"
$python attention_rollout_llava.py --limit 4 --out-dir "$out/two-shapes"

echo "2. A photograph (from matplotlib; the centre crop removes its upper and lower edge)"
photo=$($python -c 'import matplotlib; print(matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg")')
$python attention_rollout_llava.py --image "$photo" --prompt "describe the image ." --out-dir "$out/photograph"

echo "3. Two shapes, Qwen2.5-VL and Fuyu"
$python attention_rollout_qwen2.py --limit 2 --prompt "describe the image ." --out-dir "$out/qwen2.5-vl"
$python attention_rollout_fuyu.py --limit 2 --prompt "describe the image ." --out-dir "$out/fuyu"

echo "4. One question with and without simulated gaze on one of two shapes"
$python gaze_generation_llava.py --limit 4 --pictures 6 --out-dir "$out/gaze"

echo
echo "Figures:"
find "$out" -name '*.png' | sort | sed 's/^/  /'
echo "Tables:  $out/*/samples.csv    raw maps: $out/*/*/maps.npz"
echo "Page with a choice of words, layers and heads: $PWD/$out/two-shapes/report.html"

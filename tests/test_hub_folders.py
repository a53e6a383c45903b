"""Folders as on the hub: the released JSON files, published weight names, shards. See `tests.hub_folders`."""

import importlib
import json

import pytest
import torch
from transformers import AutoConfig

import models
from models.doctor import checkpoint
from models.loading import quiet, read_config
from tests import hub_folders
from tests.hub_table import Config, runs

pytestmark = pytest.mark.skipif(
    not hub_folders.PUBLISHED.is_dir(), reason="needs the released JSON files in ../shared/hub-folders"
)
NOT_OF_THE_TEXT = {
    "architectures", "dtype", "eos_token_id", "model_type", "pad_token_id", "rope_scaling", "torch_dtype",
    "transformers_version", "_name_or_path", "tie_word_embeddings",
}  # fmt: skip
"""Fields that the two parts of a model have each for themselves, or under newer names."""


@pytest.mark.parametrize("family", hub_folders.NAMES)
def test_released_settings_reach_the_decoder(family):
    """Every field of the released config, at the top or in text_config, is that of the decoder after reading."""
    folder = hub_folders.PUBLISHED / hub_folders.NAMES[family]
    fields = json.loads((folder / "config.json").read_text())
    with quiet():
        text = read_config(str(folder), family, None).get_text_config()
    stated = {**fields, **fields.get("text_config", {})}
    for name, value in stated.items():
        if name not in NOT_OF_THE_TEXT and name != "sliding_window" and hasattr(text, name):
            assert getattr(text, name) == value, name
    if "rope_theta" in stated:
        assert text.rope_parameters["rope_theta"] == stated["rope_theta"]
    sections = (stated.get("rope_scaling") or {}).get("mrope_section")
    assert text.rope_parameters.get("mrope_section") == sections


def test_weight_names_are_those_of_the_released_index():
    """All 582 of adept/fuyu-8b; the indices of the other releases are not at hand."""
    folder = hub_folders.PUBLISHED / "fuyu"
    module, name = models.FAMILIES["fuyu"]
    with quiet(), torch.device("meta"):
        model = getattr(importlib.import_module(module), name)(AutoConfig.from_pretrained(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {hub_folders.published_name("fuyu", key) for key in model.state_dict()} == index["weight_map"].keys()


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in hub_folders.NAMES if family != "fuyu"]


@pytest.mark.parametrize("family", ["fuyu", *SLOW])
def test_short_folder_is_recorded_exactly(family, tmp_path):
    """Three layers: in float32 and bfloat16, weights are eager's and a padded batch gives what one prompt gives."""
    folder = hub_folders.write(tmp_path / family, family, layers=3)
    lines = list(checkpoint(str(folder)))
    assert len(lines) == 6 and all(line.status == "ok" for line in lines), lines
    wanted = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    _, processor = models.load(str(folder))
    assert all(processor.tokenizer.convert_tokens_to_ids(entry["content"]) == int(i) for i, entry in wanted.items())


@pytest.mark.slow
@pytest.mark.parametrize("family", hub_folders.NAMES)
def test_every_script_runs_on_a_folder_as_on_the_hub(family, tmp_path):
    """At published depth; `python -m tests.hub_table` prints the table."""
    failed = [str(each) for each in runs(family, Config(), tmp_path) if each.error]
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("family", hub_folders.NAMES)
def test_folder_of_published_depth_is_recorded_exactly(family, tmp_path):
    lines = list(checkpoint(str(hub_folders.write(tmp_path / family, family))))
    assert len(lines) == 6 and all(line.status == "ok" for line in lines), lines

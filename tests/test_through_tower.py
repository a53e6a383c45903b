"""The decoder's rollout handed on by the tower: in the library, in an answer, and by the scripts' --through-tower."""

import numpy as np
import pytest
import torch

import attention_rollout_llava as rollout_llava
import attention_rollout_qwen2 as rollout_qwen2
from analysis.rollout import encoder_map, rollout, rollout_through_encoder, through_encoder
from models.generation import answer
from models.trace import AttentionTrace
from models.vision_encoder import EncoderTrace
from tests.families import FAMILIES, fuyu, fuyu_processor
from tests.models import picture
from tests.settings import configure
from tests.test_vision_encoder import ENCODERS, PROMPTS, build

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_rollout_goes_through_the_tower(family):
    """Second sample of a left-padded batch: its image is the trace's last; words keep their relevance."""
    model, inputs, layouts = build(family)
    with EncoderTrace(model, layouts) as encoder_trace, AttentionTrace(model) as trace:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for layout, first in zip(layouts, (0, 2), strict=True):
        rolled = rollout(trace, layout)
        beyond = rollout_through_encoder(rolled, encoder_trace, first)
        for image in range(len(layout.images)):
            before, after = rolled.maps(image).per_token, beyond.maps(image).per_token
            np.testing.assert_array_equal(after, through_encoder(before, encoder_trace, first + image))
            np.testing.assert_allclose(after.sum((1, 2)), before.sum((1, 2)), rtol=1e-5)
            assert np.abs(after - before).max() > 1e-4
        words = torch.ones(rolled.relevance.shape[1], dtype=torch.bool)
        words[layout.image_positions] = False
        assert torch.equal(beyond.relevance[:, words], rolled.relevance[:, words]) and rolled.rows == beyond.rows


def test_answer_records_the_tower_only_when_asked():
    model, processor = (make() for make in FAMILIES["qwen2_5_vl"])
    plain = answer(model, processor, [picture()], PROMPTS[0], max_new_tokens=2)
    output = answer(model, processor, [picture()], PROMPTS[0], max_new_tokens=2, encoder=True)
    assert plain.encoder is None and plain.tokens == output.tokens
    assert encoder_map(output.encoder).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("family, script", [("llava", rollout_llava), ("qwen2_5_vl", rollout_qwen2)])
def test_script_draws_both_maps(family, script, tmp_path):
    model, processor = (make() for make in FAMILIES[family])
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture(100, 160).save(tmp_path / "photo.png")
    settings = {
        "model": str(tmp_path / "model"), "image": (str(tmp_path / "photo.png"),), "prompt": "what is red ?",
        "max_new_tokens": 2,
    }  # fmt: skip
    assert script.main(configure(script, **settings, through_tower=True, out_dir=str(tmp_path / "both"))) == 0
    assert script.main(configure(script, **settings, out_dir=str(tmp_path / "one"))) == 0
    names = {path.name for path in (tmp_path / "one" / "photo").iterdir()}
    added = {"tower.npz", "overlay_tower.png", "maps-tower.npz"}
    added |= {f"overlay_{name}-tower.png" for name in ("mean", "max", "tokens")}
    assert {path.name for path in (tmp_path / "both" / "photo").iterdir()} == names | added
    with (
        np.load(tmp_path / "both" / "photo" / "maps.npz") as maps,
        np.load(tmp_path / "one" / "photo" / "maps.npz") as alone,
        np.load(tmp_path / "both" / "photo" / "maps-tower.npz") as beyond,
        np.load(tmp_path / "both" / "photo" / "tower.npz") as encoder,
    ):
        np.testing.assert_array_equal(maps["per_token"], alone["per_token"])
        np.testing.assert_allclose(beyond["per_token"].sum((1, 2)), maps["per_token"].sum((1, 2)), rtol=1e-5)
        assert encoder["look"].shape == maps["mean"].shape == beyond["mean"].shape


def test_script_refuses_a_model_without_a_tower(tmp_path, capsys):
    fuyu().save_pretrained(tmp_path / "model")
    fuyu_processor().save_pretrained(tmp_path / "model")
    picture().save(tmp_path / "photo.png")
    config = configure(rollout_llava,
        model=str(tmp_path / "model"), image=(str(tmp_path / "photo.png"),), prompt="what ?", through_tower=True,
        out_dir=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        rollout_llava.main(config)
    assert stopped.value.code == 2
    assert "no vision encoder of FuyuForCausalLM is known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Loading of models by name, and the patched families. The import loads no model."""

from __future__ import annotations

from pathlib import Path

FAMILIES = {
    "llava": ("models.modeling_llava", "LlavaForConditionalGeneration"),
    "qwen2_vl": ("models.modeling_qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": ("models.modeling_qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": ("models.modeling_qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "qwen3_vl_moe": ("models.modeling_qwen3_vl", "Qwen3VLMoeForConditionalGeneration"),
    "fuyu": ("models.modeling_fuyu", "FuyuForCausalLM"),
}
"""model_type of the config -> (module, class) of the patched model."""

PATCHED = "LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Fuyu"
"""Names of the patched families, for messages that name the models to load."""

TINY = Path(__file__).parent / "tiny"


def embedded() -> list[str]:
    """Names of the embedded checkpoints."""
    return sorted(folder.name for folder in TINY.iterdir() if (folder / "config.json").is_file())


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    load_4bit: bool = False,
    load_8bit: bool = False,
    revision: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
):
    """(model, processor) of an embedded checkpoint, a folder or a hub id; see `models.loading.load`.

    A family that is not in FAMILIES loads with a warning if it can be recorded; see `models.unpatched`.
    """
    from models.loading import load as load_now  # transformers takes seconds to import; `import models` must not

    return load_now(name, device, dtype, load_4bit, load_8bit, revision, min_pixels, max_pixels)

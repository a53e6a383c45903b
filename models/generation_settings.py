"""Settings of `generate`: greedy decoding in place of a checkpoint's own, and those that rule out recording.

A checkpoint's generation_config.json may ask for sampling, penalties, beams, another cache or stop strings. They would
decide the answer without a word, so `replace` turns all of them off when a model is loaded; only the ids of its special
tokens stay. Whoever wants one passes it to `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
GREEDY = {"do_sample": False, "num_beams": 1, "use_cache": True}
FORMAL = ("transformers_version", "_from_model_config", *KEPT, *GREEDY)  # no settings, or stated for themselves

UNRECORDABLE = {  # setting: (values that allow recording and steering, what any other value does)
    "num_beams": ((None, 1), "reorders the batch"),
    "num_beam_groups": ((None, 1), "reorders the batch"),
    "num_return_sequences": ((None, 1), "multiplies the batch"),
    "constraints": ((None,), "reorders the batch"),
    "force_words_ids": ((None,), "reorders the batch"),
    "penalty_alpha": ((None, 0.0), "feeds several candidates a step"),
    "dola_layers": ((None,), "takes the answer from other layers"),
    "guidance_scale": ((None, 1.0), "runs a second forward pass a step"),
    "prompt_lookup_num_tokens": ((None,), "feeds several tokens a step"),
    "assistant_model": ((None,), "feeds several tokens a step"),
    "assistant_early_exit": ((None,), "feeds several tokens a step"),
    "use_mtp": ((None, False), "feeds several tokens a step"),
    "use_cache": ((None, True), "leaves no keys of earlier tokens"),
    "cache_implementation": ((None, "dynamic"), "keeps other keys than those of the tokens so far"),
    "past_key_values": ((None,), "begins with a cache that was not recorded"),
    "prefill_chunk_size": ((None,), "feeds the prompt in pieces"),
    "token_healing": ((None, False), "changes the prompt"),
    "custom_generate": ((None,), "is a decoding loop of its own"),
    "output_attentions": ((None, False), "gives nothing under SDPA; read the weights from the trace"),
}


def replace(model: PreTrainedModel) -> None:
    """Give a model settings of greedy decoding; those of its checkpoint are kept in `model.checkpoint_generation`.

    That is a dictionary of the settings that were turned off, without token ids; `models.loading.describe` states it.
    """
    checkpoint = model.generation_config
    model.checkpoint_generation = {
        name: value for name, value in checkpoint.to_diff_dict().items() if name not in FORMAL and value is not None
    }
    kept = {name: getattr(checkpoint, name, None) for name in KEPT}
    model.generation_config = GenerationConfig(**GREEDY, **kept)


def check_recordable(action: str, options: Mapping[str, Any], default: GenerationConfig) -> None:
    """Raise ValueError for options of `generate` under which a generation cannot be `action`, "recorded" or "steered".

    `default` is the model's own generation_config, which counts where neither an option nor a generation_config among
    the options names a value.
    """
    settings = options.get("generation_config") or default
    for name, (allowed, effect) in UNRECORDABLE.items():
        value = options.get(name, getattr(settings, name, None))
        if not any(value is choice or (isinstance(value, int | float | str) and value == choice) for choice in allowed):
            shown = value if isinstance(value, int | float | str) else type(value).__name__
            raise ValueError(
                f"{name}={shown} {effect}, so this generation cannot be {action}; leave it out "
                "(greedy decoding and sampling work, with the default cache)"
            )

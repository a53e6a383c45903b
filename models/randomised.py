"""Copies of a model with random weights, as controls of its maps (Adebayo et al., "Sanity checks for saliency maps",
NeurIPS 2018): a map that hardly differs under other weights shows the architecture, not the model."""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from models.attention import vision_encoder

Control = Literal["shuffled-decoder", "shuffled-encoder", "untrained"]


@torch.no_grad()
def randomised(model: PreTrainedModel, control: Control, seed: int = 0) -> PreTrainedModel:
    """A copy of a model with the entries of every parameter of its decoder, or of its vision encoder, in random order,
    or with newly initialised weights.

    The decoder includes its token embeddings. Equal seeds give equal weights. Raises ValueError for another control,
    for quantised weights, and for the vision encoder of a model without one.
    """
    if control not in get_args(Control):
        raise ValueError(f"the control {control!r} is unknown; choose {', '.join(get_args(Control))}")
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise ValueError("quantised weights cannot be randomised; load the model without --load-4bit and --load-8bit")
    if control == "untrained":
        return untrained(model, seed)
    if control == "shuffled-encoder":
        vision_encoder(model)  # raises before the model is copied
    changed = copy.deepcopy(model)
    part = changed.get_decoder() if control == "shuffled-decoder" else vision_encoder(changed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in part.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return changed


def untrained(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model's class with newly initialised weights, in the same data type and on the same device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = type(model)(copy.deepcopy(model.config)).to(model.device, model.dtype).eval()
    made.generation_config = model.generation_config
    return made

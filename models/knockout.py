"""Attention knockout: hide a set of keys from a set of query rows in chosen layers, as an intervention.

    model.generate(**inputs, steering=Knockout(("text", "generated"), ("image",), layers=range(8, 12)))
    word, box = layout.word("red"), layout.images[0][cells]
    model.generate(**inputs, steering=Knockout(Positions([word]), Positions([box])))      # one word's rows to one box

Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (EMNLP 2023, arXiv
2304.14767), section 4: M_rc = -inf for the edges from row r to key c is added to the scores before the softmax, in all
heads of a window of layers. The other weights of a row keep their ratios and sum to 1 again. If the answer survives,
the information does not flow along these edges in these layers.

Rows and keys form a full rectangle, every row with every key up to it, which is a key bias of these rows: SDPA computes
it without a T x T mask. A row may lose its own key. Where we differ: a row that would lose every key has no softmax,
and stays as the model computes it (theirs does not occur, since the first token is never hidden). The cells of Fuyu's
first image row, which no other token precedes, are such rows for `Knockout(("image",), ("image",))`. The report counts
the rows that lose a key (`knockout_rows`), the hidden keys, and the rows left as they are (`spared_rows`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from data.errors import InputError
from models.gaze import check_layers
from models.interventions import KeyBias, LayerEdit, PromptBatch

TokenSet = Literal["image", "text", "before-image", "after-image", "last"]
RowSet = Literal["image", "text", "before-image", "after-image", "last", "generated"]


@dataclass(frozen=True)
class Positions:
    """Positions of the prompt for each sample, counted as in `TokenLayout`: from 0 at the first column of the batch,
    padding included."""

    by_sample: Sequence[Iterable[int]]

    def __post_init__(self) -> None:
        try:
            found = tuple(tuple(sorted({operator.index(at) for at in sample})) for sample in self.by_sample)
        except TypeError as error:
            raise InputError(
                "positions-form",
                f"positions are {self.by_sample!r}; give a list of whole numbers for each sample, [] for none",
            ) from error
        object.__setattr__(self, "by_sample", found)

    def mask(self, prompt: PromptBatch, device: torch.device) -> torch.Tensor:
        """bool [sample, position]. Raises ValueError for another number of samples and for positions outside them."""
        if len(self.by_sample) != len(prompt.starts):
            raise InputError(
                "positions-per-sample",
                f"positions of {len(self.by_sample)} samples for a batch of {len(prompt.starts)}; give a list for each",
            )
        mask = torch.zeros(len(prompt.starts), prompt.length, dtype=torch.bool, device=device)
        for sample, (start, found) in enumerate(zip(prompt.starts, self.by_sample, strict=True)):
            if outside := [at for at in found if not start <= at < prompt.length]:
                raise InputError(
                    "no-such-position",
                    f"position {outside[0]} is not in the prompt of sample {sample}, which has positions {start} to "
                    f"{prompt.length - 1}; take them from the layout of the same batch",
                )
            mask[sample, list(found)] = True
        return mask


@dataclass(frozen=True)
class Knockout:
    """Hide `keys` from `rows` in `layers`, counted from 0 (empty: all), for all heads.

    Both are `Positions`, or names of sets, whose union counts: "image", all image tokens; "text", all others;
    "before-image" and "after-image", the text before the first and after the last image token (without an image, all
    text comes after); "last", the last row of the prompt, which predicts the first token; for rows also "generated",
    the rows of the generated tokens. Raises ValueError for other names.
    """

    rows: tuple[RowSet, ...] | Positions = ("text", "generated")
    keys: tuple[TokenSet, ...] | Positions = ("image",)
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_names("rows", self.rows, get_args(RowSet))
        check_names("keys", self.keys, get_args(TokenSet))
        object.__setattr__(self, "layers", tuple(self.layers))

    def plan(self, prompt: PromptBatch) -> dict[int, LayerEdit]:
        """The same edit for each layer; none if no row loses a key.

        Raises ValueError for a layer that the model does not have, and as `Positions.mask` does.
        """
        layers = check_layers(self.layers, prompt.layers, "layer") if self.layers else range(prompt.layers)
        device = prompt.images[0].device
        rows, hidden = token_mask(self.rows, prompt, device), token_mask(self.keys, prompt, device)
        loses = hidden.cumsum(1) > 0  # the rows from the first hidden key on
        bias = KeyBias.from_multipliers(
            1 - hidden.float(),
            torch.tensor(prompt.starts, device=device),
            rows & loses,
            hidden.any(1) & (not isinstance(self.rows, Positions) and "generated" in self.rows),
        )
        if not (bias.rows.any() or bias.generated.any()):
            return {}
        counts = {
            sample: {
                "knockout_rows": int(bias.rows[sample].sum()),
                "knockout_keys": int(hidden[sample].sum()),
                "spared_rows": int((rows & loses & ~bias.rows)[sample].sum()),
            }
            for sample in range(len(prompt.starts))
        }
        return dict.fromkeys(layers, prompt.edit_layer(bias=bias, counts=counts))


def token_mask(chosen: tuple[RowSet, ...] | Positions, prompt: PromptBatch, device: torch.device) -> torch.Tensor:
    """Tokens of the prompt in any of the sets, bool [sample, position], False on padding."""
    if isinstance(chosen, Positions):
        return chosen.mask(prompt, device)
    at = torch.arange(prompt.length, device=device)
    masks = []
    for start, image in zip(prompt.starts, prompt.images, strict=True):
        is_image, real = torch.zeros_like(at, dtype=torch.bool), at >= start
        is_image[image + start] = True
        first, last = (start + int(image[0]), start + int(image[-1])) if len(image) else (start, start - 1)
        sets = {
            "image": is_image,
            "text": real & ~is_image,
            "before-image": real & (at < first),
            "after-image": real & (at > last),
            "last": at == prompt.length - 1,
        }
        masks.append(torch.stack([sets[name] for name in chosen if name in sets] or [real & ~real]).any(0))
    return torch.stack(masks)


def check_names(what: str, chosen, names: tuple[str, ...]) -> None:
    """Raise ValueError unless `chosen` is `Positions` or a non-empty tuple of these names."""
    if isinstance(chosen, Positions):
        return
    unknown = [name for name in chosen if name not in names] if isinstance(chosen, tuple | list) else [chosen]
    if unknown or not chosen:
        found = repr(unknown[0]) if unknown else "none"
        raise InputError("token-set", f"knockout {what}: {found}; give one or more of {', '.join(names)}, or Positions")

"""Measured geometry: the pixels of the original image that each image token stands for, for any family.

    measured = measure_geometry(model, processor, width, height)
    measured.rectangles.edges        # float64 [token, 4]: left, top, right, bottom in original pixels

Nothing about a family is coded. Two measurements are joined:

1. Position of each input number. Synthetic images of the given size pass through the processor: black, white, and in x
   and in y a ramp and two triangle waves, a quarter of a period apart. Each number of the model's pixel inputs is a
   mean over nearby pixels, so (level - black) / (white - black) is the wave at its position: the ramp gives the coarse
   position, the wave that is farther from its turning points the fine one. A number equal under black and white is
   padding.
2. Token of each input number. The vision encoder runs with its self-attention replaced by the identity, so that tokens
   do not mix, up to the input of the decoder. Image tokens have binary numbers. For each bit, one backward pass from a
   random projection of the tokens whose bit is 1 and one from the others: the larger gradient gives the bit of every
   input number's token.

A token's rectangle has the mean and the extent (sqrt(3) standard deviations to each side, as for an even density) of
the positions of its input numbers. Resize, crop, padding, tiles, pixel shuffle, patch merging and reordering need no
code of their own. The method assumes a processor whose resize and crop depend on the image's size alone.

Where tokens mix without self-attention (a resampler's cross-attention, overlapping convolutions), both sides of a bit
reach an input number. The share of such numbers, `shared`, is reported, and above MAX_SHARED the family has no
geometry of this kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel

from data.geometry import TokenRectangles

MAX_SHARED = 0.05
EMPTY = 1e-3  # of the largest contrast of black and white: below it, an input number is padding
REACHED = 1e-3  # of the larger gradient: below it, the smaller one is rounding error
FINE = 48  # pixels; up to here an 8-bit ramp is steeper than a triangle wave
PERIOD = 96  # pixels of a triangle wave: 5 levels per pixel
BORDER = 0.6  # pixels from the border: within it, an enlarged image shows the border pixel alone


class NoGeometryError(ValueError):
    """Image tokens of this family have no rectangles of pixels; the message gives the reason."""


@dataclass(frozen=True, eq=False)
class MeasuredGeometry:
    """Measured rectangles of the image tokens of one image, and the report of the measurement.

    shared: share of the input numbers that several tokens depend on, in [0, 1]. blind: tokens that depend on no pixel
    (line breaks, padding), whose rectangles are NaN. passes: backward passes through the vision encoder.
    """

    rectangles: TokenRectangles
    shared: float
    blind: tuple[int, ...]
    passes: int


MEASURED: WeakKeyDictionary[PreTrainedModel, dict[tuple, MeasuredGeometry | str]] = WeakKeyDictionary()


def measure_geometry(model: PreTrainedModel, processor, width: int, height: int) -> MeasuredGeometry:
    """Geometry of an image of width x height original pixels that is alone in its prompt.

    The model must have `prepare` (`models.load`). Cost: ten runs of the processor, one forward pass of the vision
    encoder that keeps its activations, and 2 ceil(log2(tokens)) backward passes. Results, refusals included, are cached
    by size and by the settings of the image processor. Raises NoGeometryError for a family whose tokens do not stand
    for rectangles.
    """
    settings = getattr(processor, "image_processor", processor).to_dict()
    key = (width, height, json.dumps(settings, sort_keys=True, default=str))
    known = MEASURED.setdefault(model, {})
    if key not in known:
        try:
            known[key] = _measure(model, processor, width, height)
        except NoGeometryError as error:
            known[key] = str(error)
    if isinstance(known[key], str):
        raise NoGeometryError(known[key])
    return known[key]


@torch.inference_mode(False)
@torch.enable_grad()
def _measure(model: PreTrainedModel, processor, width: int, height: int) -> MeasuredGeometry:
    inputs, layout = model.prepare(processor, [Image.new("RGB", (width, height))], "a")
    tokens = layout.images[0]
    x, y, mixture = positions(model, processor, width, height)
    token, shared, passes = assign(model, inputs, tokens, mixture)
    if not len(token) or (token < 0).all():
        raise NoGeometryError(
            f"no image token of {type(model).__name__} depends on the image where the decoder begins, as under "
            "cross-attention or a projector whose weights are zero; its maps stay flat"
        )
    if shared > MAX_SHARED:
        raise NoGeometryError(
            f"the image tokens of {type(model).__name__} do not stand for parts of the image: {shared:.0%} of the "
            "input numbers reach several tokens without self-attention (a resampler or overlapping convolutions; at "
            f"most {MAX_SHARED:.0%} may); its maps stay flat"
        )
    across, down = extents(token, x, len(tokens), width), extents(token, y, len(tokens), height)
    edges = np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], 1)
    edges[np.isnan(edges).any(1)] = np.nan
    blind = tuple(np.flatnonzero(np.isnan(edges[:, 0])).tolist())
    return MeasuredGeometry(TokenRectangles(width, height, edges), shared, blind, passes)


def positions(
    model: PreTrainedModel, processor, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """Positions x and y of every input number in original pixels, float64 [number], NaN for padding, and an input.

    The numbers are those of all pixel inputs, one after the other. The third result is a random mixture of the inputs
    of a black and of a white image, by name. Raises NoGeometryError for inputs whose size depends on the content.
    """
    across = [wave[None] for wave in waves(width)]
    down = [wave[:, None] for wave in waves(height)]
    levels = [np.zeros((1, 1)), np.ones((1, 1)), *across, *down]
    pictures = [pixel_inputs(model, processor, width, height, level) for level in levels]
    shapes = [{name: value.shape for name, value in picture.items()} for picture in pictures]
    if any(shape != shapes[0] for shape in shapes):
        raise NoGeometryError(
            f"the processor of {type(model).__name__} makes inputs of different sizes of images of {width} x {height} "
            "pixels, so its crop depends on their content; its maps stay flat"
        )
    black, white = pictures[:2]
    names = [name for name in black if not torch.equal(black[name], white[name])]
    dark, light, *found = (flat(picture, names) for picture in pictures)
    contrast = light - dark
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [(level - dark) / contrast for level in found]
    x, y = decode(width, *found[: len(across)]), decode(height, *found[len(across) :])
    empty = np.abs(contrast) <= EMPTY * np.abs(contrast).max(initial=0)
    x[empty], y[empty] = np.nan, np.nan
    share = torch.Generator().manual_seed(0)
    mixture = {name: torch.lerp(black[name], white[name], random_like(black[name], share)) for name in names}
    return x, y, mixture


def pixel_inputs(model, processor, width: int, height: int, levels: np.ndarray) -> dict[str, torch.Tensor]:
    """Floating-point inputs, by name, of a grey image with these levels in [0, 1], [height or 1, width or 1]."""
    picture = np.broadcast_to(np.rint(255 * levels), (height, width)).astype(np.uint8)
    inputs, _ = model.prepare(processor, [Image.fromarray(picture).convert("RGB")], "a")
    return {name: value for name, value in inputs.items() if torch.is_tensor(value) and value.is_floating_point()}


def random_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random numbers in [0, 1) in the shape, type and place of a tensor, the same on every device."""
    return torch.rand(tensor.shape, generator=generator).to(tensor)


def flat(inputs: Mapping[str, torch.Tensor], names: list[str]) -> np.ndarray:
    """The named inputs, one after the other, as float64 [number]."""
    return np.concatenate([inputs[name].detach().double().cpu().numpy().ravel() for name in names] or [np.empty(0)])


def waves(size: int) -> list[np.ndarray]:
    """Levels in [0, 1] at the pixels of an axis of `size` pixels: a ramp and, above FINE pixels, two triangle waves."""
    centre = np.arange(size) + 0.5
    return [centre / size, *([triangle(centre, size, 0), triangle(centre, size, 1)] if size > FINE else [])]


def triangle(x: np.ndarray, size: int, quarter: int) -> np.ndarray:
    """Triangle wave at x pixels: 1 at 0 and 0 half a period later, delayed by `quarter` quarters of a period."""
    return np.abs(2 * ((x / period(size) - quarter / 4) % 1) - 1)


def period(size: int) -> float:
    """Period of the triangle waves in pixels; wide images need a longer one, since the ramp is coarser there."""
    return max(PERIOD, size / 8)


def decode(size: int, ramp: np.ndarray, *fine: np.ndarray) -> np.ndarray:
    """Position in pixels on an axis of `size` pixels of numbers with these levels of the waves of `waves`."""
    coarse = ramp * size
    if not fine:
        return coarse
    length = period(size)
    candidates = []
    for quarter, level in enumerate(fine):
        for sign in (1, -1):  # falling and rising half of the wave
            first = quarter * length / 4 + sign * length / 2 * (1 - level)
            candidates.append(first + length * np.rint((coarse - first) / length))
    candidates = np.stack(candidates).reshape(2, 2, -1)
    nearest = np.abs(candidates - coarse).argmin(1)
    chosen = np.take_along_axis(candidates, nearest[:, None], 1)[:, 0]
    steep = np.abs(np.stack(fine) - 0.5).argmin(0)  # far from the turning points, which a resize blurs
    return np.take_along_axis(chosen, steep[None], 0)[0]


class _Reached(Exception):
    """The decoder's input was read; ends the forward pass."""


def decoder_input(model: PreTrainedModel, inputs: Mapping, tokens: torch.Tensor) -> torch.Tensor:
    """States of the first sample's image tokens that enter the decoder, [token, width], without self-attention in the
    vision encoder; `tokens` int64 [token] are their positions. The decoder does not run."""
    read = []

    def stop(module, args, kwargs):
        states = kwargs.get("inputs_embeds", args[0] if args and args[0].is_floating_point() else None)
        if states is not None:
            read.append(states[0, tokens.to(states.device)])
        raise _Reached

    handle = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with without_attention(model):
            model(**inputs, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not read:
        raise NoGeometryError(
            f"{type(model).__name__} gives its decoder no embeddings of image tokens, so they cannot be followed to "
            "pixels; its maps stay flat"
        )
    return read[0]


def assign(
    model: PreTrainedModel, inputs: Mapping, tokens: torch.Tensor, mixture: dict[str, torch.Tensor]
) -> tuple[np.ndarray, float, int]:
    """Token of every input number, the share of numbers with several tokens, and the number of backward passes.

    The token is an index into `tokens`, int64 [number], -1 for a number that no token depends on. `mixture` holds the
    pixel inputs, in the order of `positions`.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in mixture.items()}
    if not leaves:
        return np.empty(0, np.int64), 0.0, 0
    states = decoder_input(model, {**inputs, **leaves}, tokens)
    if not states.requires_grad:
        return np.full(sum(leaf.numel() for leaf in leaves.values()), -1), 0.0, 0
    projected = (states * (random_like(states, torch.Generator().manual_seed(0)) - 0.5)).sum(-1)
    count = max(1, (len(tokens) - 1).bit_length())
    number = torch.arange(len(tokens), device=states.device)
    token, reached, several = 0, False, False
    for bit in range(count):
        ones = (number >> bit & 1).bool()
        sides = [_gradient(projected, side, list(leaves.values())) for side in (ones, ~ones)]
        larger = np.maximum(*sides)
        token |= (sides[0] > sides[1]).astype(np.int64) << bit
        reached |= larger > 0
        several |= (np.minimum(*sides) > REACHED * larger) & (larger > 0)
    shared = float(several.sum() / max(1, reached.sum()))
    return np.where(reached & (token < len(tokens)), token, -1), shared, 2 * count


def _gradient(projected: torch.Tensor, side: torch.Tensor, leaves: list[torch.Tensor]) -> np.ndarray:
    """Absolute gradient of the sum over one side's tokens by every input number, float32 [number]."""
    gradients = torch.autograd.grad(projected[side].sum(), leaves, retain_graph=True, allow_unused=True)
    parts = [
        torch.zeros(leaf.numel()) if part is None else part.abs().flatten().float().cpu()
        for part, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat(parts).numpy()


@contextmanager
def without_attention(model: PreTrainedModel) -> Iterator[None]:
    """Replace self-attention outside the decoder by the identity, in this thread: its output is `value`.

    torch's SDPA function is replaced, through which transformers' encoders and those of timm attend; parts of the model
    that run eager attention are set to SDPA within the block. Attention with other queries than keys, as of a
    resampler, is computed.
    """
    real, thread = torch.nn.functional.scaled_dot_product_attention, get_ident()

    def identity(query, key, value, *args, **kwargs):
        if get_ident() != thread or query.shape[-2] != key.shape[-2]:
            return real(query, key, value, *args, **kwargs)
        return value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)

    decoder = {id(module) for module in model.get_decoder().modules()}
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel) and id(module) not in decoder]
    eager = [part.config for part in parts if part is not model and part.config._attn_implementation == "eager"]
    torch.nn.functional.scaled_dot_product_attention = identity
    for config in eager:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
        for config in eager:
            config._attn_implementation = "eager"


def extents(token: np.ndarray, position: np.ndarray, tokens: int, size: int) -> np.ndarray:
    """[first, last) in pixels of every token on one axis of `size` pixels, float64 [token, 2], NaN without pixels.

    token int64 [number], -1 for none; position float64 [number], NaN for padding. Where an image is enlarged, numbers
    within half a pixel of its border all have the border pixel's position. These are counted, and a token's density
    outside the border gives their extent.
    """
    kept = (token >= 0) & ~np.isnan(position)
    token, position = token[kept], position[kept]
    sides = position < BORDER, position > size - BORDER
    inner = ~sides[0] & ~sides[1]
    count, low, high, free = (np.bincount(token[part], minlength=tokens) for part in (slice(None), *sides, inner))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(token[inner], position[inner], tokens) / free
        half = np.sqrt(3 * np.bincount(token[inner], (position[inner] - mean[token[inner]]) ** 2, tokens) / free)
        width = 2 * half / free  # of one number
    ends = np.stack([mean - half - low * width, mean + half + high * width], 1)
    narrow = (free == 0) & (count > 0)  # within the border pixels
    ends[narrow] = np.stack([np.where(low > 0, 0, size - BORDER), np.where(high > 0, size, BORDER)], 1)[narrow]
    return ends.clip(0, size)

"""Starts that make a small model learn in minutes what it would otherwise learn in hours.

The tower starts as a small convolutional network: the patch embedding is a cosine transform of brightness and of two
colour differences, the position embedding writes sines and cosines of row and column into channels of their own, and
every head of the tower reads these channels so that it attends to the neighbour at one fixed offset. The language
model starts with "mimetic" attention: a token looks for its like and copies it. Training is free to change all of it.
"""

from __future__ import annotations

import torch

POSITION_FREQUENCIES = 8  # per axis; a sine and a cosine each
POSITION_CHANNELS = 4 * POSITION_FREQUENCIES
PATCH_GAIN = 0.25
FLAT_GAINS = (0.25, 0.5, 0.5)  # further factor on the patch means of brightness and the two colour differences
NEIGHBOUR_GAIN = 0.9
BESIDE = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (right, down) in patches, one per head
DIAGONAL = ((-1, -1), (1, -1), (-1, 1), (1, 1))
MIMETIC_GAIN = 1.5
PICTURE_GAIN = 1.8  # further factor for the heads that look at the picture: one shape against a hundred patches


def cosine_basis(size: int) -> torch.Tensor:
    """Orthonormal cosine transform [frequency, sample]."""
    samples, frequencies = torch.arange(size) + 0.5, torch.arange(size)[:, None]
    basis = torch.cos(torch.pi * samples * frequencies / size)
    return basis / basis.norm(dim=1, keepdim=True)


def patch_filters(channels: int, patch: int) -> torch.Tensor:
    """Filters [channel, rgb, row, column]: the lowest 2-D cosines of brightness (half of them) and of two colour
    differences (a quarter each)."""
    basis = cosine_basis(patch)
    lowest = sorted(((v, u) for v in range(patch) for u in range(patch)), key=lambda vu: vu[0] ** 2 + vu[1] ** 2)
    axes = torch.tensor([(1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0)])
    axes = axes / axes.norm(dim=1, keepdim=True)
    filters = []
    for axis, count, flat_gain in zip(axes, (channels // 2, channels // 4, channels // 4), FLAT_GAINS, strict=True):
        for v, u in lowest[:count]:
            gain = PATCH_GAIN * (flat_gain if u == v == 0 else 1)
            filters.append(gain * axis[:, None, None] * torch.outer(basis[v], basis[u]))
    return torch.stack(filters)


def position_code(rows: int, columns: int) -> torch.Tensor:
    """[row * column, channel]: per axis (x, then y) and frequency a cosine and a sine; half a wave to the picture at
    the lowest frequency."""
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    waves = []
    for place, length in ((right, columns), (down, rows)):
        for frequency in range(1, POSITION_FREQUENCIES + 1):
            angle = torch.pi * frequency * place.flatten() / length
            waves += [angle.cos(), angle.sin()]
    return torch.stack(waves, 1)


def neighbour_query(offset: tuple[int, int], rows: int, columns: int) -> torch.Tensor:
    """Matrix [channel, channel] that turns the code of a position into the code of the position `offset` away."""
    blocks = []
    for step, length in zip(offset, (columns, rows), strict=True):
        for frequency in range(1, POSITION_FREQUENCIES + 1):
            angle = torch.tensor(torch.pi * frequency * step / length)
            blocks.append(torch.tensor([(angle.cos(), -angle.sin()), (angle.sin(), angle.cos())]))
    return torch.block_diag(*blocks)


@torch.no_grad()
def convolution_like(tower: torch.nn.Module, rows: int, columns: int) -> None:
    """Start a CLIP tower, whose head dimension is POSITION_CHANNELS, as a small convolutional network."""
    vision = getattr(tower, "vision_model", tower)
    width, patch = vision.embeddings.embed_dim, vision.embeddings.patch_size
    content = width - POSITION_CHANNELS
    vision.embeddings.patch_embedding.weight.zero_()
    vision.embeddings.patch_embedding.weight[:content] = patch_filters(content, patch)
    vision.embeddings.position_embedding.weight.zero_()
    vision.embeddings.position_embedding.weight[1:, content:] = position_code(rows, columns)
    for index, layer in enumerate(vision.encoder.layers):
        offsets = DIAGONAL if index % 2 else BESIDE
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        query.zero_(), key.zero_()
        for head, offset in enumerate(offsets):
            reads = slice(head * POSITION_CHANNELS, (head + 1) * POSITION_CHANNELS)
            query[reads, content:] = NEIGHBOUR_GAIN * neighbour_query(offset, rows, columns)
            key[reads, content:] = NEIGHBOUR_GAIN * torch.eye(POSITION_CHANNELS)


def slow_rows(head_dim: int) -> torch.Tensor:
    """Gain [channel of a head] that moves a projection into the slower half of the rotary frequencies, which the length
    of a picture hardly turns."""
    half = torch.full((head_dim // 2,), 0.2)  # not 0: a query and a key that are both 0 have no gradient
    half[head_dim // 4 :] = 2**0.5
    return half.repeat(2)


def dialect(width: int) -> torch.Tensor:
    """Fixed random rotation [width, width] between the words' space and the one in which the picture's tokens speak."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, width, generator=generator)).Q


@torch.no_grad()
def mimetic(language_model: torch.nn.Module) -> None:
    """Start a decoder so that a token attends to its like and adds a copy of it to itself.

    Half of the heads look among words; the other half look at the picture, whose tokens speak a rotated dialect of the
    words (so that a word does not find itself first), and translate what they copy.
    """
    for layer in language_model.layers:
        attention = layer.self_attn
        head_dim = attention.head_dim
        width = attention.q_proj.in_features
        half = width // 2
        gain = MIMETIC_GAIN * slow_rows(head_dim).repeat(width // head_dim)[:, None]
        attention.q_proj.weight.mul_(gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        turn = dialect(width).to(attention.q_proj.weight)
        attention.k_proj.weight[half:] = PICTURE_GAIN * attention.q_proj.weight[half:] @ turn.T
        attention.v_proj.weight[half:] = attention.v_proj.weight[half:] @ turn.T

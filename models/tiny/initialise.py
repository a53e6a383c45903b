"""Structured initial weights, which shorten the training of a small model from hours to minutes.

The vision encoder starts as a small convolutional network: the patch embedding is a cosine transform of brightness and
of two colour differences, the position embedding encodes row and column as sines and cosines in separate channels, and
each head attends to the neighbour at one fixed offset. The decoder starts with "mimetic" attention: a token attends to
tokens similar to itself and copies them. Training changes all of these weights.
"""

from __future__ import annotations

import torch

POSITION_FREQUENCIES = 8  # per axis, each with a sine and a cosine
POSITION_CHANNELS = 4 * POSITION_FREQUENCIES
PATCH_GAIN = 0.25
FLAT_GAINS = (0.25, 0.5, 0.5)  # further factors on the patch means of brightness and of the two colour differences
NEIGHBOUR_GAIN = 0.9
ADJACENT = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (right, down) in patches, one per head
DIAGONAL = ((-1, -1), (1, -1), (-1, 1), (1, 1))
MIMETIC_GAIN = 1.5
IMAGE_GAIN = 1.8  # further factor for heads that attend to the image: one shape among a hundred patches


def cosine_basis(size: int) -> torch.Tensor:
    """Matrix [frequency, sample] of the orthonormal cosine transform."""
    samples, frequencies = torch.arange(size) + 0.5, torch.arange(size)[:, None]
    basis = torch.cos(torch.pi * samples * frequencies / size)
    return basis / basis.norm(dim=1, keepdim=True)


def patch_filters(channels: int, patch: int) -> torch.Tensor:
    """Filters [channel, rgb, row, column]: the lowest 2-D cosines, half of them of brightness and a quarter of each of
    two colour differences."""
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
    """Position code [row * column, channel]: a cosine and a sine per axis (x, then y) and frequency.

    The lowest frequency has half a period per image.
    """
    down, right = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    waves = []
    for place, length in ((right, columns), (down, rows)):
        for frequency in range(1, POSITION_FREQUENCIES + 1):
            angle = torch.pi * frequency * place.flatten() / length
            waves += [angle.cos(), angle.sin()]
    return torch.stack(waves, 1)


def neighbour_query(offset: tuple[int, int], rows: int, columns: int) -> torch.Tensor:
    """Matrix [channel, channel] that maps the code of a position to that of the position `offset` (x, y) away."""
    blocks = []
    for step, length in zip(offset, (columns, rows), strict=True):
        for frequency in range(1, POSITION_FREQUENCIES + 1):
            angle = torch.tensor(torch.pi * frequency * step / length)
            blocks.append(torch.tensor([(angle.cos(), -angle.sin()), (angle.sin(), angle.cos())]))
    return torch.block_diag(*blocks)


@torch.no_grad()
def convolution_like(encoder: torch.nn.Module, rows: int, columns: int) -> None:
    """Initialise a CLIP vision encoder with head width POSITION_CHANNELS as a small convolutional network."""
    vision = getattr(encoder, "vision_model", encoder)
    width, patch = vision.embeddings.embed_dim, vision.embeddings.patch_size
    content = width - POSITION_CHANNELS
    vision.embeddings.patch_embedding.weight.zero_()
    vision.embeddings.patch_embedding.weight[:content] = patch_filters(content, patch)
    vision.embeddings.position_embedding.weight.zero_()
    vision.embeddings.position_embedding.weight[1:, content:] = position_code(rows, columns)
    for index, layer in enumerate(vision.encoder.layers):
        offsets = DIAGONAL if index % 2 else ADJACENT
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        query.zero_(), key.zero_()
        for head, offset in enumerate(offsets):
            channels = slice(head * POSITION_CHANNELS, (head + 1) * POSITION_CHANNELS)
            query[channels, content:] = NEIGHBOUR_GAIN * neighbour_query(offset, rows, columns)
            key[channels, content:] = NEIGHBOUR_GAIN * torch.eye(POSITION_CHANNELS)


def slow_channel_gain(head_dim: int) -> torch.Tensor:
    """Gain [channel of a head] that favours the slower half of the rotary frequencies, which rotate little over the
    length of an image."""
    half = torch.full((head_dim // 2,), 0.2)  # a query and a key that are both 0 would have no gradient
    half[head_dim // 4 :] = 2**0.5
    return half.repeat(2)


def image_rotation(width: int) -> torch.Tensor:
    """Fixed random rotation [width, width] from the embedding space of words to that of image tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, width, generator=generator)).Q


@torch.no_grad()
def mimetic(language_model: torch.nn.Module) -> None:
    """Initialise a decoder so that a token attends to tokens similar to itself and adds a copy of them.

    Half of the heads attend to words; the other half attend to image tokens, whose embedding space is rotated (so that
    a word does not attend to itself first), and rotate the copied values back.
    """
    for layer in language_model.layers:
        attention = layer.self_attn
        head_dim = attention.head_dim
        width = attention.q_proj.in_features
        half = width // 2
        gain = MIMETIC_GAIN * slow_channel_gain(head_dim).repeat(width // head_dim)[:, None]
        attention.q_proj.weight.mul_(gain)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        rotation = image_rotation(width).to(attention.q_proj.weight)
        attention.k_proj.weight[half:] = IMAGE_GAIN * attention.q_proj.weight[half:] @ rotation.T
        attention.v_proj.weight[half:] = attention.v_proj.weight[half:] @ rotation.T


NEIGHBOUR_SCORE = 24.0  # squared norm per frequency of queries and keys in `neighbours_by_rotation`
DISTANCES = (1, 1, 2, 2)  # of the neighbours, per layer


@torch.no_grad()
def neighbours_by_rotation(attention: torch.nn.Module, frequencies: torch.Tensor, layer: int) -> None:
    """Initialise the attention of a Qwen vision encoder as a convolution: one fixed offset per head.

    `frequencies` [pair] are those of the vision encoder's rotary embedding, `layer` counts from 0. Queries and keys are
    constant biases, so under the rotary embedding their product depends only on the offset of two patches. The key's
    bias is rotated back by the head's offset, so the product is largest at that offset.
    """
    half = attention.head_dim // 2
    query, key = torch.zeros(2, attention.num_heads, attention.head_dim)
    for head, offset in enumerate(DIAGONAL if layer % 2 else ADJACENT):
        right, down = (step * DISTANCES[layer] for step in offset)
        angle = torch.cat([down * frequencies, right * frequencies])
        query[head, :half] = NEIGHBOUR_SCORE**0.5
        key[head, :half] = NEIGHBOUR_SCORE**0.5 * angle.cos()
        key[head, half:] = -(NEIGHBOUR_SCORE**0.5) * angle.sin()
    width = attention.dim
    attention.qkv.weight[: 2 * width] = 0
    attention.qkv.bias[: 2 * width] = torch.cat([query.flatten(), key.flatten()])


PLACE_SCORE = 12.0  # score of the two words before the image minus that of image tokens
PLACE_GAINS = (3.0, 3.0, 9.0, 9.0)  # per head: a small slope for row and column, then a large one
ROW_PAIR, COLUMN_PAIR = 3, 4  # rotary pairs of the row and of the column


@torch.no_grad()
def place_heads(layer: torch.nn.Module, landmarks: torch.Tensor, frequencies: torch.Tensor, cells: int) -> None:
    """Initialise a decoder layer so that each cell encodes its place by attending to two words before the image.

    `landmarks` [2, width] are the embeddings of the words. All queries are equal (a bias). A channel without rotation
    gives both words a high score; a rotary pair of the row or the column decides between them by the distance of the
    cell.
    """
    attention, norm = layer.self_attn, layer.input_layernorm
    head_dim = attention.head_dim
    normed = landmarks / landmarks.square().mean(1, keepdim=True).sqrt() * norm.weight
    reader = torch.linalg.pinv(normed).T  # [2, width]: 1 on its own landmark, 0 on the other
    either, contrast = reader.sum(0), reader[0] - reader[1]
    slowest = head_dim // 2 - 1  # rotary pair
    scale = head_dim**0.5
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight.mul_(0.1)
        linear.bias.zero_()
    attention.v_proj.weight.mul_(0.1)
    layer.mlp.down_proj.weight.zero_()  # no output at first, so that word states pass unchanged
    for head, gain in enumerate(PLACE_GAINS):
        first = head * head_dim
        pair = ROW_PAIR if head % 2 == 0 else COLUMN_PAIR
        middle = frequencies[pair] * (cells / 2 + 2)  # half the image and two words: mean distance of the landmarks
        attention.q_proj.bias[first + slowest] = (PLACE_SCORE * scale) ** 0.5
        attention.k_proj.weight[first + slowest] = (PLACE_SCORE * scale) ** 0.5 * either
        # query (-sin, -cos) of `middle` times key (1, 0) rotated by the distance: sin(distance - middle)
        attention.q_proj.bias[first + pair] = -((gain * scale) ** 0.5) * middle.sin()
        attention.q_proj.bias[first + pair + head_dim // 2] = -((gain * scale) ** 0.5) * middle.cos()
        attention.k_proj.weight[first + pair] = (gain * scale) ** 0.5 * contrast
        attention.v_proj.weight[first] = contrast


EARLIER_SCORE = 30.0  # as NEIGHBOUR_SCORE, in `earlier_by_rotation`
RASTER_GAINS = (3.0, 3.0, 4.0, 7.0)  # of the heads for column (cosine, sine) and row (small slope, large slope)
NEWLINE_SCORE = 2.5  # log 12: a newline gets as much attention as the twelve patches of its row
ROW_PERIOD_PAIR, SLOW_PAIR = 1, 6  # rotary pairs: one turn per row; a third of a turn per image


@torch.no_grad()
def earlier_by_rotation(layer: torch.nn.Module, frequencies: torch.Tensor, row: int, index: int) -> None:
    """Initialise a Persimmon layer as a causal convolution over patches in raster order, `row` tokens per row.

    The heads attend to the patch on the left, above, above left and above right, at twice the distance in layer 1.
    `frequencies` [pair] are those of the rotary embedding, `index` counts these layers from 0.
    """
    attention = layer.self_attn
    heads, head_dim, pairs = attention.num_heads, attention.head_dim, len(frequencies)
    step = 2 if index == 1 else 1
    bias = torch.zeros(heads, 3, head_dim)
    for head, (right, down) in enumerate(((-step, 0), (0, -step), (-step, -step), (step, -step))):
        angle = (down * row + right) * frequencies
        bias[head, 0, :pairs] = EARLIER_SCORE**0.5
        bias[head, 1, :pairs] = EARLIER_SCORE**0.5 * angle.cos()
        bias[head, 1, pairs : 2 * pairs] = -(EARLIER_SCORE**0.5) * angle.sin()
    damp_output(layer)
    attention.query_key_value.bias.copy_(bias.flatten())
    attention.query_key_value.weight.view(heads, 3, head_dim, -1)[:, :2] = 0


@torch.no_grad()
def raster_heads(layer: torch.nn.Module, newline: torch.Tensor, frequencies: torch.Tensor) -> None:
    """Initialise a Persimmon layer so that each patch encodes its place by attending to the newlines before it.

    A head's attention mass on newlines, relative to patches, depends on their distance: through a rotary pair with one
    turn per row of tokens for the column, through a slow pair for the row. `newline` [width] is the newline embedding.
    """
    attention = layer.self_attn
    heads, head_dim, pairs = attention.num_heads, attention.head_dim, len(frequencies)
    normed = torch.nn.functional.layer_norm(newline, newline.shape)
    reader = normed / normed.square().sum()  # 1 on the newline, about 0 on other tokens
    weight = attention.query_key_value.weight.view(heads, 3, head_dim, -1)
    bias = attention.query_key_value.bias.view(heads, 3, head_dim)
    weight.mul_(0.1)
    damp_output(layer)
    scale = head_dim**0.5
    turns = ((ROW_PERIOD_PAIR, 0.0), (ROW_PERIOD_PAIR, 0.25), (SLOW_PAIR, 0.5), (SLOW_PAIR, 0.5))
    for head, ((pair, phase), gain) in enumerate(zip(turns, RASTER_GAINS, strict=True)):
        angle = torch.tensor(2 * torch.pi * phase)
        bias[head, 0, 2 * pairs] = (NEWLINE_SCORE * scale) ** 0.5
        weight[head, 1, 2 * pairs] = (NEWLINE_SCORE * scale) ** 0.5 * reader
        bias[head, 0, pair] = (gain * scale) ** 0.5 * angle.cos()
        bias[head, 0, pair + pairs] = -((gain * scale) ** 0.5) * angle.sin()
        weight[head, 1, pair] = (gain * scale) ** 0.5 * reader
        weight[head, 2, 0] = 2 * reader


def damp_output(layer: torch.nn.Module) -> None:
    """Scale the outputs of a layer down, so that word states pass almost unchanged at first."""
    layer.mlp.dense_4h_to_h.weight.zero_()
    layer.self_attn.dense.weight.mul_(0.2)

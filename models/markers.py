"""Image markers in a prompt: `<image 1>` stands for the first image of its sample, `<image 2>` for the second.

A prompt without markers has its images in front of it. Markers that name every image exactly once stand where the
images belong, in any order; they are kept in place where the chat template can interleave images and text. Otherwise
the images go in front, in the order in which they are given, and each marker becomes the words "image 1".
"""

from __future__ import annotations

import re

from data.errors import SampleError

MARKER = re.compile(r"<image (\d+)>")


def in_words(prompt: str) -> str:
    """The prompt with "image 1" for `<image 1>`."""
    return MARKER.sub(r"image \1", prompt)


def marked_order(prompt: str, images: int) -> list[int]:
    """Indices from 0 of the images in the order of their markers; [] unless each is named exactly once.

    Raises SampleError for a marker that names none of `images` images.
    """
    numbers = [int(number) for number in MARKER.findall(prompt)]
    if absent := [number for number in numbers if not 1 <= number <= images]:
        raise SampleError(
            "image marker without its image",
            f"the prompt names <image {absent[0]}> and has {images} images; give the image, or leave the marker out",
        )
    return [number - 1 for number in numbers] if sorted(numbers) == list(range(1, images + 1)) else []


def interleaved(prompt: str) -> list[dict]:
    """The prompt as content of a chat message: text and images in the order in which they stand."""
    texts = MARKER.split(prompt)[::2]
    content = [{"type": "image"}] * (2 * len(texts) - 1)
    content[::2] = [{"type": "text", "text": text} for text in texts]
    return [part for part in content if part != {"type": "text", "text": ""}]


def in_front(prompt: str, images: int) -> list[dict]:
    """The prompt in words as content of a chat message, after its images."""
    return [{"type": "image"}] * images + [{"type": "text", "text": in_words(prompt)}]

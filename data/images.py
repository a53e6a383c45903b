"""Image files of any common format as upright 8-bit RGB, images of a folder, and control images edited by grid cell.

Control images (`model_window`, `shuffle_cells`, `hide_cells`) are edited in the cells of the model's grid.
They have the size of the grid's window, so the same processor neither resizes nor crops them again.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import InputError, MissingFileError, SampleError
from data.folders import root_fault
from data.geometry import ImageGrid

UNFIT = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC"}
"""Pillow formats that are not read: page descriptions and drawings, which need external programs, video, and containers
that Pillow identifies but cannot decode."""
DEPTH = 65535  # largest value of a 16-bit image
SAMPLE_FORMAT, UNSIGNED = 339, 1  # TIFF tag of the sample format, and its value for unsigned integers


@cache
def decoders() -> tuple[str, ...]:
    """Names of the supported image formats."""
    Image.init()
    return tuple(name for name in Image.ID if name not in UNFIT)


@cache
def suffixes() -> frozenset[str]:
    """Lower-case file name suffixes of the supported formats, such as ".jpg"."""
    known = {*decoders(), "MPO"}  # the JPEG decoder opens MPO, several JPEGs in one file
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def read_image(source: str | Path | bytes) -> Image.Image:
    """Read an image from a file or from encoded bytes: upright by its EXIF tag, 8-bit RGB (see `to_rgb`), first frame.

    Raises SampleError for a file that is missing, empty, damaged, not an image, without a finite pixel, or larger than
    Pillow's limit against decompression bombs.
    """
    encoded = isinstance(source, bytes)
    name = f"of {len(source)} bytes inside a record" if encoded else Path(source)
    content = source if encoded else _content(name)
    if not content:
        raise SampleError("image empty", f"image {name} is empty (0 bytes); copy or download it again")
    try:
        with Image.open(BytesIO(content), formats=decoders()) as image:
            image.load()
            unsigned = image.format == "TIFF" and image.tag_v2.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
            return to_rgb(ImageOps.exif_transpose(image), unsigned)
    except MemoryError:
        raise
    except SampleError as error:
        raise SampleError(error.reason, f"image {name}: {error}") from error
    except UnidentifiedImageError as error:
        raise SampleError("not an image", f"image {name} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise SampleError("image too large", f"image {name} is too large to decode safely: {error}") from error
    except Exception as error:  # decoders raise errors of many classes for damaged content
        cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
        reason = "image truncated" if cut else "image cannot be decoded"
        raise SampleError(reason, f"image {name} cannot be decoded: {str(error) or type(error).__name__}") from error


def _content(path: Path) -> bytes:
    """Bytes of a regular file; reading a device could block or not end."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
    except FileNotFoundError as error:
        raise SampleError("image missing", f"image {path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        cause = getattr(error, "strerror", None) or error
        raise SampleError("image cannot be opened", f"image {path} cannot be opened: {cause}") from error
    raise SampleError("image missing", f"{path} is a folder or a device, not an image")


def to_rgb(image: Image.Image, unsigned: bool = False) -> Image.Image:
    """Convert a decoded image of any mode to 8-bit RGB.

    Transparency is composed over white, as in a browser. Grey images with more than 8 bits are scaled: 16-bit images by
    65535, also if stored as 32-bit integers; other 32-bit integers and floats by their own finite minimum and maximum,
    so grey values of two such files are not comparable. NaN (missing pixels) and -inf become black, +inf becomes white;
    a constant image becomes black. Colour profiles are not applied. unsigned: the file's 32-bit integers, which Pillow
    stores as signed, are unsigned. Raises SampleError for a float image without a finite pixel.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "I" and unsigned:
            values = values.view(np.uint32)
        grey = _to_bytes(values)
        if "transparency" in image.info:  # 16-bit PNG: value of its transparent pixels
            grey[values == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey values to uint8 [row, col]."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise SampleError("image has no finite pixel", "all pixels are NaN or infinite; at least one must be finite")
    low, high = float(finite.min()), float(finite.max())
    if values.dtype.kind != "f" and low >= 0 and high <= DEPTH:
        low, high = 0.0, float(DEPTH)
    shares = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return np.rint(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def list_images(folder: str | Path) -> list[Path]:
    """List the images of a folder and its subfolders, sorted by path; skipped files are counted on stderr.

    Images are recognised by suffix (`suffixes`). Hidden files and folders are skipped, as are links that lead out of
    the folder unless `data.folders.following_links` allows them. Raises FileNotFoundError if there is no folder or no
    image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError("not-a-folder", f"{folder} is not a folder")
    images, others, faults = [], [], []
    for path, fault in _walk(folder):
        (faults if fault else images if path.suffix.lower() in suffixes() else others).append(path)
    passed_over = []
    if others:
        others.sort()
        files = "1 file" if len(others) == 1 else f"{len(others)} files"
        passed_over.append(f"{files} without the suffix of an image, such as {others[0].name!r}")
    if faults:
        links = "1 link that leads" if len(faults) == 1 else f"{len(faults)} links that lead"
        passed_over.append(f"{links} out of the folder (--follow-links follows links)")
    if not images:
        contents = f"; it holds {' and '.join(passed_over)}" if passed_over else ""
        raise MissingFileError(
            "no-images",
            f"{folder} holds no image, in no subfolder either{contents}; expected are .png, .jpg, .webp, .tif and"
            " others that Pillow reads",
        )
    if passed_over:
        print(f"note: passed over in {folder}: {' and '.join(passed_over)}", file=sys.stderr)
    return sorted(images)


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """(path, "") of every visible file below `root`, and (path, reason) of every refused link.

    A linked folder is visited once; a folder inside `root` is not visited through a link.
    """
    folders, entered = [root], {root.resolve()}
    while folders:
        with os.scandir(folders.pop()) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            fault = root_fault(path, root) if entry.is_symlink() else ""
            if fault or not entry.is_dir():
                yield path, fault
                continue
            place = path.resolve()
            inner_link = entry.is_symlink() and place.is_relative_to(root.resolve())
            if not inner_link and place not in entered:
                entered.add(place)
                folders.append(path)


def model_window(image: Image.Image, grid: ImageGrid) -> Image.Image:
    """Window of an RGB image that the grid covers, RGB of cols * cell x rows * cell pixels.

    Resized bicubically, as in CLIP's and Qwen's processors. Padding has the image's median colour.
    """
    width, height = (max(1, round(side)) for side in grid.resized)
    left, top = (round(edge) for edge in grid.offset)
    window = Image.new("RGB", (grid.cols * grid.cell, grid.rows * grid.cell), median_colour(image))
    window.paste(image.resize((width, height), Image.Resampling.BICUBIC), (-left, -top))
    return window


def shuffle_cells(image: Image.Image, grid: ImageGrid, rng: np.random.Generator) -> Image.Image:
    """Put the cells of `model_window(image, grid)` into random order: the same patches without their arrangement."""
    pixels = np.asarray(model_window(image, grid)).reshape(grid.rows, grid.cell, grid.cols, grid.cell, 3)
    cells = pixels.swapaxes(1, 2).reshape(-1, grid.cell, grid.cell, 3)
    shuffled = rng.permutation(cells).reshape(grid.rows, grid.cols, grid.cell, grid.cell, 3)
    return Image.fromarray(shuffled.swapaxes(1, 2).reshape(grid.rows * grid.cell, grid.cols * grid.cell, 3))


def hide_cells(window: Image.Image, hidden: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """Fill the cells `hidden` (bool [row, col]) of an image from `model_window` with one colour.

    Raises ValueError if the image does not consist of whole cells.
    """
    hidden = np.asarray(hidden, bool)
    (rows, cols), (width, height) = hidden.shape, window.size
    if height % rows or width % cols:
        raise InputError(
            "not-whole-cells",
            f"an image of {width} x {height} pixels is not {cols} x {rows} whole cells; use model_window",
        )
    pixels = np.array(window)
    pixels[np.kron(hidden, np.ones((height // rows, width // cols), bool))] = colour
    return Image.fromarray(pixels)


def median_colour(image: Image.Image) -> tuple[int, int, int]:
    """Median of red, green and blue over the pixels: the background colour where it covers more than half."""
    return tuple(int(value) for value in np.median(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0))

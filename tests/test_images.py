"""Files that people really have: rotated, palette, 16-bit, float, animated, broken; folders of them."""

import os
import random
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, features

from data.errors import MissingFileError, SampleError
from data.folders import following_links
from data.images import list_images, read_image, suffixes, to_rgb
from tests.errors import refused


def save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def colours(image):
    return np.asarray(image)[0, :, :].tolist()


def test_exif_rotation_is_applied(tmp_path):
    """Orientation 6: the camera's left column is the upright picture's top row."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 10, 20))
    upright = read_image(save(tmp_path, image, "rotated.jpg", exif=exif, quality=95))
    assert upright.size == (20, 40)
    assert np.asarray(upright)[2].mean() > 200 and np.asarray(upright)[-2].mean() < 50


@pytest.mark.parametrize("mode, expected", [("L", [128] * 3), ("P", [255, 0, 0]), ("1", [255] * 3), ("LA", [128] * 3)])
def test_modes(tmp_path, mode, expected):
    source = Image.new("RGB", (2, 2), "red") if mode == "P" else Image.new("L", (2, 2), 128)
    image = source.convert(mode, dither=Image.Dither.NONE) if mode == "1" else source.convert(mode)
    read = read_image(save(tmp_path, image, "picture.png"))
    assert read.mode == "RGB" and colours(read)[0] == expected


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 256 * 64, 256 * 128, 65535]], dtype=np.uint16)
    read = read_image(save(tmp_path, Image.fromarray(values), "deep.png"))
    assert read.mode == "RGB" and [pixel[0] for pixel in colours(read)] == [0, 64, 128, 255]


def test_float_pictures_use_their_own_range(tmp_path):
    read = read_image(save(tmp_path, Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)), "float.tif"))
    assert [pixel[0] for pixel in colours(read)] == [0, 128, 255]


def tiff(values, sample_format):
    """An uncompressed little-endian grey TIFF, tag by tag; SampleFormat 1 is unsigned, 2 signed, 3 float."""
    rows, columns = values.shape
    tags = [
        (256, 3, columns), (257, 3, rows), (258, 3, 8 * values.itemsize), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 3, rows), (279, 4, values.nbytes), (339, 3, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    table = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + values.nbytes) + values.tobytes() + table


@pytest.mark.parametrize("missing, grey", [(np.nan, 0), (np.inf, 255), (-np.inf, 0)])
def test_missing_pixels_of_a_float_image_leave_the_others_as_they_are(tmp_path, missing, grey):
    values = np.zeros((80, 120), np.float32)
    values[10:41, 80:111] = 1
    whole = np.array(read_image(save(tmp_path, Image.fromarray(values), "whole.tif")))
    values[0, 0] = missing
    read = np.array(read_image(save(tmp_path, Image.fromarray(values), "missing.tif")))
    assert read[0, 0].tolist() == [grey] * 3 and whole.mean() == pytest.approx(255 * 31 * 31 / 9600)
    read[0, 0] = whole[0, 0]
    assert (read == whole).all()


def test_a_float_image_without_a_finite_pixel_is_refused(tmp_path):
    path = save(tmp_path, Image.fromarray(np.array([[np.nan, np.inf]], np.float32)), "missing.tif")
    with refused("image has no finite pixel", SampleError) as error:
        read_image(path)
    assert error.value.reason == "image has no finite pixel"


@pytest.mark.parametrize(
    "content, expected",
    [
        (tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32), 1), [0, 128, 255]),  # by its own range
        (tiff(np.array([[-100_000, 0, 100_000]], np.int32), 2), [0, 128, 255]),
        (tiff(np.array([[0, 16384, 32768]], np.int32), 2), [0, 64, 128]),  # 16 bits held in 32
        (tiff(np.array([[-2, 0, 3]], np.int16), 2), [0, 102, 255]),
        (tiff(np.array([[5, 5, 5]], np.float32), 3), [0, 0, 0]),
        (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 512, 1023), [0, 128, 255]),
        (b"Pf\n3 1\n-1.0\n" + struct.pack("<3f", 1.5, np.nan, 2.5), [0, 0, 255]),
    ],
)
def test_grey_of_more_than_8_bits(content, expected):
    assert [pixel[0] for pixel in colours(read_image(content))] == expected


def test_colour_of_16_bits_keeps_the_upper_8():
    """A 2 x 1 PNG of 16-bit RGB, chunk by chunk; Pillow writes none."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = b"\0" + struct.pack(">6H", 0x00FF, 0x80FF, 0xFFFF, 0x0100, 0, 0x7F00)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    assert colours(read_image(b"\x89PNG\r\n\x1a\n" + chunks)) == [[0, 0x80, 255], [1, 0, 0x7F]]


def test_the_clear_value_of_a_16_bit_image_lies_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 500, 32768]], np.uint16))
    read = read_image(save(tmp_path, image, "clear.png", transparency=500))
    assert [pixel[0] for pixel in colours(read)] == [0, 255, 128]


@pytest.mark.parametrize(
    "mode, pixel, expected",
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),  # JFIF: 0.299 * 255 = 76, and Cr at its largest
        ("HSV", (85, 255, 255), (0, 255, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("LAB", (138, 209, 198), (255, 0, 0)),  # CIE L*a*b* of sRGB red under D50: 54.3, 80.8, 69.9
        ("LA", (100, 51), (224, 224, 224)),  # 255 - (255 - 100) * 51 / 255
        ("PA", (0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 255, 128), (127, 127, 255)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("1", 255, (255, 255, 255)),
        ("I;16B", 257, (1, 1, 1)),
    ],
)
def test_modes_by_hand(mode, pixel, expected):
    read = to_rgb(Image.new(mode, (2, 1), pixel))
    assert read.mode == "RGB"
    # a step of 1 in 8-bit L*, a* or b* is up to 3 in R, G or B, and the values above are rounded
    assert np.abs(np.subtract(read.getpixel((0, 0)), expected)).max() <= (6 if mode == "LAB" else 0)


def test_a_clear_palette_entry_lies_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for name in ("clear.png", "clear.gif"):
        assert colours(read_image(save(tmp_path, image, name, transparency=1))) == [[10, 20, 30], [255, 255, 255]]


def test_cmyk(tmp_path):
    read = read_image(save(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "print.jpg", quality=100))
    assert read.mode == "RGB" and np.abs(np.asarray(read)[4, 4].astype(int) - [254, 0, 0]).max() <= 3


def test_transparency_lies_over_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    assert colours(read_image(save(tmp_path, image, "clear.png"))) == [[255, 255, 255], [127, 127, 255]]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = save(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert colours(read_image(path))[0] == [255, 0, 0]


def test_broken_files_have_a_reason(tmp_path):
    whole = save(tmp_path, Image.new("RGB", (50, 50), "red"), "whole.png")
    half = tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:70])
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path, reason, sentence in (
        (tmp_path / "none.png", "image missing", r"none\.png does not exist"),
        (tmp_path, "image missing", "is a folder or a device, not an image"),
        (tmp_path / ("x" * 300 + ".png"), "image cannot be opened", "File name too long"),
        (empty, "image empty", r"empty\.png is empty \(0 bytes\)"),
        (half, "image truncated", r"half\.png cannot be decoded"),
        (text, "not an image", "is not an image that Pillow can read"),
    ):
        with pytest.raises(SampleError, match=sentence) as error:
            read_image(path)
        assert error.value.reason == reason


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path, Image.new("L", (100, 100)), "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with refused("image too large", SampleError):
        read_image(path)


FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "TIFF", "BMP", "PPM", "TGA", "SGI", "QOI", "PCX"]
REASONS = {"image truncated", "image cannot be decoded", "not an image", "image too large", "image empty"}


def damaged(content, rng):
    """Versions of a file: cut at 20 places, and with up to six bytes changed at random, 40 times."""
    yield from (content[: len(content) * part // 20] for part in range(20))
    for _ in range(40):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(min(len(changed), rng.choice([40, 400, 10**6])))] = rng.randrange(256)
        yield bytes(changed)


@pytest.mark.parametrize("kind", FORMATS)
def test_any_damage_gives_a_picture_or_a_reason(kind, monkeypatch):
    """Decoders raise OSError, ValueError, SyntaxError, RuntimeError and more; none of them may end a run."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a damaged header may state any size
    file = BytesIO()
    Image.effect_noise((32, 24), 80).convert("RGB").save(file, kind)
    assert read_image(file.getvalue()).size == (32, 24)
    reasons = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders also warn of damage that they can live with
        for content in damaged(file.getvalue(), random.Random(0)):
            try:
                assert read_image(content).mode == "RGB"
            except SampleError as error:
                reasons.add(error.reason)
    assert reasons & REASONS - {"image empty"} and reasons <= REASONS


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), EOFError(), struct.error("no"), TypeError(), KeyError("tile"), ZeroDivisionError()]
)
def test_whatever_a_decoder_raises_is_a_bad_image(tmp_path, monkeypatch, error):
    path = save(tmp_path, Image.new("L", (2, 2)), "a.bmp")

    def fail(*_):
        raise error

    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", fail)
    with pytest.raises(SampleError):
        read_image(path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("name", ["damaged.avif", "damaged.jpg"])
def test_a_damaged_avif_whatever_its_name(tmp_path, name):
    file = BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, "AVIF")
    content = file.getvalue().replace(b"av01", b"av02")  # a coding that no decoder knows
    with pytest.raises(RuntimeError):
        Image.open(BytesIO(content)).load()
    (tmp_path / name).write_bytes(content)
    with refused("image cannot be decoded", SampleError) as error:
        read_image(tmp_path / name)
    assert error.value.reason == "image cannot be decoded"


def test_no_other_program_is_started_for_an_image(tmp_path):
    """Pillow would hand an EPS file to Ghostscript, whatever the name of the file."""
    path = tmp_path / "drawing.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(SampleError) as error:
        read_image(path)
    assert error.value.reason == "not an image"
    assert not suffixes() & {".eps", ".ps", ".pdf", ".mpg", ".wmf", ".h5"}


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_listing(tmp_path, capsys):
    with refused("no-images", MissingFileError):
        list_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="it holds 1 file without the suffix of an image, such as 'notes"):
        list_images(tmp_path)
    save(tmp_path, Image.new("L", (1, 1)), "b.PNG")
    save(tmp_path, Image.new("L", (1, 1)), "a.jpg")
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with refused("not-a-folder", MissingFileError):
        list_images(tmp_path / "nowhere")
    assert capsys.readouterr().err == (
        f"note: passed over in {tmp_path}: 1 file without the suffix of an image, such as 'notes.txt'\n"
    )


def test_every_suffix_of_an_image_that_can_be_read_is_listed(tmp_path):
    kinds = "jfif jpe avif jp2 j2k pgm pnm tif tiff webp bmp gif MPO tga ico"
    names = [f"a.{kind}" for kind in kinds.split()]
    for name in names:
        touch(tmp_path / name)
    assert sorted(path.name for path in list_images(tmp_path)) == sorted(names)


def test_images_in_subfolders_are_listed_and_hidden_ones_are_not(tmp_path):
    names = ["a.png", "cats/1.png", "cats/old/2.jpg", "dogs/1.png"]
    for name in [*names, ".hidden/3.png", "cats/._1.png"]:
        touch(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == names


def test_links_out_of_the_folder_are_followed_only_when_asked(tmp_path, capsys):
    root = tmp_path / "root"
    for name in ("own/a.png", "elsewhere/b.png", "elsewhere/sub/c.png"):
        touch((root if name.startswith("own") else tmp_path) / name)
    links = {
        "file.png": "../elsewhere/b.png", "folder": "../elsewhere", "again": "../elsewhere", "inside.png": "own/a.png",
        "loop": ".", "own/up": "..",
    }  # fmt: skip
    for name, target in links.items():
        os.symlink(target, root / name)

    def listed():
        return [path.relative_to(root).as_posix() for path in list_images(root)]

    assert listed() == ["inside.png", "own/a.png"]
    assert "3 links that lead out of the folder (--follow-links follows links)" in capsys.readouterr().err
    with following_links():
        assert listed() == ["again/b.png", "again/sub/c.png", "file.png", "inside.png", "own/a.png"]
    assert capsys.readouterr().err == ""

"""Files that people really have: rotated, palette, 16-bit, animated, broken."""

import numpy as np
import pytest
from PIL import Image

from data.images import ImageError, list_images, read_image


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
    text.write_text("no picture")
    for path, reason, sentence in (
        (tmp_path / "none.png", "image missing", r"none\.png does not exist"),
        (tmp_path, "image missing", "is a folder or a device, not a picture"),
        (tmp_path / ("x" * 300 + ".png"), "image cannot be opened", "File name too long"),
        (empty, "image empty", r"empty\.png is empty \(0 bytes\)"),
        (half, "image truncated", r"half\.png cannot be decoded"),
        (text, "not an image", "is not a picture that Pillow can read"),
    ):
        with pytest.raises(ImageError, match=sentence) as error:
            read_image(path)
        assert error.value.reason == reason


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path, Image.new("L", (100, 100)), "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large to decode safely"):
        read_image(path)


def test_listing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        list_images(tmp_path)
    save(tmp_path, Image.new("L", (1, 1)), "b.PNG")
    save(tmp_path, Image.new("L", (1, 1)), "a.jpg")
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list_images(tmp_path / "nowhere")

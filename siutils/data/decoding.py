"""Image files become RGB pixels, by rules that hold for every format.

* Rotation in EXIF is applied, transparency is put on white, of several frames the first is taken.
* 16-bit images, and 32-bit integers up to 65,535: value // 256. Floats in [0, 1]: × 255, rounded.
  Other ranges are refused.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

# also formats that Pillow reads only with a plug-in: such files are reported, not passed over
FORMATS = (
    *IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif",
    ".jxl", ".pnm", ".pbm", ".tga", ".psd", ".exr", ".dng", ".svg",
)  # fmt: skip
_MOST_PIXELS = 2**28  # Pillow warns from a third of it on, of images made to fill the memory
_LONGEST = 16  # longer sides, in shorter ones, are cropped before the resizing
_lock = Lock()


def decode(
    content: bytes,
    size: int,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> np.ndarray:
    """Decodes an image file: uint8 (size, size, 3), shorter side resized, center-cropped.

    Raises:
        ValueError: it is no image, damaged, or holds values that mean no color; says which.

    >>> file = io.BytesIO()
    >>> Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(file, "png")  # invisible red
    >>> decode(file.getvalue(), 1).tolist()
    [[[255, 255, 255]]]
    """
    try:
        with _quiet(), Image.open(io.BytesIO(content)) as image:
            pixels = rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError("no image in a format that Pillow reads here; convert it") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    resized = TF.resize(_not_too_long(pixels), [size], interpolation)
    return np.array(TF.center_crop(resized, [size]))


def rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB, by the rules of this module.

    >>> rgb(Image.new("F", (1, 1), 1.0)).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        white = Image.new("RGBA", visible.size, "white")
        return Image.alpha_composite(white, visible).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if mode == "F":
        if not 0 <= low <= high <= 1:
            raise ValueError(f"floats must be in [0, 1], got {low:g} to {high:g}")
        return np.rint(values * 255).astype(np.uint8)
    if low < 0 or high > 65_535:
        raise ValueError(f"integers must be 0 to 65,535, got {low:,} to {high:,}")
    return (values // 256).astype(np.uint8)


def _not_too_long(image: Image.Image) -> Image.Image:
    """Crops the middle of an image of 1×900 pixels, which would be huge when resized."""
    margins = []
    for side in image.size:
        most = _LONGEST * min(image.size)
        margins.append(max(0, side - most) // 2)
    left, top = margins
    return (
        image.crop((left, top, image.width - left, image.height - top)) if any(margins) else image
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, of which none reaches the user, and with room for large images."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before

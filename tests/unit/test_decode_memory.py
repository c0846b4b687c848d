"""What is counted for decoding, from the header alone, is what it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.clients import CAT, encoded

MEGABYTE = 2**20
SIZE = (2400, 1800)

MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mlserver_timm.memory import return_to_system
from mlserver_timm.images.idle_threads import IdleThreads
from mlserver_timm.images.decode import open_image
from mlserver_timm.images.transforms import EvaluationTransform

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

helpers = IdleThreads(ThreadPoolExecutor(3), int(sys.argv[4]))
transform = EvaluationTransform((224, 224), "bicubic", 0.875, "center", (0, 0, 0))
first, image = (Path(name).read_bytes() for name in sys.argv[2:4])
transform(open_image(first, 10**9), helpers)
image = open_image(image, 10**9)
return_to_system()
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmHWM")
transform(image, helpers)
return_to_system()
print([transform.memory(image), memory("VmHWM") - before, memory("VmRSS") - before])
"""

CASES = {
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg-turned": ("JPEG", "RGB", {"exif": 6}),
    "jpeg-grey": ("JPEG", "L", {}),
    "jpeg-cmyk": ("JPEG", "CMYK", {}),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg-progressive-444": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "png-rgba": ("PNG", "RGBA", {"compress_level": 1}),
    "png-palette": ("PNG", "P", {"compress_level": 1}),
    "png-16-bits": ("PNG", "I;16", {"compress_level": 1}),
    "webp": ("WEBP", "RGB", {"method": 0}),
    "webp-alpha": ("WEBP", "RGBA", {"method": 0}),
    "webp-lossless": ("WEBP", "RGBA", {"method": 0, "lossless": True}),
    "gif": ("GIF", "P", {"transparency": 3}),
    "bmp": ("BMP", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff-one-strip": ("TIFF", "RGB", {"compression": "tiff_lzw", "strip_size": 2**30}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
    "avif-alpha-444": ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
}


@pytest.mark.parametrize(
    ("name", "helpers"), [*((name, 0) for name in CASES), ("jpeg", 1), ("bmp", 3)]
)
def test_counted_is_taken(name: str, helpers: int, tmp_path: Path) -> None:
    kind, mode, save = CASES[name]
    if "exif" in save:
        exif = Image.Exif()
        exif[0x0112] = save["exif"]
        save = save | {"exif": exif}
    picture = Image.open(CAT).convert("RGB").resize(SIZE)
    picture = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
    files = []
    # Whoever helped once keeps memory of a part's size in its thread's lists.
    for one in (picture if helpers else picture.resize((300, 300)), picture):
        files.append(tmp_path / str(len(files)))
        files[-1].write_bytes(encoded(one, kind, **save))
    runtime = Path(__file__).parents[2] / "tinyvit"
    command = [sys.executable, "-c", MEASURE, str(runtime), *map(str, files), str(helpers)]
    counted, taken, left = json.loads(subprocess.check_output(command, text=True))
    parts = (1 + helpers) * MEGABYTE if helpers else 0
    assert 0.5 * counted < taken < 1.1 * counted + 2 * MEGABYTE + parts, (counted, taken)
    assert left < 2 * MEGABYTE

"""Pictures that cannot be used are named and left out; odd ones become what transformers makes of them."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.pictures.resize import resized
from gemfleet.train.data.shapes.conversation import Picture
from gemfleet.train.errors import UserError
from PIL import Image
from support.pictures import QUESTION, chat, encoded, picture, prepared, seeing_model, written
from transformers.image_utils import load_image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

SIDE = 32


def png_of(width: int, height: int) -> bytes:
    """A PNG file of so many black pixels, made without them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def damaged(content: bytes) -> bytes:
    """A file whose middle is another's."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 200]) + content[middle + 200 :]


WHOLE = encoded(picture(0))
BROKEN = "a picture that cannot be decoded"
MISSING = "a picture that is not there"
OUTSIDE = "a picture outside the data's folder"
ADDRESS = "a picture at an address"
UNREADABLE = "a picture that is not given as path, url, bytes or base64"
PIXELS = "a picture of more than 89,478,485 pixels"
FILES: dict[str, bytes] = {
    "empty.png": b"",
    "cut.png": WHOLE[: len(WHOLE) // 2],
    "head.png": WHOLE[:20],
    "damaged.png": damaged(WHOLE),
    "text.jpg": b"this is no picture\n" * 20,
    "page.html": b"<html>404 Not Found</html>",
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/gemfleet-owned) (w) file\n%%EOF\n",
    "document.pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF",
    "film.gif": b"GIF89a" + bytes(3),
    "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "bomb.png": png_of(10_000, 9_000),
    "larger-bomb.png": png_of(20_000, 10_000),
}
CASES: dict[str, tuple[Any, str]] = {
    **{name: ({"path": name}, BROKEN) for name in FILES},
    "bomb.png": ({"path": "bomb.png"}, PIXELS),
    "larger-bomb.png": ({"path": "larger-bomb.png"}, PIXELS),
    "missing": ({"path": "nowhere.png"}, MISSING),
    "folder": ({"path": "."}, MISSING),
    "pipe": ({"path": "pipe.png"}, MISSING),
    "long": ({"path": "a" * 5000}, MISSING),
    "circle": ({"path": "circle.png"}, MISSING),
    "above": ({"path": "../outside.png"}, OUTSIDE),
    "absolute": ({"path": "/etc/passwd"}, OUTSIDE),
    "link": ({"path": "link.png"}, OUTSIDE),
    "linked folder": ({"path": "linked/outside.png"}, OUTSIDE),
    "file address": ({"url": "file:///etc/passwd"}, ADDRESS),
    "network address": ({"url": "http://127.0.0.1:9/cat.png"}, ADDRESS),
    "object": ({"url": "s3://bucket/cat.png"}, ADDRESS),
    "no base64": ({"base64": "%%%"}, BROKEN),
    "no source": ({"detail": "high"}, UNREADABLE),
    "number": ({"path": 7}, UNREADABLE),
    "zero byte": ({"path": "a\0b.png"}, UNREADABLE),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder beside a file that no row may read."""
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "outside.png").write_bytes(WHOLE)
    for name, content in FILES.items():
        (data / name).write_bytes(content)
    (data / "good.png").write_bytes(WHOLE)
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    (data / "linked").symlink_to(tmp_path)
    (data / "circle.png").symlink_to(data / "circle.png")
    os.mkfifo(data / "pipe.png")
    return data


@pytest.fixture
def httpserver_address(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def row(part: dict[str, Any]) -> dict[str, Any]:
    return chat([{"type": "image", **part}, {"type": "text", "text": QUESTION}], "a cat")


def test_each_malformed_picture_is_named_and_none_ends_a_run(folder: Path, model: Path) -> None:
    rows = [row({"path": "good.png"}), *(row(part) for part, _ in CASES.values())]
    _, report = prepared(written(folder, *rows), model)
    assert report.examples == 1
    found = {name.partition(" (")[0]: why for why, reason in report.left_out.items() for name in reason.first}
    for number, (case, (_, why)) in enumerate(CASES.items(), 2):
        told = [reason for reason in report.left_out if reason.startswith(why)]
        assert told, f"{case}: no {why!r} in {list(report.left_out)}"
        name = f"rows.jsonl line {number}"
        assert name not in found or found[name].startswith(why), f"{case}: {found[name]}"
    assert report.left_out_count == len(CASES) >= 20
    with pytest.raises(UserError, match=r"28 of 29 rows .* cannot be used: .*a picture that cannot be decoded"):
        prepared(written(folder, *rows), model, bad_rows="fail")


def test_no_file_outside_the_allowed_folders_is_opened(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, really = list[Path](), os.open

    def noting(path: Any, *options: Any, **more: Any) -> int:
        if isinstance(path, Path) and not path.is_dir():
            opened.append(path.resolve())
        return really(path, *options, **more)

    monkeypatch.setattr("gemfleet.train.data.pictures.files.os.open", noting)
    outside = [part for part, why in CASES.values() if why in (OUTSIDE, ADDRESS)]
    ways = [*outside, {"path": "good.png"}, {"path": "linked/data/good.png"}, {"url": "file:../outside.png"}]
    path = written(folder, *map(row, ways))
    _, report = prepared(path, model)
    assert report.examples == 2  # a link that leads back is followed
    assert set(opened) == {folder / "good.png"}
    everything = {"addresses": True, "folders": [str(folder.parent)]}
    _, report = prepared(path, model, pictures=everything)
    assert set(opened) == {folder / "good.png", folder.parent / "outside.png"}
    assert sum(reason.count for why, reason in report.left_out.items() if why.startswith(OUTSIDE)) == 2


def test_an_address_is_fetched_where_that_is_allowed(folder: Path, model: Path, httpserver_address: str) -> None:
    ways = [{"url": f"{httpserver_address}/good.png"}, {"url": f"{httpserver_address}/nowhere.png"}]
    source, report = prepared(written(folder, *map(row, ways)), model, pictures={"addresses": True})
    here, _ = prepared(written(folder, row({"path": "good.png"})), model)
    assert source.pictures.tolist() == here.pictures.tolist()
    assert list(report.left_out) == [MISSING]


def test_too_many_pictures_leave_a_row_out_before_they_are_read(folder: Path, model: Path) -> None:
    many = chat([{"type": "image", "path": "good.png"}] * 4 + [{"type": "text", "text": QUESTION}], "a cat")
    _, report = prepared(written(folder, many, row({"path": "good.png"})), model, pictures={"per_example": 3})
    assert list(report.left_out) == ["more than 3 pictures (train.data.pictures.per_example)"]
    _, report = prepared(written(folder, many), model)
    assert (report.examples, report.pictures) == (1, 4)


def test_pictures_that_fit_no_place_leave_a_row_out(folder: Path, model: Path) -> None:
    asked = [{"role": "user", "content": "<image> and <image>"}, {"role": "assistant", "content": "a cat"}]
    answered = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": [{"type": "image"}]}]
    system = [{"role": "system", "content": "<image>"}, *asked[1:]]
    rows = [{"messages": asked, "images": ["good.png"]}, {"messages": answered, "images": ["good.png"]}]
    rows += [{"messages": system, "images": ["good.png"]}, {"messages": asked[:1] * 2, "images": ["good.png"] * 4}]
    with pytest.raises(UserError, match="all 4 rows") as refused:
        prepared(written(folder, *rows), model)
    for why in ("2 a picture in a message that is not the user's", "1 pictures that do not fit their places"):
        assert why in str(refused.value)
    text = {"prompt": "what?", "completion": "a cat", "image": "good.png"}
    with pytest.raises(UserError, match="pictures in the column image of a text without turns"):
        prepared(written(folder, text), model)


def test_a_picture_is_cut_off_as_a_whole(folder: Path, model: Path) -> None:
    said = chat("hi", "a cat", [{"type": "text", "text": "see"}, {"type": "image", "path": "good.png"}], "a dog")
    path = written(folder, said)
    source, _ = prepared(path, model)
    rows = source.step(0, 0, 0).rows
    for length in range(int(rows.picture_starts[0]) - 1, len(rows.tokens)):
        cut, _ = prepared(path, model, max_length=length, too_long="truncate")
        found = cut.step(0, 0, 0).rows
        whole = length >= rows.picture_starts[0] + 5  # its tokens and its end
        assert len(found.pictures) == whole
        assert len(found.tokens) == (length if whole else min(length, rows.picture_starts[0] - 1))


def odd_pictures() -> dict[str, Callable[[], bytes]]:
    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    base = picture(3, (60, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.linspace(0, 65535, 1800).astype(np.uint16).reshape(30, 60))
    see_through = base.copy()
    see_through.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8) * 4, (30, 1))))
    frames = [picture(number, (60, 30)) for number in range(3)]
    return {
        "cmyk": lambda: saved(base.convert("CMYK"), "JPEG"),
        "grey": lambda: saved(base.convert("L"), "PNG"),
        "16 bits": lambda: saved(deep, "PNG"),
        "palette": lambda: saved(base.convert("P"), "GIF"),
        "bilevel": lambda: saved(base.convert("1"), "TIFF"),
        "transparent": lambda: saved(see_through, "PNG"),
        "turned": lambda: saved(base, "JPEG", exif=turned),
        "animated": lambda: saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated webp": lambda: saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
        "one pixel": lambda: saved(base.resize((1, 1)), "PNG"),
        "a line": lambda: saved(base.resize((3000, 1)), "PNG"),
        "20,000 pixels wide": lambda: png_of(20_000, 40),
        "bmp": lambda: saved(base, "BMP"),
    }


@pytest.mark.parametrize("kind", odd_pictures())
def test_an_odd_picture_becomes_what_transformers_makes_of_it(tmp_path: Path, kind: str) -> None:
    content = odd_pictures()[kind]()
    (tmp_path / "odd").write_bytes(content)
    processor = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_normalize=False, do_rescale=False)
    loaded = load_image(str(tmp_path / "odd"))
    theirs = processor(loaded, return_tensors="np", do_convert_rgb=True)["pixel_values"][0]
    ours = resized(Picture(kind, content), PictureFormat((SIDE, SIDE), 4, 7, 9, 8), 10**8)
    assert ours.shape == (3, SIDE, SIDE)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, theirs)


def test_bytes_of_a_table_are_pictures_or_say_why_not(folder: Path, model: Path) -> None:
    text = base64.b64encode(WHOLE).decode()
    rows = [row({"bytes": text, "path": "cat.png"}), row({"bytes": text[:400], "path": "cut.png"})]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, report = prepared(folder / "rows.jsonl", model)
    assert report.examples == 1
    assert report.reasons() == f"1 {BROKEN} (rows.jsonl line 2 (its base64: OSError))"

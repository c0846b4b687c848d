"""Reading a body crafted to exhaust memory or CPU stays within a limit on both."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

MEGABYTES = 200
"""Limit of address space, without the body itself."""

SECONDS = 8
"""Limit of CPU time. The slowest body takes 0.5 s on an idle machine; read part by part, it would
take half a minute."""

CHILD = """
import os
import resource
import sys

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.protocol.classify_body import read_classify
from mlserver_timm.protocol.json_body import read_infer
from mlserver_timm.protocol.request import classification_request

LARGE = 60 * 2**20
PIXEL = b'{"name":"payload","shape":[1,1,3],"datatype":"UINT8","data":[1,2,3]}'


def many(before, item, after):
    return before + b",".join([item] * max(1, LARGE // (len(item) + 1))) + after


def of_data(datatype, item, shape=b"[3]"):
    head = b'{"inputs":[{"name":"payload","shape":%b,"datatype":"%b","data":[' % (shape, datatype)
    return many(head, item, b"]}]}")


def text(characters):
    return of_data(b"BYTES", b'"%b"' % (characters * (LARGE // len(characters))), b"[1]")


def array(row, count):
    rows = count // 1000
    line = b",".join([row] * 1000)
    line = b"[%b]" % line if row.startswith(b"[") else line
    shape = b"[%d,1000,3]" % rows
    return of_data(b"UINT8", b",".join([line] * rows), shape)


def of_name(name):
    return b'{"inputs":[{"name":"%b","datatype":"","shape":[]}]}' % name


def part(content):
    return b'--x\\r\\nContent-Disposition: form-data; name="a"; filename="b"\\r\\n\\r\\n' + content


FORM = "multipart/form-data; boundary=x"


def limit(megabytes, seconds):
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20,) * 2)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + seconds,) * 2)


def read(body, content_type):
    if content_type is None:
        return read_infer(body)
    return read_classify(body, content_type)


for expression in sys.stdin:
    if os.fork() == 0:
        body, content_type = eval(expression)
        limit(int(sys.argv[1]), int(sys.argv[2]))
        try:
            images = classification_request(
                read(body, content_type), {"probabilities": 3}
            ).images
            print("read", len(images), flush=True)
        except (InvalidRequest, InvalidImage):
            print("refused", flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("beyond the limits", flush=True)
"""

REFUSED = {
    "empty-inputs": """many(b'{"inputs":[', b"{}", b"]}"), None""",
    "inputs-of-numbers": """many(b'{"inputs":[', b"1", b"]}"), None""",
    "inputs-of-text": """many(b'{"inputs":[', b'""', b"]}"), None""",
    "inputs-of-lists": """many(b'{"inputs":[', b"[]", b"]}"), None""",
    "valid-inputs": """many(b'{"inputs":[', PIXEL, b"]}"), None""",
    "shape-of-numbers": """many(b'{"inputs":[{"name":"payload","shape":[', b"1", b"]}]}"), None""",
    "shape-of-text": """many(b'{"inputs":[{"name":"payload","shape":[', b'""', b"]}]}"), None""",
    "outputs": """many(b'{"inputs":[],"outputs":[', b"{}", b"]}"), None""",
    "parameters": """many(b'{"inputs":[],"parameters":{', b'"a":1', b"}}"), None""",
    "fields": """many(b"{", b'"a":1', b"}"), None""",
    "data-of-objects": """of_data(b"UINT8", b"{}"), None""",
    "data-of-lists": """of_data(b"UINT8", b"[]"), None""",
    "data-of-text": """of_data(b"BYTES", b'"a"'), None""",
    "data-of-numbers": """of_data(b"BYTES", b"1"), None""",
    "data-of-floats": """of_data(b"UINT8", b"1.5"), None""",
    "data-of-spaces": """of_data(b"UINT8", b" 1 "), None""",
    "deep-lists": """b'{"inputs":' + b"[" * (LARGE // 2) + b"]" * (LARGE // 2) + b"}", None""",
    "deep-objects": """b'{"inputs":' + b'{"a":' * (LARGE // 6) + b"}" * (LARGE // 6), None""",
    "deep-unknown": """b'{"x":' + b'{"a":' * (LARGE // 6) + b"}" * (LARGE // 6), None""",
    "deep-data": """of_data(b"UINT8", b"[[[[[[[[1]]]]]]]]"), None""",
    "quotation-marks": r"""b'{"inputs":"' + b'\\"' * (LARGE // 2) + b'"}', None""",
    "backslashes": r"""b'{"inputs":"' + b"\\" * LARGE + b'"}', None""",
    "one-number": """b'{"inputs":[' + b"1" * LARGE + b"]}", None""",
    "one-name": """of_name(b"x" * LARGE), None""",
    "one-wide-name": """of_name("😀".encode() + b"x" * LARGE), None""",
    "one-wide-id": """'{"id":"😀'.encode() + b"x" * LARGE + b'"}', None""",
    "no-json": """b"[" * LARGE, None""",
    "not-utf-8-at-the-end": """b'{"x":"' + "é".encode() * (LARGE // 2) + b'\\xff"}', None""",
    "base64-with-tabs": """text(b"AAAA\\\\t"), None""",
    "base64-beyond-ascii": """text("é".encode()), None""",
    "base64-with-an-emoji": """text("😀".encode() + b"A" * (LARGE - 4)), None""",
    "base64-with-an-escaped-emoji": r"""text(b"\\ud83d\\ude00" + b"A" * (LARGE - 12)), None""",
    "base64-in-escapes": r"""text(b"\\u0041"), None""",
    "base64-of-line-ends": r"""text(b"A\\n"), None""",
    "base64-that-ends-badly": """text(b"A" * (LARGE - 1) + b"*"), None""",
    "one-row": """array(b"1", 20_000_000), None""",
    "parts-of-a-form": """part(b"") * (LARGE // 70) + b"--x--", FORM""",
    "form-without-an-end": r"""part(b"\r\n--" * (LARGE // 4)), FORM""",
    "form-of-near-boundaries": r"""part(b"\r\n--xQ" * (LARGE // 6)), FORM""",
    "form-of-padding": r"""part(b"\r\n--x" + b" " * LARGE), FORM""",
    "form-of-headers": r"""b"--x\r\n" + b"a: b\r\n" * (LARGE // 6), FORM""",
    "form-of-one-header": r"""b"--x\r\na: " + b"b" * LARGE, FORM""",
    "form-of-line-ends": r"""b"\r\n" * (LARGE // 2), FORM""",
    "hugging-face-objects": """many(b'{"inputs":[', b"{}", b"]}"), '' """,
}
"""Body and content type of /classify, None for /infer."""

READ = {
    "flat-pixels": """array(b"200,200,200", 5_000_000), None""",
    "nested-pixels": """array(b"[200,200,200]", 4_400_000), None""",
    "pixels-of-one-digit": """array(b"1,1,1", 10_000_000), None""",
    "base64": """text(b"/9j/" * 1000), None""",
    "base64-of-the-other-alphabet": """text(b"_9j_" * 1000), None""",
    "base64-in-lines": r"""text(b"A" * 76 + b"\\r\\n"), None""",
    "base64-with-escaped-slashes": r"""text(b"A" * 63 + b"\\/"), None""",
    "base64-with-blanks": """text(b"A "), None""",
    "base64-data-url": """text(b"data:image/png;base64," + b"A" * (LARGE - 24)), None""",
    "base64-as-the-body": """b"/9j/" * (LARGE // 4), '' """,
    "file": """b"\\xff" * LARGE, '' """,
    "file-in-a-form": r"""part(b"\xff" * LARGE) + b"\r\n--x--", FORM""",
}


QUICK = {
    *("data-of-objects", "deep-unknown", "parts-of-a-form"),
    *("base64-that-ends-badly", "file"),
}
"""Bodies of different kinds, which `make test` reads, too."""


def marked(kinds: dict[str, str]) -> list[object]:
    return [
        pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow, id=kind)
        for kind in kinds
    ]


@pytest.fixture(scope="module")
def reader() -> Iterator["subprocess.Popen[str]"]:
    """A process that reads each body in a child of its own."""
    environment = {"PYTHONPATH": str(ROOT / "tinyvit"), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(MEGABYTES), str(SECONDS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, env=environment
    ) as process:
        yield process
        process.communicate()


def outcome(reader: "subprocess.Popen[str]", expression: str) -> str:
    assert reader.stdin and reader.stdout
    reader.stdin.write(expression.strip() + "\n")
    return reader.stdout.readline().strip()


@pytest.mark.parametrize("kind", marked(REFUSED))
def test_refused_within_the_limits(reader: "subprocess.Popen[str]", kind: str) -> None:
    assert outcome(reader, REFUSED[kind]) == "refused"


@pytest.mark.parametrize("kind", marked(READ))
def test_read_within_the_limits(reader: "subprocess.Popen[str]", kind: str) -> None:
    """Valid bodies of 60 MB."""
    assert outcome(reader, READ[kind]) == "read 1"

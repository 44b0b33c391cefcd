"""`baleen survey` from a bare install: figures by fixed names, a table, a picture, and errors that say what to do."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.cli.conftest import Command, program_environment, python
from tests.cli.test_commands import errs
from tests.services.s3 import s3_storage
from tests.survey.trees import BASE, Registry, Repository, digest, fill, write_files

ONE = Registry({1: 1000, 2: 50, 3: 7}, {"a": Repository({1, 2}, {3}), "b/c": Repository({1}), "d": Repository({9})})
OTHER = Registry({1: 1000, 4: 400}, {"a": Repository({1, 4}, {4})})
BOTH = {
    "logical_bytes": 3457,
    "stored_bytes": 2457,
    "shared_layer_bytes": 1457,
    "saving_bytes": 1000,
    "cross_root_bytes": 1000,
}


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    """The two registries as directories."""
    for name, registry in (("one", ONE), ("other one", OTHER)):
        write_files(tmp_path / name, registry)
    return [f"file://{tmp_path}/one", f"file://{tmp_path}/other%20one/"]


def test_json(bare: Command, directories: list[str]) -> None:
    """The JSON has the names that scripts rely on and the figures of both roots; warnings are on stderr."""
    done = bare("survey", *directories, "--json", "--top", "1")
    found = done.json
    names = ("url", "repositories", "blobs", "stored_bytes", "logical_bytes")
    assert [[root[name] for name in names] for root in found["roots"]] == [
        [directories[0], 3, 3, 1057, 2057],
        [directories[1].rstrip("/").replace("%20", " "), 1, 2, 1400, 1400],
    ]
    assert {name: found[name] for name in BOTH} == BOTH
    assert found["largest_shared"] == [{"digest": digest(1), "size": 1000, "repositories": 3, "roots": 2}]
    assert found["missing_examples"] == [{"root": directories[0], "digest": digest(9)}]
    assert done.err.startswith(f"{directories[0]}: 1 blob is linked (1 link) but not stored")


def test_table(bare: Command, directories: list[str]) -> None:
    """The table has a line for each root, the sums, and the largest blobs that are shared."""
    done = bare("survey", *directories)
    assert done.code == 0, done.err
    assert re.search(r"one +3 +3 +2\.06 kB +1\.06 kB", done.out)
    assert re.search(r"which saves +1 kB \(41%\)", done.out)
    assert re.search(rf"{digest(1)} +1 kB +3 +2", done.out)


def test_plot_as_svg(bare: Command, directories: list[str], tmp_path: Path) -> None:
    """An SVG is well-formed, names every root, and its bars are as long as their figures."""
    file = tmp_path / "plot.svg"
    assert bare("survey", *directories, "--plot", str(file)).code == 0
    root = ET.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in root.iter(f"{space}text")]
    assert "one shared layer would save 1 kB, 41% of what is stored" in words
    assert {directories[0], "logical", "stored", "shared layer"} <= set(words)
    bars = [float(bar.get("width", "")) for bar in root.iter(f"{space}rect") if bar.get("width") != "100%"]
    logical, stored, shared = bars[:3]
    assert stored / logical == pytest.approx(2457 / 3457, abs=0.001)
    assert shared / logical == pytest.approx(1457 / 3457, abs=0.001)


def test_plot_as_png(bare: Command, directories: list[str], tmp_path: Path) -> None:
    """A PNG is valid and large enough to read."""
    file = tmp_path / "plot.PNG"
    assert bare("survey", *directories, "--plot", str(file)).code == 0
    image = pytest.importorskip("PIL.Image").open(file)
    assert image.format == "PNG"
    assert image.width > 1000
    assert len(image.convert("RGB").getcolors(1 << 24)) > 5


def test_plot_without_pillow(directories: list[str], tmp_path: Path) -> None:
    """Without the library that paints PNG the command says what to install, before it lists anything."""
    program = "import sys; sys.modules['PIL'] = None; from coordinator.cli import main; main()"
    done = python(tmp_path, "-c", program, "survey", *directories, "--plot", "x.png")
    assert (done.code, done.out) == (1, "")
    assert "pip install '.[plot]'` in a checkout of Baleen, or name a .svg file" in done.err


@pytest.mark.parametrize("way", ["boto3", "settings", "option"])
def test_buckets(bare: Command, embedded_stack: StackEndpoints, directories: list[str], way: str) -> None:
    """A bucket is found by boto3's own environment, by Baleen's settings, or at the endpoint that is named."""
    root = f"survey-{way}"
    stack = s3_storage(embedded_stack, root)
    store = S3ObjectStore(
        stack.bucket, root, endpoint_url=stack.endpoint_url, access_key=stack.access_key, secret_key=stack.secret_key
    )
    fill(store, OTHER)
    keys = {"AWS_ACCESS_KEY_ID": stack.access_key, "AWS_SECRET_ACCESS_KEY": stack.secret_key}
    ours = {"BALEEN_S3_ACCESS_KEY": stack.access_key, "BALEEN_S3_SECRET_KEY": stack.secret_key}
    environment, options = {
        "boto3": (keys | {"AWS_ENDPOINT_URL": stack.endpoint_url}, []),
        "settings": (ours | {"BALEEN_S3_ENDPOINT_URL": stack.endpoint_url}, []),
        "option": (keys | {"BALEEN_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, ["--endpoint-url", stack.endpoint_url]),
    }[way]
    arguments = ("survey", directories[0], f"s3://{stack.bucket}/{root}/", "--json", *options)
    done = python(bare.directory, "-m", "coordinator.cli", *arguments, env=program_environment({}) | environment)
    found = done.json
    assert {name: found[name] for name in BOTH} == BOTH
    assert found["roots"][1]["url"] == f"s3://{stack.bucket}/{root}"
    assert stack.secret_key not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{one}/docker/registry/v2/blobs"], 1, f"nothing below {BASE}/, where blobs/ and repositories/ should be"),
        (["{one}/.."], 1, "Did you mean {one}/../one?"),
        (["file:///nowhere-at-all"], 1, "no directory"),
        (["{one}", "{one}/"], 2, "each once"),
        (["{one}/docker/registry/v2"], 1, "contains `docker`"),
        (["/srv/registry"], 2, "write s3://bucket/root or file:///directory"),
        (["{one}", "--plot", "x.pdf"], 2, "neither .svg nor .png"),
        (["{one}", "--plot", "nowhere/x.svg"], 2, "no directory"),
        (["{one}", "--tmp-dir", "nowhere"], 2, "nowhere"),
        (["s3://bucket", "--endpoint-url", "http://127.0.0.1:9"], 1, "object store"),
        (
            ["s3://bucket", "--endpoint-url", "127.0.0.1:9"],
            2,
            "--endpoint-url is malformed: it must be a URL as http://",
        ),
        ([], 2, "URL"),
    ],
)
def test_errors(bare: Command, directories: list[str], arguments: list[str], code: int, message: str) -> None:
    """What cannot be surveyed is refused in one sentence that says what was expected."""
    assert message.format(one=directories[0]) in errs(
        bare("survey", *(each.format(one=directories[0]) for each in arguments)), code
    )

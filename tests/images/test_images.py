"""The images: pinned bases, no root, hash-checked packages of the lock, a bill of materials, and no orchestrator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.worker_jobs import kept, questions, written

REPOSITORY: Final = Path(__file__).resolve().parents[2]
IMAGES: Final = REPOSITORY / "k8s" / "images"
NAMES: Final = ("worker", "code-location")
# Read before the session gets an empty home: what `uv sync` brought lies there.
UV_CACHE: Final = os.environ.get("UV_CACHE_DIR") or str(Path.home() / ".cache" / "uv")
DIGEST: Final = f"sha256:{'0123456789abcdef' * 4}"


class Context(NamedTuple):
    """What an image is built from."""

    folder: Path

    @property
    def packages(self) -> set[tuple[str, str]]:
        """Name and version, as pip is told; some have a version for each version of Python."""
        text = (self.folder / "requirements.txt").read_text()
        return set(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.packages}


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "UV_CACHE_DIR": UV_CACHE, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Context]:
    folder = tmp_path_factory.mktemp("contexts")
    for name in NAMES:
        done = command("k8s/images/context", name, str(folder / name))
        assert done.returncode == 0, done.stderr
    return {name: Context(folder / name) for name in NAMES}


def instructions(name: str) -> list[tuple[str, str]]:
    """Return a Containerfile's instructions and their arguments, comments left out and broken lines joined."""
    text = (IMAGES / name / "Containerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line.strip())]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_rests_on_a_digest_and_runs_without_root(name: str) -> None:
    found = instructions(name)
    (base,) = (rest for word, rest in found if word == "FROM")
    variable = base.removeprefix("${").removesuffix("}")
    assert ("ARG", variable) in found  # without a default, so that nothing moves
    assert any(word == "RUN" and f'case "${{{variable}}}" in *@sha256:*) ;;' in rest for word, rest in found)
    words = [word for word, _ in found]
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert "RUN" not in words[words.index("USER") :]
    assert not {"ADD", "VOLUME", "EXPOSE", "COPY"} & set(words)  # what comes in comes with the requirements
    (labels,) = (rest for word, rest in found if word == "LABEL")
    assert {"title", "version", "revision", "licenses", "base.name"} <= set(
        re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", labels)
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_that_no_digest_pins(name: str) -> None:
    (run,) = (rest for word, rest in instructions(name) if word == "RUN")
    installs = [each for each in run.split("&&") if " pip install " in each]
    assert len(installs) == 2
    assert all(" --no-deps " in each for each in installs)
    assert " --require-hashes " in installs[0]
    assert installs[1].split()[-1] == "/context/*.whl"
    assert not re.search(r"curl|wget|apt-get|git clone", run)


def test_no_host_of_a_registry_is_named() -> None:
    for file in IMAGES.rglob("*"):
        if file.is_file():
            assert not re.search(r"https?://|\b[\w-]+\.(io|org|com|dev)/", file.read_text()), file


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_the_locks_and_has_its_hashes(contexts: dict[str, Context], name: str) -> None:
    locked = tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    versions = {(each["name"], each.get("version")) for each in locked}
    packages = contexts[name].packages
    assert packages <= versions
    text = (contexts[name].folder / "requirements.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(packages)
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("name", NAMES)
def test_the_bill_of_materials_names_what_is_installed(contexts: dict[str, Context], name: str) -> None:
    bill = json.loads((contexts[name].folder / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert {(each["name"], each["version"]) for each in bill["components"]} == contexts[name].packages
    assert all(each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}" for each in bill["components"])


def test_the_worker_carries_no_orchestrator_and_the_code_location_no_engine(contexts: dict[str, Context]) -> None:
    worker, code = contexts["worker"].names, contexts["code-location"].names
    assert [name for name in worker if name.startswith("dagster")] == ["dagster-pipes"]
    assert not worker & {"mlflow", "ragas", "litellm", "vllm", "torch", "kubernetes", "sqlalchemy"}
    assert {"dagster", "dagster-k8s", "dagster-postgres", "kubernetes", "s3fs", "ragas"} <= code
    assert not code & {"vllm", "torch", "pytest", "ruff", "mypy"}


def test_with_these_packages_alone_the_worker_answers(contexts: dict[str, Context], tmp_path: Path) -> None:
    context = contexts["worker"].folder
    for words in (
        ("venv", "--quiet", str(tmp_path / "venv")),
        ("pip", "install", "--require-hashes", "--no-deps", "-r", str(context / "requirements.txt")),
        ("pip", "install", "--no-deps", *map(str, context.glob("*.whl"))),
    ):
        done = command("./uvw", *words, VIRTUAL_ENV=str(tmp_path / "venv"))
        assert done.returncode == 0, done.stderr
    job = written(tmp_path / "store", questions(3))
    worker = [str(tmp_path / "venv/bin/python"), "-I", "-m", "anven_pipelines.worker"]
    assert "--store" in command(*worker, "--help").stdout
    done = command(*worker, "--store", str(tmp_path / "store"), "--job", job)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "store")["status"].to_list() == ["answered"] * 3
    found = command(worker[0], "-I", "-c", "import fsspec; print(fsspec.get_filesystem_class('s3').__name__)")
    assert found.stdout == "S3FileSystem\n", found.stderr


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    """Put a program called buildah on PATH, which writes down what it is told and whether its context is complete."""
    program = tmp_path / "bin" / "buildah"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/told\nfor last; do :; done; ls "$last" >>' + f"{tmp_path}/told\n"
    )
    program.chmod(0o755)
    return program.parent


@pytest.mark.parametrize(("name", "argument"), [("worker", "VLLM_IMAGE"), ("code-location", "PYTHON_IMAGE")])
def test_one_command_builds_and_writes_the_bill_beside_it(
    tmp_path: Path, builder: Path, name: str, argument: str
) -> None:
    path = f"{builder}:{os.environ['PATH']}"
    done = command("k8s/images/build", name, f"base@{DIGEST}", "--pull", PATH=path, ANVEN_IMAGES=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    image, bill = done.stdout.splitlines()[-2:]
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0] == "build"
    assert f"{argument}=base@{DIGEST}" in told
    assert image == f"anven-{name}:{told[told.index('--tag') + 1].rpartition(':')[2]}"
    assert any(re.fullmatch(r"REVISION=[0-9a-f]{40}", each) for each in told)
    assert told[-6:-4] == ["--pull", str(tmp_path / "out" / name)]
    assert [each.rpartition(".")[2] for each in told[-4:]] == ["Containerfile", "whl", "txt", "json"]
    assert json.loads(Path(bill).read_text())["bomFormat"] == "CycloneDX"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is no image; name worker or code-location"),
        (["gateway"], "gateway is no image"),
        (["worker"], "the base is not named; NAME@sha256:DIGEST is needed"),
        (["worker", "vllm/vllm-openai:v0.32.0"], "a tag can move to another image"),
        (["code-location", "python@sha256:0123"], "the base is python@sha256:0123"),
    ],
)
def test_what_is_not_pinned_is_not_built(builder: Path, words: list[str], message: str) -> None:
    done = command("k8s/images/build", *words, PATH=f"{builder}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (builder.parent / "told").exists()


@pytest.mark.parametrize("script", ["build", "context"])
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_a_script_explains_itself(script: str, word: str) -> None:
    done = command(f"k8s/images/{script}", word)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: k8s/images/{script} worker|code-location ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build"], "nothing is no image"),
        (["build", "worker"], "the base is not named"),
        (["context"], "nothing is no image"),
        (["context", "worker"], "1 words are given; the image and one folder are needed"),
        (["context", "worker", "a", "b"], "3 words are given"),
    ],
)
def test_wrong_use_is_told_with_the_usage(words: list[str], message: str) -> None:
    done = command(f"k8s/images/{words[0]}", *words[1:])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: k8s/images/{words[0]} ")
    assert message in done.stderr

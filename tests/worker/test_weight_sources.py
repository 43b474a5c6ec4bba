"""Where weights may lie, and what each place that holds none is answered with."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, UnavailableService, UnreadableSource
from anven_pipelines.worker.weight_sources import ModelCaches, is_on_worker, source_of
from anven_pipelines.worker.weights import LocalFolder, Weights
from tests.model_places import COMMIT, digest_of_parts, put_in_hub, put_in_layout, put_model

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put_model(tmp_path / "model")


@pytest.mark.parametrize("place", ["{model}", "file://{model}", "hf://anven/ANVEN-3b", "oci://{layout}"])
def test_each_place_holds_the_same_model(tmp_path: Path, model: Path, place: str) -> None:
    hub, layout = tmp_path / "hub", tmp_path / "layout"
    put_in_hub(hub, model)
    put_in_layout(layout, model)
    weights = place.format(model=model, layout=layout)
    found = Weights.of(source_of(weights, COMMIT if weights.startswith("hf") else None, hub=hub))
    assert found.digest() == digest_of_parts()
    assert found.shape() == Weights.in_folder(model).shape()
    assert is_on_worker(weights)
    assert not is_on_worker("s3://bucket/model")


def test_a_folder_of_this_machine_is_used_where_it_is(tmp_path: Path, model: Path) -> None:
    snapshot = put_in_hub(tmp_path / "hub", model)
    for weights, revision, path in (
        (str(model), None, model),
        (f"file://{model}", None, model),
        ("hf://anven/ANVEN-3b", COMMIT, snapshot),
    ):
        source = source_of(weights, revision, hub=tmp_path / "hub")
        assert isinstance(source, LocalFolder)
        assert source.path == path


def test_only_what_an_engine_needs_is_taken(model: Path) -> None:
    assert set(source_of(str(model), None, hub=Path()).files()) == {
        "chat_template.jinja",
        "config.json",
        "model-1-of-3.safetensors",
        "model-2-of-3.safetensors",
        "model-3-of-3.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    }


@pytest.mark.parametrize(
    ("weights", "revision", "error", "message"),
    [
        ("models/x", None, InvalidInput, "an absolute path on the worker's machine is needed"),
        ("hf://anven/ANVEN-3b", None, InvalidInput, "the 40 hex digits of a commit are needed"),
        ("hf://anven/ANVEN-3b", "main", InvalidInput, "a branch or a tag can move"),
        ("hf://anven/ANVEN-3b", COMMIT, UnreadableSource, f"run `hf download anven/ANVEN-3b --revision {COMMIT}`"),
        ("oci://registry.example/m", None, InvalidInput, "a registry is not asked"),
        ("oci:///nowhere", None, UnreadableSource, "no OCI image layout"),
        ("nosuch://x/y", None, InvalidInput, "nosuch://x/y is not usable"),
        ("s3://u:topsecret@bucket/m", None, InvalidInput, "taken from the environment only"),
        ("dropbox://x/y", None, UnavailableService, "needs a package that is not installed"),
        ("/nowhere", None, UnreadableSource, "/nowhere holds no model"),
        ("memory://nowhere/x", None, UnreadableSource, "memory://nowhere/x does not exist"),
    ],
)
def test_a_place_without_a_model_says_why(
    tmp_path: Path, weights: str, revision: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        Weights.of(source_of(weights, revision, hub=tmp_path))
    assert "topsecret" not in str(caught.value)


def test_a_store_that_tells_no_sizes_is_refused(model: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(model))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            weights = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(UnreadableSource, match=r"tells no size of chat_template\.jinja, config\.json, model-1"):
                source_of(weights, None, hub=model).files()
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("environment", "models", "hub"),
    [
        ({"HOME": "/h"}, "/h/.cache/anven_pipelines/models", "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/anven_pipelines/models", "/x/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "/f", "ANVEN_MODEL_CACHE": "/m"}, "/m", "/f/hub"),
        ({"HOME": "/h", "HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/h/.cache/anven_pipelines/models", "/c"),
    ],
)
def test_caches_are_where_the_environment_says(environment: dict[str, str], models: str, hub: str) -> None:
    assert ModelCaches.of(environment) == (Path(models), Path(hub))


def test_a_layout_of_several_models_needs_the_digest_of_one(tmp_path: Path, model: Path) -> None:
    other = put_model(tmp_path / "other", {"model.safetensors": b"others"})
    first, second = put_in_layout(tmp_path / "layout", model, other, nested=True)
    weights = f"oci://{tmp_path}/layout"
    assert Weights.of(source_of(weights, first, hub=tmp_path)).digest() == digest_of_parts()
    assert list(Weights.of(source_of(weights, second, hub=tmp_path)).files) == ["model.safetensors"]
    for revision in (None, f"sha256:{'0' * 64}"):
        with pytest.raises(UnreadableSource, match=f"must name one of its manifests: .*{second}"):
            Weights.of(source_of(weights, revision, hub=tmp_path))
    with pytest.raises(InvalidInput, match="it is the digest of the manifest"):
        source_of(weights, "v1", hub=tmp_path)


def broken_manifest(layout: Path) -> None:
    (manifest,) = (each for each in (layout / "blobs" / "sha256").iterdir() if b'"layers"' in each.read_bytes())
    manifest.write_bytes(manifest.read_bytes() + b" ")


def retitled(title: str) -> Callable[[Path], None]:
    """Write the manifest anew, with other titles."""

    def change(layout: Path) -> None:
        (old,) = (each for each in (layout / "blobs" / "sha256").iterdir() if b'"layers"' in each.read_bytes())
        manifest = json.loads(old.read_bytes())
        for layer in manifest["layers"]:
            layer["annotations"]["org.opencontainers.image.title"] = title
        write_index(layout, manifest)

    return change


def without_sha256(layout: Path) -> None:
    write_index(layout, {"layers": [{"digest": "md5:00", "annotations": {"org.opencontainers.image.title": "x.json"}}]})


def write_index(layout: Path, manifest: dict[str, Any]) -> None:
    data = json.dumps(manifest).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    (layout / "index.json").write_text(json.dumps({"manifests": [{"digest": f"sha256:{digest}", "size": len(data)}]}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda layout: (layout / "oci-layout").unlink(), UnreadableSource, "no OCI image layout"),
        (lambda layout: (layout / "index.json").write_text("{"), UnreadableSource, "no OCI image layout"),
        (broken_manifest, CorruptArtifact, "copy the layout again"),
        (retitled("../../escaped.json"), UnreadableSource, r"no layer's title is a model's file; .*\.\./"),
        (retitled("config.json"), UnreadableSource, "two layers have the title config.json"),
        (without_sha256, UnreadableSource, "not of the form sha256"),
    ],
    ids=["marker", "index", "manifest", "escaping titles", "one title", "digest"],
)
def test_a_broken_layout_says_what_is_broken(
    tmp_path: Path, model: Path, change: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    put_in_layout(tmp_path / "layout", model)
    change(tmp_path / "layout")
    with pytest.raises(error, match=message):
        Weights.of(source_of(f"oci://{tmp_path}/layout", None, hub=tmp_path))

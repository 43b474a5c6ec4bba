"""A tiny model, and the places where a model may lie: a Hugging Face cache and an OCI image layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
CONFIG: Final = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "torch_dtype": "float16",
}
PARTS: Final[Mapping[str, bytes]] = {
    f"model-{at}-of-3.safetensors": bytes([at]) * (5_000 + at)  # no two alike
    for at in (1, 2, 3)
}


def put_model(folder: Path, parts: Mapping[str, bytes] = PARTS) -> Path:
    """Write a model in Hugging Face layout, with files beside it that no engine needs."""
    folder.mkdir(parents=True)
    index = {"weight_map": {f"layer.{name}": name for name in parts}}
    texts = {
        "config.json": json.dumps(CONFIG),
        "model.safetensors.index.json": json.dumps(index),
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "README.md": "no engine reads this",
        "train.py": "raise SystemExit",
    }
    for name, data in {**parts, **{name: text.encode() for name, text in texts.items()}}.items():
        (folder / name).write_bytes(data)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.bin").write_bytes(b"another form of it")
    return folder


def digest_of_parts(parts: Mapping[str, bytes] = PARTS) -> str:
    """Return the documented digest of several files, computed anew."""
    named = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def put_in_hub(hub: Path, model: Path, *, name: str = "anven/ANVEN-3b", commit: str = COMMIT) -> Path:
    """Write a model as huggingface_hub keeps it: blobs, and snapshots of links to them."""
    place = hub / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for folder in (place / "blobs", place / "refs", snapshot):
        folder.mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    for file in model.iterdir():
        if file.is_file():
            blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def put_in_layout(layout: Path, *models: Path, nested: bool = False) -> list[str]:
    """Write models as artifacts of an OCI image layout, as ORAS does; return the digests of their manifests."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    manifests = [_manifest(layout, model) for model in models]
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": manifests}
    if nested:
        media_type = "application/vnd.oci.image.index.v1+json"
        index = {"schemaVersion": 2, "manifests": [_blob(layout, json.dumps(index).encode(), media_type)]}
    (layout / "index.json").write_text(json.dumps(index))
    return [manifest["digest"] for manifest in manifests]


def _manifest(layout: Path, model: Path) -> dict[str, Any]:
    layers = [
        _blob(layout, file.read_bytes(), "application/octet-stream")
        | {"annotations": {"org.opencontainers.image.title": file.name}}
        for file in sorted(model.iterdir())
        if file.is_file()
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.model",
        "config": _blob(layout, b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": layers,
    }
    return _blob(layout, json.dumps(manifest).encode(), manifest["mediaType"])


def _blob(layout: Path, data: bytes, media_type: object) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

"""A small program that reads and writes what llama-prompt-ops 0.0.8 reads and writes, and searches as little as can be.

    python prompt_ops_stand_in.py MODE migrate --config config.yaml --api-key-env NAME --dotenv-path none

It asks the proposing model for one instruction, tries it on every item of the dataset, and writes it as its result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("command", choices=["migrate"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--api-key-env")
    parser.add_argument("--dotenv-path")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    key = os.environ[options.api_key_env]
    if options.mode == "crash":
        sys.exit("the optimiser fell over")
    if options.mode == "hang":
        Path(os.environ["HOME"], "hanging").touch()
        child = os.fork()
        threading.Event().wait(60)
        sys.exit(child)
    if options.mode == "writes nothing":
        return
    folder = options.config.resolve().parent
    rows = json.loads((folder / config["dataset"]["path"]).read_text(encoding="utf-8"))
    text = (folder / config["system_prompt"]["file"]).read_text(encoding="utf-8")
    print(f"optimising {len(rows)} rows")
    proposal = ask(config, key, "proposer_model", [{"role": "user", "content": f"improve: {text}"}])
    if options.mode == "dear":
        for number in range(100):
            ask(config, key, "proposer_model", [{"role": "user", "content": f"improve {number}: {text}"}])

    def score(row: dict[str, str]) -> float:
        messages = [{"role": "system", "content": proposal}, {"role": "user", "content": row["question"]}]
        answer = ask(config, key, "task_model", messages)
        graded = post(config, key, "grade", {"question": row["question"], "answer": answer})
        return float(graded["score"])

    with ThreadPoolExecutor(8) as pool:
        print("score", sum(pool.map(score, rows)))
    result: dict[str, Any] = {"prompt": proposal, "few_shots": [{**rows[0], "context": ""}]}
    if options.mode == "another form":
        result = {"system": proposal}
    Path("results").mkdir(exist_ok=True)
    name = f"{config['output']['prefix']}_{time.strftime('%Y%m%d_%H%M%S')}.json"
    (Path("results") / name).write_text(json.dumps(result), encoding="utf-8")


def ask(config: dict[str, Any], key: str, role: str, messages: list[dict[str, str]]) -> str:
    model = config["model"][role].removeprefix("openai/")
    body = {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": config["model"]["max_tokens"]}
    return str(post(config, key, "v1/chat/completions", body)["choices"][0]["message"]["content"])


def post(config: dict[str, Any], key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{config['model']['api_base'].removesuffix('/v1')}/{path}"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request) as response:  # noqa: S310
        found: dict[str, Any] = json.load(response)
    return found


if __name__ == "__main__":
    main()

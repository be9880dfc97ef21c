"""vLLM serves Cria folders on the CPU: its OpenAI endpoint gives transformers' own greedy tokens.

vLLM lives in an environment of its own, `.vllm` (`make .vllm/.installed`), without this package: what it loads of a per-layer
model is what the folder brings along.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, tiny_model
from crias import cria, save
from transformers import AutoModelForCausalLM

PYTHON = Path(__file__).parents[2] / ".vllm" / "bin" / "python"
_TIMEOUT = 600.0  # seconds until it serves; far above what an idle machine needs
NEW = 24


@contextmanager
def served(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """Address of a server of the folder's model, named "cria", which is ended afterwards."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "cria"]
    command += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--trust-remote-code", "--enable-prefix-caching"]
    command += ["--max-model-len", "512", *options]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    settings |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(log.parent / "modules")}
    address = f"http://localhost:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | settings, start_new_session=True)
    end = time.monotonic() + _TIMEOUT
    try:
        while not _answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its engine is a process of its own
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def completions(address: str, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Greedy continuations of a batch of prompts, as token ids."""
    asked = {"model": "cria", "prompt": list(prompts), "max_tokens": NEW, "temperature": 0}
    body = json.dumps(asked | {"ignore_eos": True, "return_token_ids": True}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        return [choice["token_ids"] for choice in json.load(answer)["choices"]]


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: `make .vllm/.installed`")
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_vllm_gives_the_tokens_of_transformers(family, layout, tokenizer, tmp_path):
    # vLLM's attention on the CPU wants heads of 32 channels at least.
    sizes = {"hidden_size": 256, "intermediate_size": 48, "head_dim": 32, "max_position_embeddings": 512}
    folder = save(tmp_path / "cria", cria(tiny_model(family, **sizes), layout), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if layout == "per_layer":
        heads = {layer.self_attn.k_proj.out_features for layer in model.model.layers}
        widths = {layer.mlp.up_proj.out_features for layer in model.model.layers}
        assert len(heads) > 1 and len(widths) > 1
    drawn = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=drawn).tolist() for length in (3, 40, 200, 400)]
    prompts.append(prompts[-1][:300] + prompts[1])  # begins like the one before, so that its cache is used again
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    # vLLM's own Qwen2 works out the size of a head from the number of heads, which a cut changes.
    options = ("--model-impl", "transformers") if (family, layout) == ("qwen2", "uniform") else ()
    with served(folder, tmp_path / "vllm.log", *options) as address:
        assert completions(address, prompts) == expected  # one batch
        assert completions(address, prompts[-1:]) == expected[-1:]  # alone, from the prefix cache

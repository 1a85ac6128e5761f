"""`transformers serve` with a VW-LMM, asked by OpenAI's own client."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from PIL import Image

from tests.conftest import WITHOUT_TRIPTYCH, save_pair
from tests.test_pipelines import chat


openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

# The command, in a process where triptych cannot be imported.
SERVE = WITHOUT_TRIPTYCH + "from transformers.cli.transformers import main\nmain()\n"


@torch.no_grad()
def test_a_served_model_answers_as_generate_does(tmp_path):
    model, processor = save_pair("vw_lmm", tmp_path / "vw-lmm")
    picture = Image.new("RGB", (20, 20), "red")
    inputs = chat(processor, picture, "what is it?")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-c", SERVE, "serve", str(tmp_path / "vw-lmm"), "--trust-remote-code", "--port", str(port),
        "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="unused", max_retries=0)
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is it?"}]
        request = {
            "model": str(tmp_path / "vw-lmm"),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 6,
            "temperature": 0,
        }
        answer = client.chat.completions.create(**request)
        assert answer.choices[0].message.content == expected, (tmp_path / "log").read_text()
        parts = [
            part.choices[0].delta.content or "" for part in client.chat.completions.create(**request, stream=True)
        ]
        assert "".join(parts) == expected
    finally:
        server.terminate()
        server.wait(30)
        log.close()

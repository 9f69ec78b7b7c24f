"""A hundred edits at once on the page of ``ddim studio``, asked for as browsers do.

    python benchmarks/studio.py [--model emoji] [--requests 100] [--queue 100] [--rounds 2]

Starts the command in a process of its own. Each request is a user: a session that uploads a picture, presses Edit and
waits for the answer. It prints how many were served and how many refused, with the sentences, and the memory of the
server (VmRSS) after one edit, and after each round. It needs Linux, and gradio: ``pip install 'ddim[studio]'``.
"""

import argparse
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from ddim import bundled_test_images
from ddim.evaluation.tables import machine

FROM, TO = "noto slightly smiling face", "noto smiling face with sunglasses"


class Page:
    """The page as a browser knows it: which function a button calls, and with which components.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        config = httpx.get(f"{self.url}/config", timeout=60).json()
        self.ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        pressed = [d for d in config["dependencies"] if [self.ids["edit-go"], "click"] in map(list, d["targets"])]
        self.wants, self.edits = sorted(pressed, key=lambda d: len(d["outputs"]))
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]}

    def inputs(self, model: str, file: dict[str, Any], steps: int) -> list[Any]:
        """The values that the button Edit sends."""
        own = {
            **{"model": model, "edit-picture": file, "edit-from": FROM, "edit-to": TO, "edit-method": "direct"},
            **{"edit-steps": steps, "edit-guidance": 3, "edit-attention": "refine", "edit-strength": 1},
        }
        named = {self.ids[name]: value for name, value in own.items()}
        return [named.get(part, self.values.get(part)) for part in self.edits["inputs"]]

    def ask(self, model: str, picture: Path, steps: int) -> tuple[str, float]:
        """One user: uploads, presses Edit, and waits; returns ``served`` or the sentence, and the seconds."""
        began, session = time.perf_counter(), uuid.uuid4().hex[:12]
        with httpx.Client(base_url=f"{self.url}/gradio_api", timeout=3600) as client:
            with picture.open("rb") as data:
                (path,) = client.post("/upload", files={"files": (picture.name, data, "image/png")}).json()
            file = {"path": path, "orig_name": picture.name, "meta": {"_type": "gradio.FileData"}}
            self._call(client, session, self.wants, [])
            said = self._call(client, session, self.edits, self.inputs(model, file, steps))
        return said, time.perf_counter() - began

    def _call(self, client: httpx.Client, session: str, function: dict[str, Any], data: list[Any]) -> str:
        asked = {"data": data, "fn_index": function["id"], "session_hash": session, "trigger_id": self.ids["edit-go"]}
        if not function["queue"]:
            client.post(f"/run/{function['api_name'] or 'predict'}", json=asked).raise_for_status()
            return "served"
        answer = client.post("/queue/join", json=asked)
        if answer.status_code != 200:
            return str(answer.json().get("detail", answer.text))
        last = ""
        with client.stream("GET", "/queue/data", params={"session_hash": session}) as events:
            for line in events.iter_lines():
                if 'role=\\"status\\"' in line:
                    last = re.sub(r"<[^>]*>", "", json.dumps(json.loads(line[6:])["output"]["data"][:1]))
                if '"process_completed"' in line:
                    message = json.loads(line[6:])
                    if not message["success"]:
                        return str(message["output"].get("error"))
                    return "served" if "Done." in line or "Done." in last else last
        return "the connection ended"


def memory(pid: int) -> float:
    """The resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--queue", type=int, default=100, help="jobs that may wait")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    print(machine())
    port, others = free_port(), _folders()
    words = ["-m", "ddim", "studio", args.model, "--port", str(port), "--queue", str(args.queue), "--json"]
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        page = Page(json.loads(server.stdout.readline())["url"])
        pictures = [path for path in bundled_test_images("emoji") if "smiling" in path.name]
        print("one edit:", *page.ask(args.model, pictures[0], args.steps), f"memory {memory(server.pid):.0f} MB")
        for number in range(args.rounds):
            _round(page, args, pictures, number, server.pid)
        time.sleep(2)
        print(f"at the end: memory {memory(server.pid):.0f} MB")
    finally:
        server.send_signal(signal.SIGINT)
        print("exit code", server.wait(60), "· folders left:", len(_folders() - others))


def _folders() -> set[Path]:
    """The folders of pages in the folder for temporary files."""
    return set(Path(tempfile.gettempdir()).glob("ddim-studio-*"))


def _round(page: Page, args: argparse.Namespace, pictures: list[Path], number: int, pid: int) -> None:
    """Asks for all edits at once, and prints what came of them."""
    answers: list[tuple[str, float]] = []

    def user(k: int) -> None:
        try:
            answers.append(page.ask(args.model, pictures[k % len(pictures)], args.steps))
        except Exception as error:
            answers.append((f"{type(error).__name__}: {error}", 0.0))

    began = time.perf_counter()
    threads = [threading.Thread(target=user, args=(k,)) for k in range(args.requests)]
    for thread in threads:
        thread.start()
    most = 0.0
    while any(thread.is_alive() for thread in threads):
        most = max(most, memory(pid))
        time.sleep(0.5)
    spent = time.perf_counter() - began
    served = [seconds for said, seconds in answers if said == "served"]
    refused = Counter(said for said, _ in answers if said != "served")
    median = f", median wait {statistics.median(served):.1f} s, longest {max(served):.1f} s" if served else ""
    print(f"round {number + 1}: {len(served)} of {args.requests} served in {spent:.0f} s{median}")
    for sentence, count in refused.items():
        print(f"  {count} refused: {sentence}")
    print(f"  memory {memory(pid):.0f} MB, at most {most:.0f} MB")


if __name__ == "__main__":
    main()

"""A headless Chromium that tests look at pages with, driven over a pipe; nothing of it outlives the block."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS = 60  # for any one answer; a start on a busy machine takes a few
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-crash-reporter", "--disable-breakpad", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--disable-renderer-backgrounding", "--disable-background-timer-throttling", "--remote-debugging-pipe",
]  # fmt: skip
# the browser reads commands from descriptor 3 and answers on 4
SHIM = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def found() -> str | None:
    """The program, or None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser():
    """A running browser with an empty profile; both are gone afterwards, whatever happens inside."""
    home = Path(tempfile.mkdtemp(prefix="janus-chromium-"))
    read_there, write_here = os.pipe()
    read_here, write_there = os.pipe()
    words = [sys.executable, "-ISc", SHIM, str(read_there), str(write_there), found(), *FLAGS]
    places = {name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR")}
    process = subprocess.Popen(
        [*words, f"--user-data-dir={home}/profile", "about:blank"], env=os.environ | places, start_new_session=True,
        pass_fds=(read_there, write_there), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_there)
    os.close(write_there)
    pipe = Pipe(read_here, write_here)
    try:
        yield pipe
        with suppress(OSError, EOFError):
            pipe.ask("Browser.close")
            process.wait(10)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(read_here)
        os.close(write_here)
        _removed(home)


def left_behind() -> list[str]:
    """Command lines of processes, and folders, that a closed browser should not have left."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    folders = Path(tempfile.gettempdir()).glob("janus-chromium-*")
    return [line for line in lines if "janus-chromium-" in line] + [str(folder) for folder in folders]


def _removed(home: Path) -> None:
    until = time.monotonic() + 10
    while home.exists() and time.monotonic() < until:  # a dying helper may still write there
        shutil.rmtree(home, ignore_errors=True)


class Pipe:
    """Commands of the DevTools protocol and their answers; events are kept in the order in which they came."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.number, self.rest = 0, b""
        self.events: list[dict] = []

    def ask(self, method: str, session: str | None = None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def wait_for(self, method: str, session: str):
        while True:
            for event in self.events:
                if event.get("method") == method and event.get("sessionId") == session:
                    return event
            self.events.append(self._next())

    def _next(self):
        until = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.read], [], [], max(0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {SECONDS} s"
            part = os.read(self.read, 1 << 20)
            if not part:
                raise EOFError("the browser closed its end")
            self.rest += part
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)


class Page:
    """One opened file at one width, light or dark."""

    def __init__(self, pipe: Pipe, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.pipe, self.width = pipe, width
        target = pipe.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = pipe.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Page.navigate", url=file.resolve().as_uri())
        pipe.wait_for("Page.loadEventFired", self.session)

    def ask(self, method: str, **params):
        return self.pipe.ask(method, self.session, **params)

    def value(self, expression: str):
        """What a JavaScript expression is in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def said(self, method: str) -> list[dict]:
        """Parameters of the events of one kind."""
        events = [e for e in self.pipe.events if e.get("sessionId") == self.session]
        return [e["params"] for e in events if e["method"] == method]

    def complaints(self) -> list[str]:
        """What the console and the log say, violations of the content policy and scripts that failed among it."""
        said = [e["entry"]["text"] for e in self.said("Log.entryAdded")]
        said += [str(e["args"]) for e in self.said("Runtime.consoleAPICalled")]
        return said + [e["exceptionDetails"]["text"] for e in self.said("Runtime.exceptionThrown")]

    def requests(self) -> list[str]:
        """Addresses that were asked for, the page itself left out."""
        asked = [e["request"]["url"] for e in self.said("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith(("file:", "data:"))]

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        self.ask("Page.bringToFront")  # a page behind another one draws no frames
        height = self.value("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(data))

    def printed(self, file: Path) -> None:
        """The page as it would be printed."""
        file.write_bytes(base64.b64decode(self.ask("Page.printToPDF", printBackground=True)["data"]))

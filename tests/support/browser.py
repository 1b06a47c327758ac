"""A headless Chromium, where there is one, driven over its debugging pipe: no driver, no port, no network."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab; commands are those of the Chrome DevTools Protocol."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = os.fdopen(send, "wb", 0), os.fdopen(receive, "rb")
        self._id, self._session = 0, None
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self._id += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._id, "method": method, "params": params, **session}
        self._send.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._id:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, width: int, scheme: str, height: int = 800) -> None:
        """Show a page from disk, as wide as that, in a light or dark scheme."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """Take a PNG of the whole page."""
        return base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self("Browser.close")
        self._send.close()
        self._receive.close()

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """What the console was told, and what was asked of any network, since the page was opened."""
        told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        asked = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in asked]
        foreign = [{"url": url} for url in urls if not url.startswith(("file:", "data:"))]
        return [event for event in self.events if event["method"] in told] + foreign

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        return json.loads(data)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser with its profile in a folder; it ends with the block."""
    assert FOUND is not None
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    command = [FOUND, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--remote-debugging-pipe", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder}", "--no-first-run"]

    def place() -> None:  # it reads commands from descriptor 3 and answers on 4
        high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    process = subprocess.Popen(
        command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        yield browser
        browser.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()

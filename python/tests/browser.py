"""A headless Chromium for tests of pages, spoken to over a pipe in the DevTools protocol; no driver is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (  # No GPU is needed: WebGL is drawn by SwiftShader. Root has no sandbox.
    "--headless", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
)  # fmt: skip
# The browser reads commands from file descriptor 3 and writes answers to 4.
START = (
    "import fcntl, os, sys; r, w = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]); "
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)
PATIENCE = 120.0  # seconds


def executable() -> str | None:
    """Return the path of a browser, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class BrowserError(Exception):
    """The browser did not do what it was asked for."""


class Page:
    """A page in a headless browser.

    Attributes
    ----------
    errors : list of str
        What the console said of errors, and exceptions that nothing caught.
    requests : list of str
        The addresses that were asked for, those of data and blobs in the page apart.
    """

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._number, self._buffer = itertools.count(1), b""
        read, their_write = os.pipe()
        their_read, write = os.pipe()
        command = [executable(), *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(their_read), str(their_write), *map(str, command)],
            pass_fds=(their_read, their_write),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        for end in (their_read, their_write):
            os.close(end)
        self._read, self._write, self._session = read, write, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        for end in (self._read, self._write):
            os.close(end)

    def resize(self, width: int, height: int, *, touch: bool = False) -> None:
        """Give the window a size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.until("document.readyState === 'complete'")

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol; events that come first are noted."""
        number = next(self._number)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError(self.errors)
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            thrown = found["exceptionDetails"]
            self.errors.append(thrown.get("exception", {}).get("description") or thrown["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = found["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:")):
                self.requests.append(url)

    def js(self, expression: str) -> Any:
        """Return the value of an expression, after its promise where it is one."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.js(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise BrowserError(expression, self.errors)
            time.sleep(0.05)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move, press or release the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Click with the left button."""
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Drag with the left button."""
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start, button="left", buttons=1, clickCount=1)
        for share in (0.3, 0.7, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, stop, strict=True))
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", *stop, button="left", clickCount=1)

    def key(self, key: str) -> None:
        """Press a key."""
        code = {"key": key, "code": f"Key{key.upper()}" if len(key) == 1 else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": key} if len(key) == 1 else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Scroll to an element; return the left, top, width and height that it then has in the window."""
        where = json.dumps(selector)
        self.js(f"document.querySelector({where}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        found = self.js(f"document.querySelector({where}).getBoundingClientRect().toJSON()")
        return found["x"], found["y"], found["width"], found["height"]

    def screenshot(self, *, full: bool = False) -> bytes:
        """Return what is seen as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"])

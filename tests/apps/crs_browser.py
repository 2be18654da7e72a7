"""A headless Chromium, driven by the DevTools protocol over a pair of pipes: no socket and no library for it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
PATIENCE = 15.0
# Chromium reads commands from descriptor 3 and writes to 4.
LAUNCH = """
import os, sys
import fcntl
ends = [fcntl.fcntl(int(given), fcntl.F_DUPFD, 10) for given in sys.argv[1:3]]
for end, place in zip(ends, (3, 4)):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page; a context manager.

    Args:
        profile: an empty folder.
        size: of the window in pixels.
        dark: whether the page is asked to be dark.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900), dark: bool = False) -> None:
        self.profile, self.size, self.dark, self._next, self._unread = profile, size, dark, 0, b""
        self.troubles: list[str] = []

    def __enter__(self) -> Browser:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
                 f"--user-data-dir={self.profile}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", LAUNCH, str(to_read), str(to_write), str(CHROMIUM), *flags],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        target = self._send("Target.getTargets")["targetInfos"][0]["targetId"]
        self.session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        width, height = self.size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._send("Browser.close")
            self.process.wait(5)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command to the page."""
        return self._send(method, session=self.session, **params)

    def open(self, url: str) -> None:
        """Load a page whose body says when it is ready."""
        self.call("Page.navigate", url=url)
        self.until("document.body && document.body.dataset.ready === 'true'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {script}; the page says: {self.run('document.body.innerText')}")
            time.sleep(0.03)
        return value

    def key(self, key: str) -> None:
        """Press a key where the focus is."""
        code = {"Enter": 13, "Tab": 9}.get(key, ord(key[0].upper()))
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "",
                      windowsVirtualKeyCode=code)  # fmt: skip

    def type(self, text: str) -> None:
        """Type where the focus is."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """A PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._next += 1
        message = {"id": self._next, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._next:
                if "error" in found:
                    raise AssertionError(f"{method}: {found['error']}")
                return found["result"]
            is_error = found.get("params", {}).get("entry", {}).get("level") == "error"
            if found.get("method") == "Runtime.exceptionThrown" or is_error:
                self.troubles.append(json.dumps(found["params"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._read, 1 << 16)
            if not part:
                raise EOFError("chromium has ended")
            self._unread += part
        line, self._unread = self._unread.split(b"\0", 1)
        return json.loads(line)

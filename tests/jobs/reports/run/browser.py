"""A real browser without a screen, driven over its debugging protocol.

with Browser.open(page.as_uri()) as browser:
    browser.js("document.title")
    browser.press("j")"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DEADLINE_S = 60.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--mute-audio",
)


class Browser:
    """One page. `errors` are exceptions and messages of its console, what its security policy refuses among them;
    `requests` are the addresses that it asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._numbers = loop, socket, itertools.count(1)
        self.errors: list[str] = []
        self.requests: list[str] = []

    @classmethod
    @contextmanager
    def open(cls, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Browser]:
        loop = asyncio.new_event_loop()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            command = [str(CHROMIUM), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={home}", "about:blank"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                session, socket = loop.run_until_complete(_connect(Path(home) / "DevToolsActivePort"))
                browser = cls(loop, socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    browser.send(f"{domain}.enable")
                browser.resize(width, height)
                scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                browser.send("Emulation.setEmulatedMedia", features=scheme)
                browser.send("Page.navigate", url=url)
                try:
                    yield browser
                finally:
                    loop.run_until_complete(session.close())
            finally:
                process.kill()
                process.wait()
                loop.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        return self._loop.run_until_complete(asyncio.wait_for(self._send(method, parameters), DEADLINE_S))

    async def _send(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"].get("exception", parameters)))
        elif message["method"] == "Log.entryAdded":
            self.errors.append(parameters["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])

    def js(self, expression: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return it."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if value := self.js(expression):
                return value
            self.js("new Promise(requestAnimationFrame)")
        raise AssertionError(f"never true: {expression}; {self.errors}")

    def ready(self) -> Browser:
        """Wait until the rollouts are there."""
        self.until("document.documentElement?.dataset.ready")
        return self

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0, **text)

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


async def _connect(file: Path) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    deadline = time.monotonic() + DEADLINE_S
    while not (file.exists() and "\n" in file.read_text()):
        assert time.monotonic() < deadline, "the browser has not started"
        await asyncio.sleep(0.05)
    port = file.read_text().splitlines()[0]
    session = aiohttp.ClientSession()
    while True:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [one for one in await answer.json() if one["type"] == "page"]
        if pages:
            break
        await asyncio.sleep(0.05)
    return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

"""Drives a headless Chromium over the Chrome DevTools Protocol: opens a page, presses keys, takes pictures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--hide-scrollbars", "--mute-audio", "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
)  # fmt: skip
"""Flags of the browser. The last one says that there is a mouse, because a headless browser denies it."""
KEY_CODES = {  # of keys that are neither letters nor digits
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9, "Home": 36,
    "End": 35, " ": 32, ",": 188, ".": 190, "/": 191, "?": 191,
}  # fmt: skip
_T = TypeVar("_T")


def chromium_path() -> str | None:
    """Returns the program of an installed Chromium or Chrome, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """A headless browser with one page. Use it as a context manager, so that the browser always ends.

    ``errors`` collects exceptions and errors of the console since the last ``open``.
    """

    def __init__(self, timeout: float = 30.0) -> None:
        self.errors: list[str] = []
        self.timeout = timeout
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0

    def __enter__(self) -> Chromium:
        """Starts the browser and connects to its page."""
        path = chromium_path() or NAMES[0]
        self._folder = tempfile.mkdtemp(prefix="chromium-")
        self._process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={self._folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._loop = asyncio.new_event_loop()
        try:
            self._run(self._connect(), self.timeout)
            for domain in ("Page", "Runtime", "Log"):
                self.send(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the browser."""
        with contextlib.suppress(Exception):
            self._run(self._session.close(), 5)
        self._end()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the browser's answer to one command of the protocol.

        Raises:
            RuntimeError: the browser refuses the command.
        """
        answer = self._run(self._ask(method, parameters), self.timeout)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error'].get('message')}")
        return dict(answer["result"])

    def open(self, url: str, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Opens an address in a window of that size, and waits for its first paint: earlier keys would be lost."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")  # else an address that differs in its hash loads nothing
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self.errors.clear()
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && performance.getEntriesByType('paint').length > 0")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression as JSON; a promise is awaited.

        Raises:
            RuntimeError: the expression throws.
        """
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(_shown_exception(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str, timeout: float = 10.0) -> Any:
        """Returns the value of a JavaScript expression once it is true.

        Raises:
            TimeoutError: it stays false.
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(RuntimeError):  # a page that navigates loses its context
                if value := self.evaluate(expression):
                    return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {timeout:g} s: {expression}; errors: {self.errors}")
            time.sleep(0.02)

    def key(self, name: str, modifiers: int = 0) -> None:
        """Presses a key by its name in JavaScript. Modifiers: 1 alt, 2 ctrl, 4 meta, 8 shift."""
        written = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
        code = KEY_CODES.get(name) or ord(name.upper())
        event = {"key": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if written and not modifiers & 7:
            event["text"] = written
        self.send("Input.dispatchKeyEvent", type="keyDown" if "text" in event else "rawKeyDown", **event)
        event.pop("text", None)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def hover(self, selector: str) -> tuple[float, float]:
        """Moves the mouse to an element's centre, and returns that point."""
        place = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest',"
            " inline: 'nearest'}); const b = e.getBoundingClientRect();"
            " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        return place[0], place[1]

    def click(self, selector: str) -> None:
        """Clicks an element's centre."""
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows to a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _run(self, coroutine: Coroutine[Any, Any, _T], timeout: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, timeout))

    async def _connect(self) -> None:
        file = Path(self._folder) / "DevToolsActivePort"
        while not (file.is_file() and "\n" in file.read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(f"Chromium ended with code {self._process.returncode}")
            await asyncio.sleep(0.02)
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{file.read_text().split()[0]}/json/list") as answer:
            page = next(target for target in await answer.json() if target["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = self._loop.create_task(self._read())

    async def _ask(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        number = self._count
        self._answers[number] = self._loop.create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await self._answers[number]

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif event["method"] == "Runtime.exceptionThrown":
                self.errors.append(_shown_exception(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.errors.append("{text} {url}".format(**{"url": ""} | event["params"]["entry"]))
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(one.get("value", "")) for one in event["params"]["args"]))

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _shown_exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))

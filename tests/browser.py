"""A headless Chromium to test a page in, driven through its DevTools protocol. The standard library alone.

The browser reads commands on file descriptor 3 and answers on 4 (--remote-debugging-pipe): JSON messages that
end in a zero byte. Keys and clicks are sent to it as from a keyboard and a mouse, so what they do is what the
browser makes of them. https://chromedevtools.github.io/devtools-protocol describes every command used here.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 120.0  # seconds; long, for a busy machine
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "ArrowRight": (39, "")}


def installed() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with a new, empty profile in the folder `profile`."""

    def __init__(self, profile: Path):
        command = [installed(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        swap = 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'  # the pipes of Popen become 3 and 4
        self.process = subprocess.Popen(
            ["sh", "-c", swap, "sh", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.rest, self.count, self.events = b"", 0, []

    def receive(self) -> dict:
        """The next message; raises TimeoutError or EOFError."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise EOFError("the browser has ended")
            self.rest += data
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """The result of a command; events that come meanwhile are kept. Raises RuntimeError if it fails."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": parameters}
        command |= {"sessionId": session} if session else {}
        self.process.stdin.write(json.dumps(command).encode() + b"\0")
        self.process.stdin.flush()
        while (message := self.receive()).get("id") != self.count:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def close(self):
        try:
            self.call("Browser.close")
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()


class Tab:
    """A tab with a page in a window of this size, closed at the end of a `with` block."""

    def __init__(self, browser: Browser, address: str, width=1280, height=800, dark=False):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_):
        self.browser.call("Target.closeTarget", targetId=self.target)
        self.browser.events.clear()

    def call(self, method: str, **parameters) -> dict:
        return self.browser.call(method, self.session, **parameters)

    def js(self, expression: str):
        """The expression's value in the page, awaited; raises RuntimeError where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", "thrown"))
        return found["result"].get("value")

    def until(self, expression: str):
        """Wait until the expression is true; raises TimeoutError."""
        end = time.monotonic() + PATIENCE
        while not self.js(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def settle(self):
        """Wait until the page has done what the last key or click began, and is laid out anew."""
        self.js("new Promise(done => setTimeout(() => requestAnimationFrame(() => setTimeout(done)), 30))")

    def press(self, key: str, shift=False):
        code, text = KEYS[key]
        about = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str):
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def click(self, element: str):
        """A click into the middle of the element that this expression finds, which is brought into view."""
        x, y = self.js(
            f"(e => {{e.scrollIntoView({{block: 'center'}}); const box = e.getClientRects()[0];"
            f" return [box.x + box.width / 2, box.y + box.height / 2]}})({element})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def complaints(self) -> list[str]:
        """Everything that has come on the page's console."""
        self.settle()
        found = []
        for event in self.browser.events:
            about = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded":
                found.append(about["entry"]["text"])
            elif event.get("method") == "Runtime.consoleAPICalled":
                found.append(str(about["args"]))
        return found

    def requests(self) -> list[str]:
        """The address of everything that the page has asked for, itself first."""
        self.settle()
        sent = [e for e in self.browser.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

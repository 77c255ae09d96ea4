"""Drives a headless Chromium over the DevTools protocol's pipe: no port, no package; it ends with this process.

    with Chromium() as browser:
        page = browser.open("http://127.0.0.1:8188")
        page.wait("document.title")

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
    # Pages in the background draw like those in front, so that nothing waits for a window to be shown.
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--disable-background-timer-throttling",
)
# Chromium reads from descriptor 3 and writes to 4; they are put there in the child, behind subprocess's back.
PIPES_TO_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser's path, or None where there is none or no pipe to drive it by."""
    if os.name == "nt":
        return None
    named = os.environ.get("BESPOKE_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class PageError(AssertionError):
    """A script threw an error in the page, or a wait timed out."""


class Chromium:
    """The browser's process and the connection to it. Thread-safe; answers are awaited, events are kept by page."""

    def __init__(self, size: tuple[int, int] = (1400, 900)):
        self.size = size
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        self._last, self._waiting, self._pages = 0, {}, {}
        self._lock = threading.Lock()

    def __enter__(self) -> Chromium:
        import fcntl

        to_child, our_end = os.pipe()
        from_child, child_end = os.pipe()
        # Above 3 and 4, so that duplicating one does not overwrite the other.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_child, child_end)]
        command = [
            sys.executable,
            "-c",
            PIPES_TO_3_AND_4,
            *map(str, ends),
            find(),
            *OPTIONS,
            f"--user-data-dir={self.profile}",
            f"--window-size={self.size[0]},{self.size[1]}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command, pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for fd in (to_child, child_end, *ends):
            os.close(fd)
        self._out, self._in = os.fdopen(our_end, "wb", buffering=0), os.fdopen(from_child, "rb")
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._out.close()  # which ends it
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def _read(self) -> None:
        rest = b""
        while chunk := self._in.read1(1 << 20):
            *messages, rest = (rest + chunk).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "id" in message:
                    with self._lock:
                        answer = self._waiting.pop(message["id"], None)
                    if answer is not None:
                        answer.put(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]]._event(message["method"], message["params"])

    def send(self, method: str, session: str | None = None, seconds: float = 60, wait: bool = True, **params):
        """One command and its result. Raises `PageError` with the browser's message when it is refused."""
        answer: queue.Queue = queue.Queue()
        with self._lock:
            self._last += 1
            message = {"id": self._last, "method": method, "params": params}
            if session:
                message["sessionId"] = session
            if wait:
                self._waiting[self._last] = answer
            self._out.write(json.dumps(message).encode() + b"\0")
        if not wait:
            return None
        try:
            got = answer.get(timeout=seconds)
        except queue.Empty:
            raise PageError(f"no answer to {method} within {seconds:g} s") from None
        if "error" in got:
            raise PageError(f"{method}: {got['error']['message']}")
        return got["result"]

    def open(self, url: str = "about:blank", before: str = "", rewrite: Callable | None = None) -> Page:
        """A new page in a context of its own (no cookies or storage of another page's).

        before: a script that runs before the page's own. rewrite: (url, body) -> body, for answers under /api.
        """
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context, rewrite)
        self._pages[session] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        if rewrite:
            page.send("Fetch.enable", patterns=[{"urlPattern": "*/api/*", "requestStage": "Response"}])
        width, height = self.size
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if before:
            page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        if url != "about:blank":
            page.go(url)
        return page


class Page:
    """One tab. `errors` holds every console error, uncaught exception and failed load as text.

    `notices` holds them and the warnings with the addresses of their scripts, see `notices_of`.
    """

    def __init__(self, browser: Chromium, session: str, context: str, rewrite: Callable | None):
        self.browser, self.session, self.context, self.rewrite = browser, session, context, rewrite
        self.errors: list[str] = []
        self.notices: list[tuple[str, list[str]]] = []
        self.dialogs: list[str] = []

    def send(self, method: str, **params):
        return self.browser.send(method, self.session, **params)

    def close(self) -> None:
        self.send("Page.close")
        self.browser.send("Target.disposeBrowserContext", browserContextId=self.context)

    def _event(self, method: str, params: dict) -> None:
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            text = " ".join(str(a.get("value", a.get("description", a.get("type")))) for a in params["args"])
            self._add_notice("warning" if params["type"] == "warning" else "console", text, params.get("stackTrace"))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description") or details["text"]
            self._add_notice("uncaught", text, details.get("stackTrace"), details.get("url"))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            kind = "warning" if entry["level"] == "warning" else entry["source"]
            self._add_notice(kind, f"{entry['text']} {entry.get('url', '')}", entry.get("stackTrace"), entry.get("url"))
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._later("Page.handleJavaScriptDialog", accept=True)
        elif method == "Fetch.requestPaused":
            threading.Thread(target=self._rewrite, args=(params,), daemon=True).start()

    def _add_notice(self, kind: str, text: str, stack: dict | None, url: str | None = None) -> None:
        if kind != "warning":
            self.errors.append(f"{kind}: {text}")
        frames = []
        while stack:
            frames += [frame["url"] for frame in stack["callFrames"]]
            stack = stack.get("parent")
        self.notices.append((f"{kind}: {text}", [*frames, url or ""]))

    def notices_of(self, scripts: str) -> list[str]:
        """Errors and warnings with this text in the address of a script or of a failed load."""
        return [text for text, urls in self.notices if any(scripts in url for url in urls)]

    def _later(self, method: str, **params) -> None:
        """Send from the reading thread, which must not wait for an answer that it reads itself."""
        self.browser.send(method, self.session, wait=False, **params)

    def _rewrite(self, paused: dict) -> None:
        request = paused["requestId"]
        try:
            got = self.send("Fetch.getResponseBody", requestId=request)
            body = base64.b64decode(got["body"]) if got["base64Encoded"] else got["body"].encode()
            new = self.rewrite(paused["request"]["url"], body)
            status = paused.get("responseStatusCode", 200) if new == body else 200
            headers = [
                h
                for h in paused.get("responseHeaders", [])
                if h["name"].lower() not in ("content-length", "content-encoding")
            ]
            self.send(
                "Fetch.fulfillRequest",
                requestId=request,
                responseCode=status,
                responseHeaders=headers,
                body=base64.b64encode(new).decode(),
            )
        except PageError:  # a redirect, or the page has gone
            self._later("Fetch.continueRequest", requestId=request)

    # --- actions of a user -------------------------------------------------------------------------------------------

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def reload(self) -> None:
        self.evaluate("window.beforeReload = true")
        self.send("Page.reload")
        self.wait("!window.beforeReload")

    def evaluate(self, script: str, seconds: float = 60):
        """The value of an expression, awaited where it is a promise. Raises `PageError` for an error in the page."""
        got = self.browser.send(
            "Runtime.evaluate",
            self.session,
            seconds,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in got:
            details = got["exceptionDetails"]
            raise PageError(f"{details.get('exception', {}).get('description') or details['text']}\nin {script[:500]}")
        return got["result"].get("value")

    def wait(self, script: str, seconds: float = 30):
        """Wait for a truthy value of an expression; errors that it throws count as false."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = self.evaluate(script)
                if last:
                    return last
            except PageError as error:
                last = error
            time.sleep(0.05)
        raise PageError(f"within {seconds:g} s this did not become true: {script}\n(last: {last})")

    def box(self, selector: str) -> dict:
        """An element's box in px: x and y of its centre, width, height."""
        return self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null; "
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect(); "
            "return r.width && {x: r.x + r.width / 2, y: r.y + r.height / 2, width: r.width, height: r.height}; })()"
        )

    def click(self, selector: str) -> None:
        """Click the centre of an element, once nothing covers it there."""
        test = f"(() => {{ const e = document.querySelector({json.dumps(selector)}), r = e.getBoundingClientRect(); "
        self.box(selector)
        self.wait(test + "return e.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)); })()")
        at = self.box(selector)
        self.click_at(at["x"], at["y"])

    def click_at(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        codes = {
            "Enter": 13,
            "Escape": 27,
            "Tab": 9,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "ArrowUp": 38,
        }
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key if key != " " else "Space",
                windowsVirtualKeyCode=codes[key],
                **more,
            )

    def letter(self, key: str) -> None:
        """Press a letter's key, as a shortcut."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=f"Key{key.upper()}",
                windowsVirtualKeyCode=ord(key.upper()),
            )

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def drop(self, files: list[Path], x: float, y: float) -> None:
        """Drop files or folders at a point, as from a file manager."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path: Path, clip: dict | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        more = {"clip": {**clip, "scale": 1}} if clip else {}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **more)["data"]))
        return path

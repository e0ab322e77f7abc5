"""A headless Chromium, driven over a pipe in its DevTools protocol: no other package is needed. Used by test_report.py."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """with Page(folder) as page: page.open(url, width); page.run(javascript); page.events holds what the browser reported."""

    def __init__(self, folder):
        # Chromium reads commands from file descriptor 3 and answers on 4, each message ended by a zero byte.
        ours, theirs = os.pipe(), os.pipe()
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (ours[0], theirs[1]))
        os.close(ours[0]), os.close(theirs[1])
        self.to, self.back, self.rest, self.number, self.events = ours[1], theirs[0], b"", 0, []
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{read} 4>&{write}',
                "bash",
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--no-first-run",
                "--hide-scrollbars",
                f"--user-data-dir={folder}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read), os.close(write)

    def __enter__(self):
        target = next(
            one
            for one in self._call("Target.getTargets", session=None)["targetInfos"]
            if one["type"] == "page"
        )
        self.session = self._call(
            "Target.attachToTarget", session=None, targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *error):
        os.close(self.to)  # Chromium ends when its pipe does
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.back)

    def _messages(self, seconds):
        ready, _, _ = select.select([self.back], [], [], seconds)
        if not ready:
            return []
        found = os.read(self.back, 1 << 20)
        if not found:
            raise RuntimeError("Chromium has ended")
        *whole, self.rest = (self.rest + found).split(b"\0")
        return [json.loads(message) for message in whole]

    def _call(self, method, session="own", **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | (
            {"sessionId": self.session} if session else {}
        )
        data, until, answer = json.dumps(message).encode() + b"\0", time.time() + 90, None
        while data:
            data = data[os.write(self.to, data) :]
        while answer is None:
            if time.time() > until:
                raise TimeoutError(f"Chromium does not answer {method}")
            for message in self._messages(1):
                if message.get("id") == self.number:
                    answer = message
                elif "method" in message:
                    self.events.append(message)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url, width=1440, dark=False):
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.events.clear()
        self._call("Page.navigate", url=url)
        until = time.time() + 60
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            if time.time() > until:
                raise TimeoutError(f"Chromium does not load {url}")
            self.events += [message for message in self._messages(1) if "method" in message]

    def run(self, script):
        """The value of a JavaScript expression."""
        result = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )

    def click(self, selector):
        """A real click in the middle of the first element that matches."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def requests(self):
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self):
        """Uncaught errors, and whatever came to the console."""
        return [
            event["params"]
            for event in self.events
            if event["method"]
            in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        ]

    def picture(self, file, most=16000):
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0,
            "y": 0,
            "width": size["width"],
            "height": min(most, size["height"]),
            "scale": 1,
        }
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(data))

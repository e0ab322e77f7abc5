"""A headless Chromium, driven over a pipe in its DevTools protocol: no other package is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
ANSWER_SECONDS = 90
LOAD_SECONDS = 60
PHONE_WIDTH = 600  # below it a page is shown as on a phone

MIDDLE_OF = """(() => {
  const element = document.querySelector(SELECTOR);
  element.scrollIntoView({block: 'center', behavior: 'instant'});
  const box = element.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


class Page:
    """A page in a browser of its own, with its profile in a folder.

    with Page(folder) as page: page.open(url, width); page.run(javascript).
    page.events holds what the browser reported since the page was opened.
    """

    def __init__(self, folder):
        self.unfinished = b""  # the beginning of a message whose end has not come yet
        self.number = 0
        self.events = []
        # Chromium reads commands from file descriptor 3 and answers on 4, each message ended by a
        # zero byte. Numbers from 20 on cannot be 3 or 4 themselves, so the shell can move them.
        command_end, self.commands = os.pipe()
        self.answers, answer_end = os.pipe()
        read = fcntl.fcntl(command_end, fcntl.F_DUPFD, 20)
        write = fcntl.fcntl(answer_end, fcntl.F_DUPFD, 20)
        os.close(command_end)
        os.close(answer_end)
        shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash"]
        self.process = subprocess.Popen(
            [*shell, CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read)
        os.close(write)

    def __enter__(self):
        targets = self._call("Target.getTargets", in_session=False)["targetInfos"]
        target = next(target for target in targets if target["type"] == "page")
        self.session = self._call(
            "Target.attachToTarget", in_session=False, targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *error):
        os.close(self.commands)  # Chromium ends when its pipe does
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.answers)

    def _messages(self, seconds):
        """What has come within some seconds."""
        ready, _, _ = select.select([self.answers], [], [], seconds)
        if not ready:
            return []
        found = os.read(self.answers, 1 << 20)
        if not found:
            raise RuntimeError("Chromium has ended")
        *messages, self.unfinished = (self.unfinished + found).split(b"\0")
        return [json.loads(message) for message in messages]

    def _call(self, method, in_session=True, **params):
        """The browser's answer to a command; what it reports meanwhile goes to events."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if in_session:
            command["sessionId"] = self.session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        answer = self._answer(method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _answer(self, method):
        until = time.time() + ANSWER_SECONDS
        answer = None
        while answer is None:
            if time.time() > until:
                raise TimeoutError(f"Chromium does not answer {method}")
            for message in self._messages(1):
                if message.get("id") == self.number:
                    answer = message
                elif "method" in message:
                    self.events.append(message)
        return answer

    def open(self, url, width=1440, dark=False):
        """Go to an address and wait until it is loaded."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < PHONE_WIDTH,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self._call("Page.navigate", url=url)
        until = time.time() + LOAD_SECONDS
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
        """Press and release a key of the keyboard."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **text,
            )

    def click(self, selector):
        """A real click in the middle of the first element that matches."""
        x, y = self.run(MIDDLE_OF.replace("SELECTOR", json.dumps(selector)))
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def mouse(self, kind, x, y, **more):
        """A mouseMoved, mousePressed, mouseReleased or mouseWheel at a point of the window."""
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def touch(self, kind, *points):
        """A touchStart, touchMove or touchEnd of fingers at points of the window."""
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self._call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def requests(self):
        """The addresses of all that was asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self):
        """Uncaught errors, and whatever came to the console."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def picture(self, file, most=16000):
        """Write the whole page as PNG, of at most so many pixels in height."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        height = min(most, size["height"])
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        file.write_bytes(base64.b64decode(data))

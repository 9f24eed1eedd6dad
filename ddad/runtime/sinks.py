"""Where inspections are sent: a web address, or an MQTT broker; each from the journal, in order, until it is answered.

What was sent and not yet noted is sent once more after an interruption: receivers know it by its number.
"""

import importlib
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from ddad.runtime.journal import Journal

SECONDS = 10.0
LONGEST_WAIT = 30.0
Send = Callable[[dict[str, Any]], None]


def to_webhook(address: str) -> Send:
    """Posts JSON to an address of http or https."""
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"A webhook is an address of http or https, found {address!r}.")

    def send(entry: dict[str, Any]) -> None:
        headers = {"content-type": "application/json", "x-inspection": str(entry["number"])}
        request = urllib.request.Request(address, json.dumps(entry).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass

    return send


def to_mqtt(address: str) -> Send:
    """Publishes JSON at a broker, at least once: `mqtt://user:password@host:1883/a/topic`.

    Raises:
        ImportError: if paho-mqtt is not installed.
        ValueError: if the address names no topic.
    """
    try:
        mqtt = importlib.import_module("paho.mqtt.client")
    except ImportError:
        raise ImportError("MQTT needs paho-mqtt: `pip install paho-mqtt`.") from None
    parts = urllib.parse.urlsplit(address)
    topic = parts.path.strip("/")
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or not topic:
        raise ValueError(f"A broker is given as mqtt://host:1883/a/topic, found {address!r}.")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    if parts.username:
        client.username_pw_set(parts.username, parts.password)
    if parts.scheme == "mqtts":
        client.tls_set()
    started = threading.Event()

    def send(entry: dict[str, Any]) -> None:
        if not started.is_set():
            client.connect(parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883))
            client.loop_start()
            started.set()
        published = client.publish(topic, json.dumps(entry), qos=1)
        try:
            published.wait_for_publish(SECONDS)
        except RuntimeError as error:  # not connected
            raise OSError(str(error)) from None
        if not published.is_published():
            raise OSError("the broker does not answer")

    return send


class Sink(threading.Thread):
    """Sends what the journal holds, each entry until it is taken.

    Args:
        name: by which the journal notes how far it is.
        journal: of the inspections.
        send: raises OSError where it did not work.
        say: called with a sentence when the receiver is lost and when it is back.
    """

    def __init__(self, name: str, journal: Journal, send: Send, say: Callable[[str], None]):
        super().__init__(name=name, daemon=True)
        self._journal, self._send, self._say = journal, send, say
        self._more, self._ended = threading.Event(), threading.Event()

    def notify(self) -> None:
        """There is something new."""
        self._more.set()

    def finish(self, seconds: float) -> None:
        """Sends what is left, for so long at most."""
        self._ended.set()
        self._more.set()
        self.join(seconds)

    def run(self) -> None:
        """See `threading.Thread`."""
        wait = 0.0
        while True:
            entries = self._journal.entries(self._journal.sent(self.name), 1)
            if not entries:
                if self._ended.is_set():
                    return
                self._more.wait(1.0)
                self._more.clear()
                continue
            try:
                self._send(entries[0])
            except OSError as error:
                if wait == 0:
                    self._say(f"{self.name} does not take results ({error}): they are kept and sent later.")
                if self._ended.is_set():
                    return
                wait = min(max(1.0, 2 * wait), LONGEST_WAIT)
                self._ended.wait(wait)
                continue
            if wait:
                self._say(f"{self.name} takes results again.")
            wait = 0.0
            self._journal.mark_sent(self.name, entries[0]["number"])

"""A server of its own, as a user starts it, and a viewer's socket."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

from websockets.sync.client import connect


class Running:
    """A server in a process of its own, which offers the models in folders beside the shipped ones."""

    def __init__(self, *folders, port=0, flags=()):
        command = [sys.executable, "-m", "torchrsm.cli", "serve", *map(str, folders), "--port", str(port), *flags]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found.group(1))
        self.errors = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()

    def _read_errors(self):
        self.errors.extend(self.process.stderr)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def memory(self):
        """Return MiB of memory in use."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(10)
            self.process.stdout.close()
            self.process.stderr.close()


class Viewer:
    """A socket that counts its requests and sorts what comes."""

    def __init__(self, socket):
        self.socket = socket
        self.hello = json.loads(socket.recv(timeout=20))
        self.frames, self.states, self._id = [], [], 0

    def ask(self, kind, timeout=20, **settings):
        """Send a request and return its reply; frames and states that come before are kept."""
        self._id += 1
        self.socket.send(json.dumps({"type": kind, "id": self._id, **settings}))
        while True:
            message = self.next(timeout)
            if isinstance(message, dict) and message["type"] == "reply" and message["id"] == self._id:
                return message

    def next(self, timeout=20):
        message = self.socket.recv(timeout=timeout)
        if isinstance(message, bytes):
            length = int.from_bytes(message[:4], "little")
            message = json.loads(message[4 : 4 + length])
            self.frames.append(message)
        else:
            message = json.loads(message)
            if message["type"] == "session":
                self.states.append(message)
        return message

    def until(self, condition):
        """Read on until a message fulfils a condition."""
        while not condition(message := self.next()):
            pass
        return message


@contextlib.contextmanager
def watching(server, **options):
    with connect(f"ws://{server.address}/session", max_size=2**24, **options) as socket:
        yield Viewer(socket)

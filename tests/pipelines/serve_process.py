"""`quantone serve` in a process of its own, for tests that send it signals."""

import os
import re
import signal
import subprocess
import sys
import threading

import typer

from pipelines.commands.cli_outcome import run
from pipelines.commands.cli_serve import serve_command

MAIN = "from tests.pipelines.serve_process import main; import sys; sys.exit(main(sys.argv[1:]))"
COMMAND = [sys.executable, "-c", MAIN, "serve"]


def main(arguments):
    """A command line that has `serve`, with the exit codes of `quantone`."""
    app = typer.Typer()
    app.command("serve")(serve_command)
    app.callback()(lambda: None)  # so that "serve" stays a word of the command line
    return run(app, arguments, "quantone")


class Service:
    """`quantone serve` in a process of its own."""

    def __init__(self, *options, environment=()):
        command = [*COMMAND, *options]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
        )
        self.said = ""
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        for line in self.process.stdout:
            self.said += line
            if "try:" in line:
                break
        watchdog.cancel()
        found = re.search(r"http://(\S+:\d+)", self.said)
        self.address = found[1] if found else None
        self.url = f"http://{self.address}"

    def end(self, number=signal.SIGTERM, timeout_s=20):
        """Exit code and stderr, after a signal."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, said

    def __enter__(self):
        assert self.address is not None, self.process.communicate()[1]
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

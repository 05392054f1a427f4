"""Open a page in the browser that makes clips from prompts and pictures."""

import argparse
import errno
import socket

from kinema.errors import KinemaError

HELP = "a page in the browser: prompt or picture to clip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("--model", metavar="DIR", help="a pipeline's folder; else the embedded model")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on (%(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; else CUDA where there is one")


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve the page until interrupted."""
    if not 0 < arguments.port < 65536:
        raise KinemaError(f"`--port` (={arguments.port}) must lie in 1..65535")

    check_free(arguments.host, arguments.port)

    from kinema.apps.gradio_app import launch
    from kinema.apps.loading import load_pipeline

    launch(load_pipeline(arguments.model, device=arguments.device), host=arguments.host, port=arguments.port)


def check_free(host: str, port: int) -> None:
    """Raise `KinemaError` where the page could not be served, before a model is loaded for it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KinemaError(f"`--port` (={port}) must be free: something listens on {host}:{port} already") from error
        why = error.strerror or str(error)
        raise KinemaError(f"`--host` and `--port` (={host}:{port}) must be open to listen on: {why}") from error

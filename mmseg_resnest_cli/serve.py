# Copyright (c) mmseg-resnest authors. Licensed under the Apache License 2.0.
"""Serve a model over HTTP.

    mmseg-resnest serve work_dirs/my_run            (its best checkpoint; or a checkpoint of it)
    mmseg-resnest serve CONFIG CHECKPOINT
    mmseg-resnest serve model.onnx                  (or a published folder, or a published name)
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict > labels.png
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?output=overlay' > overlay.jpg

POST /predict takes an image file as the body; GET /model, /health, /metrics (Prometheus), /docs
and /openapi.json tell of the service. Images that arrive together go through the network together.
What is too large is answered with 413, too many requests with 429, what takes too long with 408 or
504. Nothing that is sent is kept. Listens on this machine only unless --host says otherwise; it has
no passwords and no encryption: put a proxy before it that has.
"""

from __future__ import annotations

import argparse
from functools import partial

from .named_models import add_model, open_model
from .options import (
    add_config_options,
    add_device_option,
    add_engine_options,
    add_service_options,
    add_trust_option,
    engine_choice,
    number,
    whole,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model(parser)
    add_trust_option(parser)
    add_device_option(parser)
    add_engine_options(parser)
    add_service_options(parser, 8000)
    parser.add_argument(
        "--max-mbytes",
        type=number(0.001, 65536),
        default=20,
        metavar="N",
        help="largest request body, MiB (default: 20)",
    )
    parser.add_argument(
        "--max-mpixels",
        type=number(0.001, 65536),
        default=16.8,
        metavar="N",
        help="largest image, million pixels (default: 16.8)",
    )
    parser.add_argument(
        "--max-waiting",
        type=whole(1),
        default=32,
        metavar="N",
        help="requests at a time (default: 32)",
    )
    parser.add_argument(
        "--max-per-client",
        type=whole(0),
        default=128,
        metavar="N",
        help="open connections of one address (default: 128; 0: any, behind a proxy)",
    )
    parser.add_argument(
        "--timeout",
        type=number(0.001, 86400),
        default=30,
        metavar="S",
        help="seconds that a request may take (default: 30)",
    )
    parser.add_argument(
        "--batch", type=whole(1), default=8, metavar="N", help="images in a batch (default: 8)"
    )
    parser.add_argument(
        "--gather",
        type=number(0, 60000),
        default=5,
        metavar="MS",
        help="milliseconds that an image waits for others (default: 5)",
    )
    add_config_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from mmseg_resnest.engine.hooks import print_header
    from mmseg_resnest.inference.engine import choose_engine, prepare_engine
    from mmseg_resnest.io.packages import needs_extra

    with needs_extra("serve"):
        from mmseg_resnest.apps.serving import Limits
        from mmseg_resnest.apps.serving.server import serve

    limits = Limits(
        bytes=int(args.max_mbytes * 2**20),
        pixels=int(args.max_mpixels * 1e6),
        waiting=args.max_waiting,
        seconds=args.timeout,
        batch=args.batch,
        gather=args.gather / 1000,
    )
    choice = engine_choice(args)
    model = open_model(args, args.device)
    choose_engine(model, choice, partial(print, flush=True))
    engine = prepare_engine(model)  # not at the first request, which would wait
    if model.engine is not None:
        model.fold()  # where torch was the fastest, it was so folded

    def ready(address: str) -> None:
        rows = [
            ("serving", " ".join(filter(None, (args.config, args.checkpoint)))),
            ("device", str(model.device)),
            *engine,
            ("address", address),
            ("try", f"curl --data-binary @photo.jpg '{address}/predict?output=overlay' > out.jpg"),
            ("stop", "Ctrl-C; what is being computed is answered first"),
        ]
        print_header(rows)

    serve(model, limits, args.host, args.port, ready, args.max_per_client)
    return 0

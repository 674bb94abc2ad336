"""Open a page that shows text, language and experts of what you say."""

import logging
import os
import sys
import webbrowser

from espnet2_lamer.bin.common import Parser, run_main
from espnet2_lamer.recipe.declaration import READERS


def get_parser() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "model",
        nargs="+",
        metavar="MODEL",
        help="packed zips of a pretrained model and of heads, exp/asr_* and exp/lid_* "
        "directories, or what load_model takes, a Hugging Face id included. A head "
        "gives text or language; experts are those of the first pretrained model, or "
        "of the one inside the first head",
    )
    add("--port", type=int, default=7860, help="of 127.0.0.1; 0: any free one")
    add("--open", type=READERS[bool], default=True, help="true: open the browser")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where models compute")
    add("--max_seconds", type=float, default=60.0, help="longest recording")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Run the command line until it is interrupted."""
    args = get_parser().parse_args(cmd)
    from espnet2_lamer.demo.listening import Listener
    from espnet2_lamer.demo.server import DemoServer

    listener = Listener(args.model, args.device, args.max_seconds)
    server = DemoServer(listener, args.port)
    print(f"{listener.name}: open {server.url}", flush=True)
    if args.open:
        _open_browser(server.url, server.server_port)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        logging.info("stopped")
    finally:
        server.server_close()


def _open_browser(url: str, port: int) -> None:
    # Without a display a browser of the terminal would take it over.
    display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if display or sys.platform in ("darwin", "win32"):
        webbrowser.open(url)
        return
    logging.info(
        "no display here: open the address in a browser; from another machine, first "
        "run there: ssh -L %d:127.0.0.1:%d THIS_MACHINE",
        *(port, port),
    )


if __name__ == "__main__":
    run_main(main)

"""`python -m services.dispatcher`."""

from services.dispatcher.app import serve
from services.dispatcher.settings import DispatcherSettings
from services.runtime.lifecycle import run_process
from services.runtime.settings import load_settings

PROGRAM = "cloudhub-dispatcher"


def main() -> None:
    """Runs a dispatcher by flags and environment."""
    settings = load_settings(DispatcherSettings, PROGRAM)
    run_process(PROGRAM, lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()

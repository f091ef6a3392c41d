"""Says which dispatcher a connector's links go to, whatever the hashing would choose."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from services.connector.app import ConnectorApp
from services.connector.dispatcher_stream import DispatcherStream
from services.dispatcher.app import RunningApp
from tests.support.hub import Part, RunningHub


class Routes:
    """Made by `routed`. At first each connector's links go to the dispatcher of the same number."""

    def __init__(self, hub: RunningHub) -> None:
        self._hub = hub
        self._chosen = {
            connector.name: hub.address(dispatcher.name)
            for connector, dispatcher in zip(hub.connectors, hub.dispatchers, strict=True)
        }

    def lead(self, connector: Part[ConnectorApp], dispatcher: Part[RunningApp]) -> None:
        """The connector's links move to this dispatcher, new ones go there."""
        self._chosen[connector.name] = self._hub.address(dispatcher.name)
        for stream in connector.app.dispatchers.streams:
            connector.app.fitness_changed(stream)

    def leads(self, stream: DispatcherStream) -> bool:
        """Whether the connector takes the stream's dispatcher for the one that can have links."""
        owner = next(
            part.name for part in self._hub.connectors if part.runs and stream in part.app.dispatchers.streams
        )
        return stream.attached and stream.address == self._chosen[owner]


@contextmanager
def routed(hub: RunningHub) -> Iterator[Routes]:
    """A hub with as many connectors as dispatchers, whose links go where the test says."""
    routes = Routes(hub)
    with mock.patch.object(DispatcherStream, "fit", property(routes.leads)):
        yield routes

"""The commands that the demo prints: each works as it stands while the demo runs."""

import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from demo.hub import PROGRAM, Hub
from demo.manifests import Manifest

_HELLO = {"kind": "ConfigMap", "metadata": {"namespace": "site", "name": "hello"}, "data": {"hello": "edge"}}


def _shown(path: Path) -> str:
    """For a shell in the present folder."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def ctl_command(hub: Hub, certificates: Path) -> str:
    """`cloudhubctl` with what it needs to know of the hub."""
    access = ""
    if hub.security.authenticates:
        own = certificates / "programs" / PROGRAM
        access = f"--ca {_shown(certificates / 'ca.crt')} --cert {_shown(own)}.crt --key {_shown(own)}.key "
    return (
        f"{_shown(Path(sys.executable).parent / 'cloudhubctl')} {access}"
        f"--dispatcher {hub.dispatcher_addresses} --sessions {hub.sessions[0].address} "
        f"--connector {hub.connectors[0].address}"
    )


def _grpcurl(hub: Hub, certificates: Path, manifest: Manifest) -> list[str]:
    how = "-plaintext"
    if hub.security.authenticates:
        own = certificates / "programs" / PROGRAM
        how = f"-cacert {_shown(certificates / 'ca.crt')} -cert {_shown(own)}.crt -key {_shown(own)}.key"
    message = {"source": "edgecontroller", "group": "resource", "operation": "update"}
    publish = {
        "message": {**message, "resource": "site/configmap/hello", "resource_version": str(time.time_ns())},
        "node_ids": ["edge-1", "edge-2"],
        "content_json": '{"data": {"hello": "edge"}}',
    }
    about = {"node_id": "edge-1", "object_key": manifest.uid}
    dispatcher = f"{hub.dispatchers[0].address} cloudhub.v1"
    return [
        f"  grpcurl {how} -d '{json.dumps(publish)}' {dispatcher}.DispatcherService/Publish",
        f"  grpcurl {how} -d '{json.dumps(about)}' {dispatcher}.DispatcherAdmin/ExplainDelivery",
    ]


def commands(hub: Hub, certificates: Path, manifest: Manifest) -> list[str]:
    """Lines for a shell; those of grpcurl only where it is installed."""
    ctl = ctl_command(hub, certificates)
    hello = json.dumps(_HELLO)
    return [
        f"  {ctl} nodes",
        f"  {ctl} instances",
        f"  {ctl} explain edge-1 {manifest.uid}",
        f"  echo '{hello}' | {ctl} publish -f - -n edge-1 --wait",
        *(_grpcurl(hub, certificates, manifest) if shutil.which("grpcurl") else ()),
    ]

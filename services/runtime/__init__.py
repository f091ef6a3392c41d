"""What at least two services need: settings, lifecycle, gRPC, telemetry, store, batching."""

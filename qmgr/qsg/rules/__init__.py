"""Ring 1: decisions without I/O. Nothing here imports asyncio, grpc, a clock or a store."""

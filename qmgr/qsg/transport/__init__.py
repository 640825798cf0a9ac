"""Byte-frame streams between processes: gRPC on the network, Unix sockets on a machine, an in-memory twin for simulation."""

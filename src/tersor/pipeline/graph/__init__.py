"""The graph host: whole networks, captured, planned, solved and measured."""

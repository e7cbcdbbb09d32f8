"""The live page: what the server does now, drawn as it happens."""

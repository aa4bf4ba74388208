"""Serve large language models with SGLang on GPU hosts over SSH."""

__version__ = "0.1.0"

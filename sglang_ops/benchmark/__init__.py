"""Measuring the speed of deployed servers with SGLang's own benchmark."""

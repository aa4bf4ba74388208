"""Measuring the quality of a deployed model: run on the hosts, judged and shown here."""

"""What runs in the harness's container on the host: proxy, harness and progress. Carried there with every run.

Standard library only, but for `lmeval`, which runs the harness that the image holds. Python 3.10 and later.
"""

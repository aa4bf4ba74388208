"""The lab: a fleet of real systemd hosts on this machine, to try sglang-ops and to test it without GPUs.

`lifecycle` makes a lab and ends it; `supervisor` is the one process that everything in it hangs on.
"""

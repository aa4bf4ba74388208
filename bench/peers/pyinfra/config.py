"""Everything is done by root; pyinfra works on all hosts at once unless told otherwise."""

SUDO = True

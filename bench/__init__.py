"""The figures that the README quotes: sglang-ops beside a plain Ansible role and pyinfra doing the same work."""

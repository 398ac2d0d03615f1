//! What `tests/clients/README.md` shows is what runs.

//! The harness of the end-to-end tests: real etcd, real masters, real slaves, each a process of its own.

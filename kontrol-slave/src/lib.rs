//! Reports a pod to its masters.
